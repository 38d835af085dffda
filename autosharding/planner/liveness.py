"""When each value is in memory, as XLA will run the program: what it fuses away is never there, its inputs live on.

An elementwise result with one reader that can take it in, a broadcast, a view (reshape, squeeze, a barrier) is not
materialised. All this is a property of the graph alone; specs come in later and divide the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from math import prod

from autosharding.graph import Graph, Op, Value
from autosharding.rules import elementwise
from ilp.collector import collector_paused

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

    `end` counts op indices; `len(ops)` is the return of the step, so what is returned ends at `len(ops) + 1`. The ops
    of a loop body stand once, for all runs: what is alive around the loop spans them, and a carried array fills its
    place from the border to the op that makes its next state.
    """

    materialised: tuple[bool, ...]
    """Whether it lies in memory where it is read: what is read counts as traffic."""
    held: tuple[bool, ...]
    """Whether it has memory of its own; an array that a body reads of outside has not."""
    begin: tuple[int, ...]
    end: tuple[int, ...]
    place: tuple[int, ...]
    """Until when its memory is kept, read or not; 0 where nothing keeps it."""
    use: tuple[tuple[int, ...], ...]
    """For each op and operand the time until which it is needed: the op's own, or that of what it is fused into."""
    streams: frozenset[int] = frozenset()
    """Ids of arguments and results that pass by, an entry at a time; they are not held, nor are copies made of them."""


def is_elementwise(op: Op) -> bool:
    """Whether the op computes element by element."""
    return op.name in elementwise.NAMES


@collector_paused()
def liveness(graph: Graph, streams: Set[int] = frozenset()) -> Liveness:
    """Intervals of all values; inputs begin at 0.

    Args:
        graph: the program.
        streams: ids of arguments and results that pass by, an entry of their first dim at a time: what is there of them
            is what a loop's body reads or makes.
    """
    returned = {a.id for a in graph.outputs if isinstance(a, Value)}
    there = [True] * len(graph.values)
    held = [True] * len(graph.values)
    begin = [0] * len(graph.values)
    for i in streams:
        held[i] = False
    for op in graph.ops:
        for v in op.outputs:
            there[v.id] = _crosses(op) or v.id in returned or _materialises(op, v, graph)
            held[v.id] = there[v.id] and v.id not in streams and not (_crosses(op) and _is_of_outside(graph, op, v))
            begin[v.id] = _begins(graph, op, v)
    place = _places(graph, begin)
    last = list(place)
    for i in returned:
        last[i] = len(graph.ops) + 1
    use: list[tuple[int, ...]] = [()] * len(graph.ops)
    for op in reversed(graph.ops):
        if op.region is not None:
            use[op.index] = tuple(_lane_use(graph, op, i, last) for i in range(len(op.inputs)))
        else:
            use[op.index] = (_own_use(op, there, last),) * len(op.inputs)
        for a, until in zip(op.inputs, use[op.index], strict=True):
            if isinstance(a, Value):
                last[a.id] = max(last[a.id], until)
    end = tuple(max(b + 1, e) for b, e in zip(begin, last, strict=True))
    return Liveness(tuple(there), tuple(held), tuple(begin), end, tuple(place), tuple(use), frozenset(streams))


def _own_use(op: Op, there: Sequence[bool], last: Sequence[int]) -> int:
    kept = [v for v in op.outputs if there[v.id]]
    floating = [last[v.id] for v in op.outputs if not there[v.id]]
    in_place = is_elementwise(op) and bool(kept)
    own = op.index if in_place else op.index + 1
    return max([own if kept or op.effects or not op.outputs else 0, *floating])


# ---- what crosses the borders of regions ---------------------------------------------------------------------


def _crosses(op: Op) -> bool:
    """A border with bodies; a barrier's lanes are views."""
    return op.region is not None and op.region.bodies > 0


def _is_of_outside(graph: Graph, op: Op, v: Value) -> bool:
    """A body sees the array outside itself: no carry, no slice, no result."""
    assert op.region is not None
    lane = graph.lanes[graph.lane_made[v.id][0]].lane
    return op.border < op.region.bodies and not lane.is_carried and not lane.is_stacked


def _begins(graph: Graph, op: Op, v: Value) -> int:
    """When memory is taken: for what is stacked run by run, before the first run."""
    if op.region is None or not op.region.bodies or not graph.lane_made[v.id][1]:
        return op.index
    return graph.lanes[graph.lane_made[v.id][0]].opening


def _places(graph: Graph, begin: Sequence[int]) -> list[int]:
    """For carried arrays inside, by value id, when their next state takes their place over; 0 for all else."""
    found = [0] * len(graph.values)
    for crossing in graph.lanes:
        if not crossing.lane.is_carried:
            continue
        borders = graph.borders[crossing.opening]
        read = {index: graph.ops[index].inputs[position] for index, position, _ in crossing.reads}
        for (v, _), port in zip(crossing.makes, crossing.lane.makes, strict=True):
            if port.border < crossing.region.bodies:
                here, after = borders[port.border], borders[port.border + 1]
                state = read.get(after)
                made = begin[state.id] if isinstance(state, Value) else after
                found[v.id] = made if made > here else after
    return found


def _lane_use(graph: Graph, op: Op, position: int, last: Sequence[int]) -> int:
    """Until when a border needs an operand."""
    assert op.region is not None
    crossing = graph.lanes[graph.lane_read[op.index, position][0]]
    if not op.region.bodies:  # a barrier: as long as what it lets pass
        return max(op.index + 1, *(last[v.id] for v, _ in crossing.makes))
    if op.border or crossing.lane.is_carried:  # its memory is taken over
        return op.index
    return graph.borders[crossing.opening][-1]


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
