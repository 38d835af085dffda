"""What to do about ops that have to wait for the whole batch: run what is cheap on all of it before the loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autosharding.graph import Graph, Op
from autosharding.microbatch.label import Blocked, Labels, label
from autosharding.microbatch.states import Sliced, Whole
from autosharding.rules import Rule

SHARE = 0.97
"""Share of the work on the batch that must be in the loop for it to be worth while."""

CHEAP = 0.02
"""Share of the work on the batch, and of its arrays' bytes, that may run on the whole batch before the loop."""


def labelled(graph: Graph, rules: Sequence[Rule | None], microbatches: int, inputs: Mapping[int, Sliced]) -> Labels:
    """The labels with the most in the loop.

    Where an op in the loop needs what is known only after it, and that comes cheaply from the inputs (the number of
    tokens that are not padding), it is made of the whole batch before the loop. Where it is a scalar by which something
    is multiplied (the root of a mean in the gradient of that root), the sums are multiplied by it after the loop.

    Args:
        graph: the step on the full batch.
        rules: of its ops.
        microbatches: how many.
        inputs: id of each input that has the batch -> how it is sliced.
    """
    whole: frozenset[int] = frozenset()
    factored: frozenset[int] = frozenset()
    while True:
        found = label(graph, rules, microbatches, inputs, whole, factored)
        for b in found.blocked:
            cone = _cone(found, b) - whole
            if cone and _is_cheap(found, cone | whole):
                whole |= cone
                break
            if b.op not in factored:
                factored |= {b.op}
                break
        else:
            return found


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
    """The ops on the batch that make what an op waits for; nothing where it waits for nothing."""
    graph = labels.graph
    todo = [blocked.waits_for] if blocked.waits_for is not None else []
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
