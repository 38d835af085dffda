"""Work that is done twice is done once: ops on the same operands, and sums of the same array.

XLA finds both, the second because it makes one reduction of the sum of a sum (so the bias of a convolution has the
gradient of the bias of a dense layer that is added to its result). What XLA would leave out must not be planned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from autosharding.graph import Atom, Graph, Op, Value, same_params


def without_doubles(graph: Graph) -> Graph:
    """Each op on the same operands once, each sum of an array once; never across a barrier or a border."""
    same: dict[int, Value] = {}
    seen: dict[Any, tuple[Value, ...]] = {}
    sums: dict[int, _Sum] = {}
    kept: list[Op] = []

    def now(a: Atom) -> Atom:
        return same.get(a.id, a) if isinstance(a, Value) else a

    bodies: list[int] = []  # in which bodies we are: the positions of the borders that began them
    for i, op in enumerate(graph.ops):
        if any(v.id in same for v in op.values):
            op = replace(op, inputs=tuple(map(now, op.inputs)))
        if op.region is not None and op.border:
            bodies.pop()
        if op.region is not None and op.border < op.region.bodies:
            bodies.append(i)
        found = _sum(op, sums)
        if found is not None:
            sums[op.outputs[0].id] = found
        meaning = (found.of, found.over, op.outputs[0].type) if found is not None else _meaning(op)
        key = meaning and (*bodies, meaning)
        if key is not None and key in seen:
            same.update((v.id, w) for v, w in zip(op.outputs, seen[key], strict=True))
            continue
        if key is not None:
            seen[key] = op.outputs
        kept.append(op)
    return replace(graph, ops=tuple(kept), outputs=tuple(map(now, graph.outputs)))


def _meaning(op: Op) -> Any:
    if op.effects or op.region is not None:
        return None
    atoms = tuple(a.id if isinstance(a, Value) else a.kind for a in op.inputs)
    return op.name, atoms, same_params(op.params), tuple(v.kind for v in op.outputs)


@dataclass(frozen=True, slots=True)
class _Sum:
    """A value as a sum of another.

    Attributes:
        of: the other's id.
        over: the dims of the other that are summed.
        left: for each dim of the sum the dim of the other, None where its size is 1.
    """

    of: int
    over: frozenset[int]
    left: tuple[int | None, ...]


def _sum(op: Op, known: dict[int, _Sum]) -> _Sum | None:
    """How the result of an op is a sum: a sum of a sum, or one with dims of size 1 put in or left out."""
    if op.name not in ("reduce_sum", "reshape", "squeeze", "broadcast_in_dim") or len(op.values) != 1:
        return None
    a, out = op.values[0], op.outputs[0]
    if op.name == "reduce_sum":
        s = known.get(a.id) or _Sum(a.id, frozenset(), tuple(d if n > 1 else None for d, n in enumerate(a.shape)))
        axes = op.params["axes"]
        over = s.over.union(d for d in (s.left[i] for i in axes) if d is not None)
        return _Sum(s.of, over, tuple(d for i, d in enumerate(s.left) if i not in axes))
    permuted = op.name == "reshape" and op.params["dimensions"] is not None
    if a.id not in known or permuted or _long(a) != _long(out):
        return None
    rest = (d for d in known[a.id].left if d is not None)
    return _Sum(known[a.id].of, known[a.id].over, tuple(next(rest) if n > 1 else None for n in out.shape))


def _long(v: Value) -> tuple[int, ...]:
    """The sizes of a value's dims but those of size 1."""
    return tuple(n for n in v.shape if n > 1)
