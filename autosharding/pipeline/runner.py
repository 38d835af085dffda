"""Runs a step as a pipeline: the tasks of a schedule in one order, each a program on the devices of its stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from autosharding import placing
from autosharding.graph import Graph, Literal
from autosharding.pipeline.channel import Channel
from autosharding.pipeline.parts import AFTER, BACKWARD, BEFORE, FORWARD, Key, Lane
from autosharding.pipeline.programs import Programs
from autosharding.plan import AS_MADE
from stage_dp import Kind, Schedule

_PARTS = {Kind.FORWARD: FORWARD, Kind.BACKWARD: BACKWARD}


class Runner:
    """A step cut into pieces, ready to run.

    Args:
        graph: the step.
        pieces: the programs of each piece.
        schedule: which task runs when.
        rounds: id of each value sent after the loop -> the round in which it is made.
        channel: between stages.
    """

    def __init__(
        self, graph: Graph, pieces: Sequence[Programs], schedule: Schedule, rounds: Mapping[int, int], channel: Channel
    ) -> None:
        self.graph, self.pieces, self.schedule, self.rounds, self.channel = graph, pieces, schedule, rounds, channel

    def __call__(self, arrays: Sequence[Any]) -> list[Any]:
        """The results, given the arguments' arrays and the constants."""
        return _Step(self, arrays).results()


class _Step:
    """One call of the step."""

    def __init__(self, runner: Runner, arrays: Sequence[Any]) -> None:
        self.runner = runner
        self.there = [Held(p, self._placed(p, arrays)) for p in runner.pieces]
        self.sent: dict[tuple[int, int], Any] = {}  # (value, microbatch) -> the array where it was made

    def _placed(self, programs: Programs, arrays: Sequence[Any]) -> dict[Key, Any]:
        ports = programs.parts.piece.inputs
        given = list(arrays) + list(programs.parts.graph.constants)
        at = [p.of if p.kind == "step" else None for p in ports]
        at += [len(arrays) + k for k in range(len(programs.parts.graph.constants))]
        return {
            (v.id, AS_MADE): placing.placed(given[k], programs.input_sharding(i))
            for i, (v, k) in enumerate(zip(programs.parts.graph.inputs, at, strict=True))
            if k is not None
        }

    def results(self) -> list[Any]:
        """Run all tasks."""
        for held in self.there:
            held.run(BEFORE)
        schedule = self.runner.schedule
        for task in schedule.order:
            if task.kind in _PARTS:
                self._task(schedule.piece(task), _PARTS[task.kind], task.microbatch)
        for held in self.there:
            held.close(schedule.n_microbatches)
        for r in range(max(p.parts.n_parts for p in self.runner.pieces) - AFTER):
            if r:
                self._hand_on(r - 1)
            for held in self.there:
                held.run(AFTER + r)
        return [self._result(i, a) for i, a in enumerate(self.runner.graph.outputs)]

    def _task(self, piece: int, part: int, microbatch: int) -> None:
        held = self.there[piece]
        ports = held.programs.parts.piece.inputs
        for lane in held.programs.parts.lanes:
            if lane.kind == "received" and lane.inside and ports[lane.port or 0].backward == (part == BACKWARD):
                x = self.sent[ports[lane.port or 0].of, microbatch]
                held.at(microbatch)[lane.inside] = self.runner.channel.send(x, held.programs.received_sharding(lane))
            elif lane.kind == "counter" and lane.inside:
                held.at(microbatch)[lane.inside] = held.number(microbatch)
        held.run(part, microbatch)
        for lane in held.programs.parts.lanes:
            if lane.kind == "sent" and lane.leaves in held.made_by(part):
                port = held.programs.parts.piece.outputs[lane.port or 0]
                self.sent[port.of, microbatch] = held.at(microbatch)[lane.leaves]
        if part == BACKWARD:
            held.drop(microbatch)

    def _hand_on(self, done: int) -> None:
        """What was known after a round, to those that read it in the next."""
        made = {}
        for held in self.there:
            for o, port in enumerate(held.programs.parts.piece.outputs):
                if port.kind == "after" and self.runner.rounds[port.of] == done:
                    made[port.of] = held.value(held.programs.parts.output_key(o))
        for held in self.there:
            for i, port in enumerate(held.programs.parts.piece.inputs):
                if port.kind == "after" and port.of in made:
                    key = held.programs.parts.graph.inputs[i].id, AS_MADE
                    held.kept[key] = self.runner.channel.send(made[port.of], held.programs.input_sharding(i))

    def _result(self, i: int, a: Any) -> Any:
        for held in self.there:
            for o, port in enumerate(held.programs.parts.piece.outputs):
                if port.kind == "step" and port.of == i:
                    atom = held.programs.parts.graph.outputs[o]
                    if isinstance(atom, Literal):
                        return jnp.asarray(atom.value, atom.aval.dtype)
                    return held.value(held.programs.parts.output_key(o))
        raise AssertionError(f"no piece makes result {i}")


