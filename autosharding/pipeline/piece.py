"""One piece of a pipeline as a graph of its own: its share of the loop over microbatches, and of what comes after.

What is sent in the loop goes in and comes out stacked, one entry for each microbatch; so the piece is an ordinary step,
which the planner plans like any other, its ops in the loop counted as often as they run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from autosharding import _jax
from autosharding.capture import from_jaxpr, renumber
from autosharding.graph import Graph, Literal, Op, Value
from autosharding.microbatch.label import Labels, Place
from autosharding.microbatch.loop import Inside, Outside, join, neutral
from autosharding.microbatch.slice import joined, taken
from autosharding.microbatch.states import TIME, Partial, Sliced
from autosharding.pipeline.assign import Assignment
from autosharding.pipeline.forward import Forward
from autosharding.run_graph import scalar


@dataclass(frozen=True, slots=True)
class Port:
    """What an input or output of a piece is to the step.

    Attributes:
        kind: "step": an input or output of the step; "loop": sent for each microbatch, stacked; "after": sent once.
        of: index among the step's inputs or outputs, or the id of the value.
        backward: for what is sent in the loop, whether the backward pass makes it.
    """

    kind: str
    of: int
    backward: bool = False


@dataclass(frozen=True)
class Piece:
    """A piece of a step.

    Attributes:
        graph: its own graph.
        inputs: what each input is.
        outputs: what each output is.
        state: output index -> index of the input whose new state it is.
        roles: input -> what it is to the step; "handed" for what is sent once.
        donated: inputs whose buffers their new state takes over.
    """

    graph: Graph
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    state: Mapping[int, int]
    roles: Mapping[int, str]
    donated: frozenset[int] = frozenset()

    @property
    def streams(self) -> frozenset[int]:
        """Ids of the values that are stacks of what is sent: on the devices they are a microbatch at a time."""
        ins, outs = self.graph.inputs, self.graph.outputs
        found = {ins[i].id for i, p in enumerate(self.inputs) if p.kind == "loop"}
        found |= {a.id for a, p in zip(outs, self.outputs, strict=True) if p.kind == "loop" and isinstance(a, Value)}
        return frozenset(found)


def piece_of(assignment: Assignment, piece: int, forward: Forward) -> Piece:
    """A piece as a graph.

    Args:
        assignment: of the step.
        piece: which.
        forward: the step.
    """
    graph, state = assignment.labels.graph, forward.state
    backward = {v for u in assignment.units if u.backward for v in u.makes}

    def ports(loop: Sequence[int], after: Sequence[int]) -> list[Port]:
        return [*(Port("loop", v, v in backward) for v in loop), *(Port("after", v) for v in after)]

    wanted = _wanted_of_step(assignment, piece)
    inputs = [Port("step", i) for i, v in enumerate(graph.inputs) if v.id in wanted or i >= graph.n_arguments]
    inputs += ports(assignment.received(piece, "loop"), assignment.received(piece, "after"))
    outputs = [Port("step", i) for i, a in enumerate(graph.outputs) if _piece_of_output(assignment, a) == piece]
    outputs += ports(assignment.sent(piece, "loop"), assignment.sent(piece, "after"))
    run = _Run(assignment, piece, inputs, outputs)
    made = from_jaxpr(
        _jax.trace(run.leaves, [_aval(assignment, p) for p in inputs]),
        name=f"{graph.name}, stage {piece}",
        input_names=[_name(graph.input_names, p) for p in inputs],
        output_names=[_name(graph.output_names, p) for p in outputs],
    )
    kept = [i for i, v in enumerate(made.inputs) if made.readers[v.id] or v in made.outputs]
    used = [inputs[i] for i in kept if i < len(inputs)]
    made = renumber(
        replace(
            made,
            inputs=tuple(made.inputs[i] for i in kept),
            input_names=tuple(made.input_names[i] for i in kept),
            constants=tuple(c for i, c in enumerate(made.constants, len(inputs)) if i in kept),
        )
    ).verify()
    at = {p.of: i for i, p in enumerate(used) if p.kind == "step"}
    own = {o: at[state[p.of]] for o, p in enumerate(outputs) if p.kind == "step" and state.get(p.of) in at}
    roles = {i: forward.roles[p.of] if p.kind == "step" else "handed" for i, p in enumerate(used) if p.kind != "loop"}
    given = frozenset(i for i in own.values() if used[i].of in forward.donated)
    return Piece(made, tuple(used), tuple(outputs), own, roles, given)


def _wanted_of_step(assignment: Assignment, piece: int) -> set[int]:
    """Ids of what the units of a piece read, and of what is returned by it; before the loop, too."""
    graph = assignment.labels.graph
    found = {a.id for a in graph.outputs if isinstance(a, Value) and _piece_of_output(assignment, a) == piece}
    found |= {v for u in assignment.units_of(piece) for v in u.reads}
    return found | {v.id for i in assignment.before(piece, found) for v in graph.ops[i].values}


def _piece_of_output(assignment: Assignment, a: Any) -> int:
    return assignment.made_on.get(a.id, 0) if isinstance(a, Value) else 0


def _name(names: Sequence[str], port: Port) -> str:
    return names[port.of] if port.kind == "step" else f"{port.kind} {port.of}"


def _aval(assignment: Assignment, port: Port) -> jax.ShapeDtypeStruct:
    labels = assignment.labels
    v = labels.graph.inputs[port.of] if port.kind == "step" else labels.graph.values[port.of]
    shape = v.shape
    if port.kind == "loop":
        state = labels.states[v.id]
        if isinstance(state, Sliced | Partial):  # else each microbatch makes the same: keys that a loop hands on
            shape = state.spec(v.rank).local_shape(v.shape, {TIME: labels.microbatches})
        shape = (labels.microbatches, *shape)
    return jax.ShapeDtypeStruct(shape, v.aval.dtype, weak_type=v.aval.weak_type)


class _Run:
    """The piece as a function of its inputs."""

    def __init__(self, assignment: Assignment, piece: int, inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
        self.labels, self.inputs, self.outputs = assignment.labels, inputs, outputs
        units = assignment.units_of(piece)
        self.ops = frozenset(u.first for u in units)
        self.sent = [p.of for p in outputs if p.kind == "loop"]
        here = {v for u in units if u.place == "loop" for v in u.makes}
        wanted = {v for u in units if u.place == "after" for v in u.reads} | {
            p.of for p in outputs if p.kind == "after"
        }
        wanted |= {a.id for p in outputs if p.kind == "step" and isinstance(a := self._output(p), Value)}
        self.before = assignment.before(piece, wanted)
        left = sorted(here & wanted)
        self.terms = [v for v in left if not isinstance(self.labels.states[v], Sliced)]
        self.joined = [v for v in left if isinstance(self.labels.states[v], Sliced)]

    def _output(self, port: Port) -> Any:
        return self.labels.graph.outputs[port.of]

    def leaves(self, *arrays: Any) -> list[Any]:
        """The outputs."""
        labels = self.labels
        given = list(zip(self.inputs, arrays, strict=True))
        before = _OutsideHere(labels, "before", self.before)
        before.made.update((labels.graph.inputs[p.of].id, x) for p, x in given if p.kind == "step")
        before.run(0, len(labels.graph.ops))
        received = {p.of: x for p, x in given if p.kind == "loop"}
        sums, (sends, parts) = jax.lax.scan(
            lambda carry, xs: self._body(before.made, carry, *xs),
            tuple(neutral(labels.graph.values[v], labels.states[v]) for v in self.terms),
            (jnp.arange(labels.microbatches, dtype=jnp.int32), received),
        )
        after = _OutsideHere(labels, "after", self.ops, before.made)
        after.made.update((p.of, x) for p, x in given if p.kind == "after")
        after.made.update(zip(self.terms, sums, strict=True))
        after.made.update((v, joined(x, self._sliced(v))) for v, x in zip(self.joined, parts, strict=True))
        after.run(0, len(labels.graph.ops))
        found = {("loop", v): x for v, x in zip(self.sent, sends, strict=True)}
        return [found[p.kind, p.of] if p.kind == "loop" else self._result(after, p) for p in self.outputs]

    def _result(self, after: Outside, port: Port) -> Any:
        if port.kind == "after":
            return after.made[port.of]
        a = self._output(port)
        return scalar(a) if isinstance(a, Literal) else after.read(a)

    def _body(self, whole: Mapping[int, Any], sums: Sequence[Any], at: Any, received: Mapping[int, Any]) -> Any:
        labels = self.labels
        run = _InsideHere(labels, at, self.ops)
        for v, x in whole.items():
            state = labels.states[v]
            run.made[v] = taken(x, state, labels.microbatches, at) if isinstance(state, Sliced) else x
        run.made.update(received)
        run.run(0, len(labels.graph.ops))
        added = tuple(
            join(labels, labels.graph.values[v], s, run.made[v]) for s, v in zip(sums, self.terms, strict=True)
        )
        return added, ([run.made[v] for v in self.sent], [run.made[v] for v in self.joined])

    def _sliced(self, value: int) -> Sliced:
        state = self.labels.states[value]
        assert isinstance(state, Sliced)
        return state


class _InsideHere(Inside):
    """One microbatch on one piece."""

    def __init__(self, labels: Labels, at: Any, ops: frozenset[int]) -> None:
        super().__init__(labels, at)
        self.ops = ops

    def runs(self, op: Op) -> bool:
        """What is assigned to the piece."""
        return op.index in self.ops and super().runs(op)


class _OutsideHere(Outside):
    """What comes before the loop or after it on one piece."""

    def __init__(
        self, labels: Labels, where: Place, ops: frozenset[int], made: Mapping[int, Any] | None = None
    ) -> None:
        super().__init__(labels, where, made)
        self.ops = ops

    def runs(self, op: Op) -> bool:
        """What is assigned to the piece."""
        return op.index in self.ops and super().runs(op)
