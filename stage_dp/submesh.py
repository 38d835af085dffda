"""Submeshes: the shares of a cluster that a stage may get, and where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from stage_dp.errors import StageError


@dataclass(frozen=True, slots=True, order=True)
class Submesh:
    """`nodes` whole nodes of `per_node` devices, or `per_node` devices of one node."""

    nodes: int
    per_node: int

    @property
    def devices(self) -> int:
        """All devices."""
        return self.nodes * self.per_node

    def __str__(self) -> str:
        return f"{self.nodes}x{self.per_node}"


def submesh_shapes(nodes: int, per_node: int, every_node_count: bool = False) -> tuple[Submesh, ...]:
    """Submeshes worth pricing on `nodes` x `per_node` devices, smallest first.

    Parts of a node, each dividing the next (1, 2, 4, 8; for six devices 1, 2, 6), then whole nodes: powers of
    two and all of them, or `every_node_count`. Shapes of this kind whose devices add up to no more than the
    cluster's can always be laid out side by side (Alpa, appendix A), so that a split needs to count devices only.
    """
    _positive(nodes, per_node)
    parts = [1]
    while parts[-1] < per_node:
        rest = per_node // parts[-1]
        parts.append(parts[-1] * next(p for p in range(2, rest + 1) if rest % p == 0))
    counts = range(2, nodes + 1) if every_node_count else _doubling(nodes)
    return tuple(Submesh(1, part) for part in parts) + tuple(Submesh(count, per_node) for count in counts)


def check_shapes(nodes: int, per_node: int, submeshes: Sequence[Submesh]) -> None:
    """Raise `StageError` unless any submeshes of these shapes that are few enough fit side by side."""
    _positive(nodes, per_node)
    for shape in submeshes:
        whole = shape.nodes <= nodes and shape.per_node == per_node
        if min(shape.nodes, shape.per_node) < 1 or not (whole or (shape.nodes == 1 and per_node % shape.per_node == 0)):
            raise StageError(
                f"Submesh {shape} is no share of {nodes}x{per_node} devices. A submesh is some whole nodes, "
                f"or a part of one node that divides its {per_node} devices: {_names(submesh_shapes(nodes, per_node))}."
            )
    parts = sorted({shape.per_node for shape in submeshes})
    for small, large in pairwise(parts):
        if large % small:
            raise StageError(
                f"Parts of {small} and of {large} devices cannot always share nodes of {per_node}. Take parts "
                f"each of which divides the next: {_names(submesh_shapes(nodes, per_node))}."
            )


def place(nodes: int, per_node: int, submeshes: Sequence[Submesh]) -> tuple[tuple[int, int], ...]:
    """Where each submesh lies, as (first node, first device in that node), no device used twice.

    In the order given where that leaves every node cut evenly, else the largest first.
    """
    check_shapes(nodes, per_node, submeshes)
    if sum(shape.devices for shape in submeshes) > nodes * per_node:
        raise StageError(
            f"Submeshes {_names(submeshes)} have {sum(shape.devices for shape in submeshes)} devices together, "
            f"the cluster {nodes * per_node}. Leave some out, or take smaller ones."
        )
    in_order = range(len(submeshes))
    starts = _side_by_side(submeshes, in_order)
    if any(start % shape.per_node for start, shape in zip(starts, submeshes, strict=True)):
        starts = _side_by_side(submeshes, sorted(in_order, key=lambda i: -submeshes[i].devices))
    return tuple((start // per_node, start % per_node) for start in starts)


def _side_by_side(submeshes: Sequence[Submesh], order: Sequence[int]) -> list[int]:
    """First device of each submesh when they are laid out in `order`."""
    starts, free = [0] * len(submeshes), 0
    for i in order:
        starts[i] = free
        free += submeshes[i].devices
    return starts


def _doubling(nodes: int) -> list[int]:
    """Node counts 2, 4, 8, ... and all nodes."""
    counts = [2**k for k in range(1, nodes.bit_length()) if 2**k < nodes]
    return [*counts, nodes] if nodes > 1 else []


def _positive(nodes: int, per_node: int) -> None:
    if min(nodes, per_node) < 1:
        raise StageError(f"A cluster has at least one node of at least one device; {nodes}x{per_node} was given.")


def _names(submeshes: Sequence[Submesh]) -> str:
    return ", ".join(map(str, submeshes))
