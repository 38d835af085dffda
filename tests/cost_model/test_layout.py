"""What an axis costs depends on how it lies on the wires."""

import pytest

from cost_model import Cluster, Link, Nodes, Path, Piece, Torus
from cost_model.wiring import cut_into_pieces

GB = 10**9

# nccl-tests on H100, all-gather: (nodes, per node) -> (microseconds, GB/s of the gathered tensor at 1 GB)
NCCL_BETWEEN = {
    (2, 8): (70, 409.6),
    (4, 8): (145.6, 396.4),
    (8, 8): (296.8, 390.1),
    (16, 8): (599, 387),
    (32, 8): (1204, 385.5),
    (2, 1): (22, 96),
    (8, 1): (106, 55),
    (32, 1): (442, 49.5),
}
NCCL_INSIDE = {2: (8, 537), 4: (17, 434), 8: (30, 394)}


@pytest.mark.parametrize(("nodes", "per_node"), NCCL_BETWEEN)
def test_nccl_between_nodes(nodes, per_node):
    latency, rate = NCCL_BETWEEN[nodes, per_node]
    mesh = Cluster.parse(f"h100:{nodes}x{per_node}").logical_meshes(1)[0]
    assert mesh.axes[0].latency == pytest.approx(latency * 1e-6, rel=0.02)
    seconds = mesh.seconds("all-gather", "x", GB) - mesh.axes[0].latency
    assert GB / seconds == pytest.approx(rate * 1e9, rel=0.01)


@pytest.mark.parametrize("devices", NCCL_INSIDE)
def test_nccl_inside_a_node(devices):
    latency, rate = NCCL_INSIDE[devices]
    mesh = Cluster.parse(f"h100:1x{devices}").logical_meshes(1)[0]
    assert mesh.axes[0].latency == pytest.approx(latency * 1e-6, abs=4e-6)
    seconds = mesh.seconds("all-gather", "x", GB) - mesh.axes[0].latency
    assert GB / seconds == pytest.approx(rate * 1e9, rel=0.01)


def test_an_axis_of_whole_nodes_has_all_cards():
    cluster = Cluster.parse("h100:8x8")
    rates = [cluster.topology({"a": 8 * k, "b": 8 // k}).axes[0].bandwidth for k in (1, 2, 4, 8)]
    assert rates == pytest.approx([48e9, 96e9, 192e9, 384e9])


def test_groups_over_several_axes_are_priced_as_they_lie_together():
    cluster = Cluster.parse("h100:8x8")
    whole = cluster.topology({"all": 64})
    for mesh in ({"a": 8, "b": 8}, {"a": 8, "b": 2, "c": 4}, {"a": 2, "b": 4, "c": 8}, {"a": 16, "b": 4}):
        topology = cluster.topology(mesh)
        for kind in ("all-reduce", "all-gather", "reduce-scatter", "all-to-all"):
            assert topology.seconds(kind, tuple(mesh), GB) == pytest.approx(whole.seconds(kind, "all", GB))


def test_messages_to_other_nodes_have_one_card():
    mesh = Cluster.parse("h100:8x8").topology({"all": 64})
    step = mesh.seconds("collective-permute", "all", GB) - (8.4e-6 + 14e-6)
    assert step == pytest.approx(GB / 48e9)
    exchange = mesh.seconds("all-to-all", "all", 64 * GB) - mesh.axes[0].latency
    assert exchange == pytest.approx(63 / 64 * GB / 48e9)


def test_v100_keeps_tensor_parallelism_inside_the_node():
    mesh = Cluster.parse("v100:2x8").topology({"data": 2, "model": 8})
    assert mesh.axes[1].bandwidth > 40 * 25e9 / 8 / 8
    assert mesh.axes[0].bandwidth == pytest.approx(25e9 / 8 / 8)


def test_torus_axis_is_a_ring_or_a_line():
    link = Link(1e-6, 9e10)
    ring, line = Torus((4,), (True,), link), Torus((4,), (False,), link)
    piece = (Piece(0, 4, 1),)
    assert ring.path(piece).bandwidth == 2 * line.path(piece).bandwidth == 1.8e11
    assert (ring.path(piece).latency, line.path(piece).latency) == pytest.approx((2e-6, 3e-6))


def test_tpu_rings_follow_the_slice():
    v5p, v5e = Cluster.parse("tpu-v5p:2x4x8").wiring, Cluster.parse("tpu-v5e:8x16").wiring
    assert (v5p.wraps, v5e.wraps) == ((False, True, True), (False, True))
    assert Cluster.parse("tpu-v5p:4x4x4").topology({"x": 4, "y": 4, "z": 4}).axes[1].bandwidth == 1.8e11
    assert Cluster.parse("tpu-v5e:4x4").topology({"x": 4, "y": 4}).axes[1].bandwidth == 4.5e10


def test_torus_dims_work_together():
    mesh = Cluster.parse("tpu-v5p:4x4x4").topology({"x": 16, "y": 4})
    assert mesh.axes[0].bandwidth == 3.6e11
    assert mesh.path(("x", "y")).bandwidth == pytest.approx(5.4e11)
    V = 1 << 30
    # scaling book: an all-to-all of V takes V / (4 W) on a ring
    assert mesh.seconds("all-to-all", "y", V) - mesh.axes[1].latency == pytest.approx(V / (4 * 1.8e11))


def test_torus_all_to_all_is_bound_by_the_longest_dim():
    mesh = Cluster.parse("tpu-v5p:4x16").topology({"x": 64})
    local = 1 << 24
    assert mesh.seconds("all-to-all", "x", 64 * local) - mesh.axes[0].latency == pytest.approx(local * 16 / 4 / 1.8e11)


def test_interleaved_groups_share_the_wires():
    mesh = Cluster.parse("tpu-v5p:16").topology({"x": 4, "y": 4})
    assert mesh.axes[0].bandwidth == 1.8e11 / 4
    assert mesh.axes[1].bandwidth == 9e10
    assert mesh.path(("x", "y")).bandwidth == 1.8e11


def test_pieces():
    assert cut_into_pieces((16, 4), (8, 8)) == ((Piece(0, 8, 1), Piece(1, 2, 4)), (Piece(1, 4, 1),))
    assert cut_into_pieces((1, 6, 1), (2, 3)) == ((), (Piece(0, 2, 1), Piece(1, 3, 1)), ())
    assert cut_into_pieces((4, 6), (3, 8)) is None


def test_a_single_node_needs_no_network():
    nodes = Nodes.from_json({"nodes": 1, "devices_per_node": 2, "fast": {"latency": 0.0, "bandwidth": 1.0}})
    assert nodes.slow == nodes.fast
    assert isinstance(nodes.path((Piece(1, 2, 1),)), Path)
