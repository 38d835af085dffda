"""What a pipeline cuts between: single ops and whole regions, with what they read and make."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from autosharding.graph import Graph, Op, Value
from autosharding.microbatch.label import Labels
from autosharding.microbatch.states import Factor, Ones, Partial, Sliced, Whole
from autosharding.microbatch.ways import work_of


@dataclass(frozen=True, slots=True)
class Unit:
    """An op outside all regions, or a region with all that is in it.

    Attributes:
        first: index of the op, or of the one that opens the region.
        last: index of the last of its ops.
        place: "before", "loop" or "after".
        backward: whether it belongs to the backward pass.
        reads: ids of the values that it reads, and of the scalars that these are still to be multiplied by.
        makes: ids of the values that it makes.
        work: floating-point operations in one step.
    """

    first: int
    last: int
    place: str
    backward: bool
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    work: float


def units_of(labels: Labels) -> list[Unit]:
    """The units of a graph in program order; a barrier is in the loop if one of its lanes is."""
    graph = labels.graph
    found: list[Unit] = []
    backward: set[int] = set()
    for first, last in spans(graph, 0, len(graph.ops)):
        opening, closing = graph.ops[first], graph.ops[last]
        place = labels.places[first]
        if place == "everywhere":
            inside = any(isinstance(labels.states[v.id], Sliced | Partial) for v in closing.outputs)
            place = "loop" if inside else "before"
        reads = [v.id for v in _read(labels, opening, place)]
        if place == "after":
            reads += [f.value for v in opening.values for f in _factors(labels, v)]
        makes = tuple(v.id for v in closing.outputs)
        comes_back = opening.phase == "backward" or any(i in backward for i in reads)
        if place == "loop" and comes_back:
            backward.update(makes)
        work = sum(work_of(labels, i) for i in range(first, last + 1))
        found.append(Unit(first, last, place, comes_back, tuple(dict.fromkeys(reads)), makes, work))
    return found


def spans(graph: Graph, first: int, end: int) -> Iterator[tuple[int, int]]:
    """The ops from `first` up to `end`, single ones and whole regions: (first, last)."""
    i = first
    while i < end:
        last = graph.borders[i][-1] if i in graph.borders else i
        yield i, last
        i = last + 1


def _read(labels: Labels, op: Op, place: str) -> list[Value]:
    """What an op reads, but for that which ones stand for in the loop."""
    if place != "loop":
        return list(op.values)
    as_read = zip(op.inputs, labels.parts[op.index].reads, strict=True)
    return [a for a, s in as_read if isinstance(a, Value) and not isinstance(s, Ones)]


def _factors(labels: Labels, v: Value) -> tuple[Factor, ...]:
    state = labels.states[v.id]
    return state.factors if isinstance(state, Sliced | Partial) else ()


def is_whole(labels: Labels, value: int) -> bool:
    """Whether a value is there before the loop."""
    op = labels.graph.producer[value]
    made_before = op is None or labels.places[op.index] != "loop"
    return made_before and isinstance(labels.states[value], Whole)
