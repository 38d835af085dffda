"""Submeshes: which there are, and that they can lie side by side."""

import itertools

import pytest

from stage_dp import StageError, Submesh, place, submesh_shapes


def names(shapes):
    return [str(shape) for shape in shapes]


def test_shapes_of_clusters():
    assert names(submesh_shapes(1, 8)) == ["1x1", "1x2", "1x4", "1x8"]
    assert names(submesh_shapes(8, 8)) == ["1x1", "1x2", "1x4", "1x8", "2x8", "4x8", "8x8"]
    assert names(submesh_shapes(5, 1)) == ["1x1", "2x1", "4x1", "5x1"]
    assert names(submesh_shapes(2, 6)) == ["1x1", "1x2", "1x6", "2x6"]
    assert names(submesh_shapes(4, 2, every_node_count=True)) == ["1x1", "1x2", "2x2", "3x2", "4x2"]


@pytest.mark.parametrize(("nodes", "per_node"), [(1, 4), (2, 4), (3, 2), (2, 6)])
def test_whatever_adds_up_lies_side_by_side(nodes, per_node):
    shapes = submesh_shapes(nodes, per_node, every_node_count=True)
    for count in range(1, 5):
        for chosen in itertools.product(shapes, repeat=count):
            if sum(shape.devices for shape in chosen) > nodes * per_node:
                with pytest.raises(StageError, match="devices together"):
                    place(nodes, per_node, chosen)
                continue
            used = set()
            for shape, (node, device) in zip(chosen, place(nodes, per_node, chosen), strict=True):
                assert device + shape.per_node <= per_node
                mine = {(node + i, device + j) for i in range(shape.nodes) for j in range(shape.per_node)}
                assert not mine & used
                assert max(mine) < (nodes, 0)
                used |= mine


def test_order_is_kept_where_it_fits():
    assert place(2, 4, [Submesh(1, 2), Submesh(1, 2), Submesh(1, 4)]) == ((0, 0), (0, 2), (1, 0))
    assert place(2, 4, [Submesh(1, 2), Submesh(1, 4), Submesh(1, 2)]) == ((1, 0), (0, 0), (1, 2))


def test_parts_that_cannot_share_a_node():
    with pytest.raises(StageError, match="Parts of 2 and of 3 devices"):
        place(1, 6, [Submesh(1, 2), Submesh(1, 3)])
    with pytest.raises(StageError, match="no share"):
        place(2, 4, [Submesh(2, 2)])
    with pytest.raises(StageError, match="at least one node"):
        submesh_shapes(0, 4)