class Held:
    """What one piece has at hand."""

    def __init__(self, programs: Programs, inputs: dict[Key, Any]) -> None:
        self.programs = programs
        self.kept = inputs
        self.by_microbatch: dict[int, dict[Key, Any]] = {}
        self.stacks: dict[Key, list[Any]] = {}

    def at(self, microbatch: int) -> dict[Key, Any]:
        """What belongs to a microbatch."""
        return self.by_microbatch.setdefault(microbatch, {})

    def number(self, microbatch: int) -> Any:
        """The microbatch's number on the devices."""
        return jax.device_put(jnp.int32(microbatch), NamedSharding(self.programs.mesh, PartitionSpec()))

    def made_by(self, part: int) -> tuple[Key, ...]:
        """What the program of a part gives."""
        program = self.programs.by_part.get(part)
        return () if program is None else program.gives

    def value(self, key: Key) -> Any:
        """An array that belongs to no microbatch."""
        return self.kept[key]

    def run(self, part: int, microbatch: int | None = None) -> None:
        """Run a program, if there is one."""
        program = self.programs.by_part.get(part)
        if program is None:
            return
        own = {} if microbatch is None else self.at(microbatch)
        results = program.run(*(own[k] if k in own else self.kept[k] for k in program.takes))
        sums = {lane.leaves: lane.inside for lane in self.programs.parts.lanes if lane.kind == "sum"}
        for key, x in zip(program.gives, results, strict=True):
            if microbatch is None:
                self.kept[key] = x
            elif (inside := sums.get(key)) is not None:
                self.kept[inside] = x
            else:
                own[key] = x
        for lane in self.programs.parts.lanes:
            if microbatch is not None and lane.kind == "stacked" and lane.leaves in program.gives:
                self.stacks.setdefault(lane.leaves, []).append((microbatch, own[lane.leaves]))

    def drop(self, microbatch: int) -> None:
        """Let go of what belongs to a microbatch."""
        del self.by_microbatch[microbatch]

    def close(self, microbatches: int) -> None:
        """What the loop leaves."""
        for lane in self.programs.parts.lanes:
            if lane.outside is None:
                continue
            if lane.kind == "sum" and lane.inside is not None:
                self.kept[lane.outside] = self.kept[lane.inside]
            elif lane.kind == "stacked" and lane.leaves in self.stacks:
                parts = [x for _, x in sorted(self.stacks[lane.leaves], key=lambda t: t[0])]
                self.kept[lane.outside] = self._stacked(lane, parts)

    def _stacked(self, lane: Lane, parts: Sequence[Any]) -> Any:
        assert lane.outside is not None
        sharding = NamedSharding(self.programs.mesh, self.programs.outside_spec(lane.outside))
        axis = 1 if self.programs.parts.spec(lane.outside).partial else 0  # terms lie along the first
        return jax.jit(lambda *xs: jnp.stack(xs, axis), out_shardings=sharding)(*parts)
