"""What to do about ops that have to wait for the whole batch: run what is cheap on all of it before the loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from autosharding.graph import Graph, Op
from autosharding.microbatch.label import Blocked, Labels, label
from autosharding.microbatch.states import After, Sliced, Whole
from autosharding.rules import Rule

SHARE = 0.97
"""Share of the work on the batch that must be in the loop for it to be worth while."""

CHEAP = 0.02
"""Share of the work on the batch, and of its arrays' bytes, that may run on the whole batch before the loop."""


def labelled(
    graph: Graph,
    rules: Sequence[Rule | None],
    microbatches: int,
    inputs: Mapping[int, Sliced],
    *,
    independent: bool = False,
) -> Labels:
    """The labels with the most in the loop.

    Where an op in the loop needs what is known only after it, and that comes cheaply from the inputs (the number of
    tokens that are not padding), it is made of the whole batch before the loop. Where it is a scalar by which something
    is multiplied (the root of a mean in the gradient of that root), the sums are multiplied by it after the loop.

    Args:
        graph: the step on the full batch.
        rules: of its ops.
        microbatches: how many.
        inputs: id of each input that has the batch -> how it is sliced.
        independent: whether, where nothing else helps, a microbatch takes the statistics of its own examples for those
            of the batch; statistics of the inputs alone remain those of the batch.
    """
    whole: frozenset[int] = frozenset()
    factored: frozenset[int] = frozenset()
    own: frozenset[int] = frozenset()
    found = first = label(graph, rules, microbatches, inputs)
    while found.blocked:
        asked = {b.op for b in found.blocked}
        statistics = frozenset().union(*(_statistic(found, b) for b in found.blocked)) if independent else frozenset()
        if cone := _cheap_cone(found, whole, independent):
            whole |= cone
        elif not asked <= factored:
            factored |= asked
        elif not statistics <= own:
            own |= statistics
        else:
            break
        found = label(graph, rules, microbatches, inputs, whole, factored, own)
    return replace(found, blocked=_causes(first, found))


def _cheap_cone(labels: Labels, whole: frozenset[int], independent: bool) -> frozenset[int]:
    """The ops that are to run on the whole batch for the first blocked op that this helps."""
    for b in labels.blocked:
        cone = _cone(labels, b) - whole
        if cone and _is_cheap(labels, cone | whole) and not (independent and _reads_state(labels, cone)):
            return cone
    return frozenset()


def _reads_state(labels: Labels, cone: frozenset[int]) -> bool:
    """Whether some op reads what hangs on an input that is the same for every example: a parameter."""
    graph = labels.graph
    hanging = {v.id for v in graph.inputs if isinstance(labels.states[v.id], Whole)}
    for op in graph.ops:
        if labels.places[op.index] == "before" and any(v.id in hanging for v in op.values):
            hanging.update(v.id for v in op.outputs)
    return any(v.id in hanging for i in cone for v in graph.ops[i].values)


def _statistic(labels: Labels, blocked: Blocked) -> frozenset[int]:
    """A blocked op, and the ops that make of sums over the batch what it waits for."""
    graph = labels.graph
    found = {blocked.op}
    todo = [blocked.waits_for] if blocked.waits_for is not None else []
    while todo:
        v = todo.pop()
        op = graph.producer[v]
        if op is not None and op.index not in found and isinstance(labels.states[v], After):
            found.add(op.index)
            todo += [a.id for a in op.values]
    return frozenset(found)


def _causes(first: Labels, last: Labels) -> tuple[Blocked, ...]:
    """What is still blocked, and what was at first and is not in the loop now (a sort that runs whole), in order."""
    outside = {b.op: b for b in first.blocked if last.places[b.op] != "loop"}
    outside.update((b.op, b) for b in last.blocked)
    return tuple(outside[i] for i in sorted(outside))


def share(labels: Labels) -> float:
    """The share of the work on the batch that is in the loop, of what is and what should be."""
    inside = sum(work_of(labels, i) for i in _inside(labels))
    lost = sum(work_of(labels, i) for i in labels.lost)
    return inside / (inside + lost) if inside else 0.0


def _inside(labels: Labels) -> list[int]:
    return [i for i, place in enumerate(labels.places) if place == "loop"]


def work_of(labels: Labels, index: int) -> float:
    """Floating-point operations of an op in one step."""
    rule = labels.rules[index]
    return rule.flops * labels.graph.op_times[index] if rule is not None else 0.0


def _cone(labels: Labels, blocked: Blocked) -> frozenset[int]:
    """The ops on the batch that make what an op waits for; itself too where it waits for nothing (a permutation)."""
    graph = labels.graph
    own = [v.id for v in graph.ops[blocked.op].outputs]
    todo = own if blocked.waits_for is None else [blocked.waits_for]
    found: set[int] = set()
    while todo:
        op = graph.producer[todo.pop()]
        if op is None or op.index in found:
            continue
        for part in _with_region(graph, op):
            found.add(part.index)
            todo += [v.id for v in part.values if not isinstance(labels.states[v.id], Whole)]
    return frozenset(found)


def _with_region(graph: Graph, op: Op) -> Sequence[Op]:
    """The op, or all ops of the outermost region that it stands in or is a border of."""
    around = [(a, b) for a, *_, b in ((g[0], *g) for g in graph.borders.values()) if a <= op.index <= b]
    if not around:
        return (op,)
    first, last = min(around)[0], max(b for _, b in around)
    return graph.ops[first : last + 1]


def _is_cheap(labels: Labels, cone: frozenset[int]) -> bool:
    """Whether little work is done and little memory filled by running these ops on the whole batch."""

    def size(index: int) -> int:
        return sum(v.nbytes for v in labels.graph.ops[index].outputs)

    of_batch = {*_inside(labels), *labels.lost}
    work, room = sum(work_of(labels, i) for i in of_batch), sum(map(size, of_batch))
    return sum(work_of(labels, i) for i in cone) <= CHEAP * work and sum(map(size, cone)) <= CHEAP * room
