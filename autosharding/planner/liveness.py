"""When each value is in memory, as XLA will run the program: what it fuses away is never there, its inputs live on.

An elementwise result with one reader that can take it in, a broadcast, a view (reshape, squeeze, a barrier) is not
materialised. All this is a property of the graph alone; specs come in later and divide the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from autosharding.graph import Graph, Op, Value
from autosharding.rules import elementwise

VIEWS = frozenset(
    {"reshape", "squeeze", "expand_dims", "optimization_barrier", "copy", "sharding_constraint", "reshard"}
)
"""Results that are their operand's buffer."""

_FUSING = frozenset(
    {"reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or", "broadcast_in_dim", "transpose"}
)
"""Besides elementwise operators, what computes its operand on the fly."""


@dataclass(frozen=True, slots=True)
class Liveness:
    """For each value id whether it is materialised, and the ops between which it is alive: `[begin, end)`.

    `end` counts op indices; `len(ops)` is the return of the step, so what is returned ends at `len(ops) + 1`.
    """

    materialised: tuple[bool, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    use: tuple[int, ...]
    """For each op index the time at which its operands are needed last: its own, or that of what it is fused into."""


def is_elementwise(op: Op) -> bool:
    """Whether the op computes element by element."""
    return op.name in elementwise.NAMES


def liveness(graph: Graph) -> Liveness:
    """Intervals of all values; inputs begin at 0."""
    returned = {a.id for a in graph.outputs if isinstance(a, Value)}
    there = [True] * len(graph.values)
    for op in graph.ops:
        for v in op.outputs:
            there[v.id] = v.id in returned or _materialises(op, v, graph)
    last = [0] * len(graph.values)
    finish = len(graph.ops) + 1
    for i in returned:
        last[i] = finish
    use = [0] * len(graph.ops)
    for op in reversed(graph.ops):
        if op.name == "optimization_barrier":  # lane by lane
            for a, v in zip(op.values, op.outputs, strict=True):
                last[a.id] = max(last[a.id], last[v.id], op.index + 1)
            use[op.index] = op.index + 1
            continue
        kept = [v for v in op.outputs if there[v.id]]
        floating = [last[v.id] for v in op.outputs if not there[v.id]]
        in_place = is_elementwise(op) and bool(kept)
        own = op.index if in_place else op.index + 1
        use[op.index] = max([own if kept or op.effects or not op.outputs else 0, *floating])
        for a in op.values:
            last[a.id] = max(last[a.id], use[op.index])
    begin = [0] * len(graph.values)
    for op in graph.ops:
        for v in op.outputs:
            begin[v.id] = op.index
    end = tuple(max(b + 1, e) for b, e in zip(begin, last, strict=True))
    return Liveness(tuple(there), tuple(begin), end, tuple(use))


def _materialises(op: Op, v: Value, graph: Graph) -> bool:
    if op.is_free or op.name in VIEWS:
        return False
    readers = graph.readers[v.id]
    fusible = is_elementwise(op) or op.name == "broadcast_in_dim"
    if not fusible or not readers:
        return True
    if op.name == "broadcast_in_dim" or prod(v.shape) <= 1:
        return any(not _takes_in(r) for r, _ in readers)
    return len({r.index for r, _ in readers}) != 1 or not _takes_in(readers[0][0])


def _takes_in(op: Op) -> bool:
    return is_elementwise(op) or op.name in _FUSING
