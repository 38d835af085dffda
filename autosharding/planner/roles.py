"""What each argument is to the step: read off the graph, with no names needed.

State is what comes in and leaves as new state. Where the step is differentiated, a parameter is the state that the
forward pass computes with, an optimizer state is what only the update reads, and the rest of the arguments are the
batch, but for frozen weights (`frozen`), which are parameters, too. A step that is never differentiated hands its
weights on to nobody: there a batch is what has its first dim in common with a result; weights are summed along it,
looked up in it, or scanned. Where no argument has, all are batch. What passes by, a microbatch at a time, is a stream:
its first dim is that of the microbatches. An input of a part of a program is to it what it is to the whole; what
another part made, once, is handed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set

from autosharding.graph import Graph, Op, Value
from autosharding.planner.frozen import frozen
from autosharding.rules import Rule, rules_of

ROLES = ("parameter", "optimizer", "state", "batch", "stream", "handed", "constant")


def roles(
    graph: Graph, state: Mapping[int, int], streams: Set[int] = frozenset(), told: Mapping[int, str] | None = None
) -> tuple[str, ...]:
    """The role of each input.

    Args:
        graph: of a step, or of a part of one.
        state: result index -> index of the input whose new state it is.
        streams: ids of the values that pass by.
        told: input index -> role, where it is known of the whole program.
    """
    known = dict(told or {})
    known |= {i: "stream" for i, v in enumerate(graph.inputs) if v.id in streams}
    known |= dict.fromkeys(range(graph.n_arguments, len(graph.inputs)), "constant")
    if len(known) < len(graph.inputs):
        differentiated = any(op.phase == "backward" for op in graph.ops)
        read = _of_training(graph, state) if differentiated else _of_inference(graph, state)
        known = dict(enumerate(read)) | known
    return tuple(known[i] for i in range(len(graph.inputs)))


def _of_training(graph: Graph, state: Mapping[int, int]) -> Iterator[str]:
    is_state = set(state.values())
    read = [_read_in(graph, v) for v in graph.inputs]
    passed_on = {i for o, i in state.items() if graph.outputs[o] is graph.inputs[i]}
    trained = passed_on | {i for i in is_state if "update" in read[i]}
    weights = frozen(graph, set(range(graph.n_arguments)) - is_state, trained)
    for i, (v, phases) in enumerate(zip(graph.inputs, read, strict=True)):
        if i not in is_state:
            yield "parameter" if i in weights else "batch"
        elif _is_float(v) and phases & {"forward", "backward"}:
            yield "parameter"
        else:
            yield "optimizer" if _is_float(v) and v.rank > 0 else "state"


def _read_in(graph: Graph, v: Value) -> set[str]:
    """The phases of the ops that read a value, in the bodies of regions too."""
    found, todo, seen = set(), [v], {v.id}
    while todo:
        for op, position in graph.readers[todo.pop().id]:
            found.add(op.phase)
            if op.region is not None:
                inside = [w for w, _ in graph.lanes[graph.lane_read[op.index, position][0]].makes if w.id not in seen]
                seen.update(w.id for w in inside)
                todo += inside
    return found


def _of_inference(graph: Graph, state: Mapping[int, int]) -> Iterator[str]:
    is_state = set(state.values())
    leading = _leading(graph, state)
    shows = any(v.id in leading for v in graph.inputs)
    for i, v in enumerate(graph.inputs):
        if i in is_state:
            yield "state"
        else:
            weight = _is_float(v) and v.rank > 0 and v.id not in leading
            yield "parameter" if weight and shows else "batch"


def _is_float(v: Value) -> bool:
    return v.dtype.startswith(("f", "bf"))


def _leading(graph: Graph, state: Mapping[int, int]) -> frozenset[int]:
    """Ids of the values whose first dim is that of a result that is no state: followed back through the rules."""
    results = [a for n, a in enumerate(graph.outputs) if n not in state and isinstance(a, Value) and a.rank]
    found = {(a.id, 0) for a in results}
    ops = list(zip(graph.ops, rules_of(graph), strict=True))[::-1]
    known = 0
    while len(found) > known:  # a carry may show what it is at the beginning of its loop only
        known = len(found)
        for op, rule in ops:
            for j, v in enumerate(op.outputs):
                for d in range(v.rank):
                    if (v.id, d) in found:
                        found.update(_same_dim(op, rule, j, d) if rule is not None else _through_lane(graph, v, d))
    return frozenset(v for v, d in found if d == 0)


def _same_dim(op: Op, rule: Rule, result: int, d: int) -> Iterator[tuple[int, int]]:
    """The dims of an op's operands, (value id, dim), with the major factor of a dim of its result."""
    major = rule.results[result][d][:1]
    for a, dims in zip(op.inputs, rule.operands, strict=True):
        if isinstance(a, Value) and major:
            yield from ((a.id, e) for e, factors in enumerate(dims) if factors[:1] == major)


def _through_lane(graph: Graph, v: Value, d: int) -> Iterator[tuple[int, int]]:
    """The same for what a border makes; the dim that a scan stacks comes from nowhere."""
    n, stacked = graph.lane_made[v.id]
    for index, position, also in graph.lanes[n].reads if d >= stacked else ():
        a = graph.ops[index].inputs[position]
        if isinstance(a, Value):
            yield a.id, d - stacked + also
