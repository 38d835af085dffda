"""Runs a step as a pipeline: the tasks of a schedule in one order, each a program on the devices of its stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from autosharding import placing
from autosharding.graph import Graph, Literal
from autosharding.pipeline.channel import Channel
from autosharding.pipeline.parts import AFTER, BACKWARD, BEFORE, FORWARD, WEIGHT, Key
from autosharding.pipeline.programs import Programs
from autosharding.plan import AS_MADE
from stage_dp import Kind, Schedule

_PARTS = {Kind.FORWARD: FORWARD, Kind.BACKWARD: BACKWARD, Kind.WEIGHT: WEIGHT}


@dataclass(frozen=True)
class Recipe:
    """What a task of a piece does, beside its program.

    Attributes:
        receives: (what the body sees, id of the value sent, how it lies here).
        counters: what the body sees of the microbatch's number.
        sends: (what the program gives, id of the value).
        sums: what the program gives -> the sum that it is now.
        stacks: what the program gives that is put together after the loop.
    """

    receives: tuple[tuple[Key, int, NamedSharding], ...]
    counters: tuple[Key, ...]
    sends: tuple[tuple[Key, int], ...]
    sums: Mapping[Key, Key]
    stacks: tuple[Key, ...]


def _recipe(programs: Programs, part: int) -> Recipe:
    parts, program = programs.parts, programs.by_part.get(part)
    ports, gives = parts.piece, set(program.gives if program is not None else ())
    receives, counters, sends, sums, stacks = [], [], [], {}, []
    for lane in parts.lanes:
        if lane.kind == "received" and lane.inside and lane.port is not None:
            port = ports.inputs[lane.port]
            if part == (BACKWARD if port.backward else FORWARD):
                receives.append((lane.inside, port.of, programs.received_sharding(lane)))
        elif lane.kind == "counter" and lane.inside:
            counters.append(lane.inside)
        elif lane.leaves in gives and lane.leaves is not None:
            if lane.kind == "sent" and lane.port is not None:
                sends.append((lane.leaves, ports.outputs[lane.port].of))
            elif lane.kind == "sum" and lane.inside:
                sums[lane.leaves] = lane.inside
            elif lane.kind == "stacked":
                stacks.append(lane.leaves)
    return Recipe(tuple(receives), tuple(counters), tuple(sends), sums, tuple(stacks))


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
        self.last = _PARTS[schedule.last_kind]

    @cached_property
    def tasks(self) -> tuple[tuple[int, int, int], ...]:
        """(piece, part, microbatch) in the schedule's order."""
        order = (t for t in self.schedule.order if t.kind in _PARTS)
        return tuple((self.schedule.piece(t), _PARTS[t.kind], t.microbatch) for t in order)

    @cached_property
    def recipes(self) -> Mapping[tuple[int, int], Recipe]:
        """(piece, part) -> what its tasks do."""
        pieces = enumerate(self.pieces)
        return {(p, part): _recipe(programs, part) for p, programs in pieces for part in _PARTS.values()}

    @cached_property
    def receivers(self) -> Mapping[int, int]:
        """Id of a value that is sent in the loop -> how many pieces receive it."""
        return Counter(value for recipe in self.recipes.values() for _, value, _ in recipe.receives)

    @cached_property
    def numbers(self) -> tuple[tuple[Any, ...], ...]:
        """For each piece the microbatches' numbers on its devices."""
        shardings = [NamedSharding(programs.mesh, PartitionSpec()) for programs in self.pieces]
        count = range(self.schedule.n_microbatches)
        return tuple(tuple(jax.device_put(np.int32(m), s) for m in count) for s in shardings)

    def __call__(self, arrays: Sequence[Any]) -> list[Any]:
        """The results, given the arguments' arrays and the constants."""
        return StepRun(self, arrays).results()


class StepRun:
    """One call of the step."""

    def __init__(self, runner: Runner, arrays: Sequence[Any]) -> None:
        self.runner = runner
        self.there = [Held(p, self._placed(p, arrays)) for p in runner.pieces]
        self.sent: dict[tuple[int, int], list[Any]] = {}  # (value, microbatch) -> the array, once for each receiver

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
        for task in self.runner.tasks:
            self.task(*task)
        for held in self.there:
            held.close()
        for r in range(max(p.parts.n_parts for p in self.runner.pieces) - AFTER):
            if r:
                self._hand_on(r - 1)
            for held in self.there:
                held.run(AFTER + r)
        return [self._result(i, a) for i, a in enumerate(self.runner.graph.outputs)]

    def task(self, piece: int, part: int, microbatch: int) -> None:
        """Start one."""
        runner, held = self.runner, self.there[piece]
        recipe = runner.recipes[piece, part]
        own = held.by_microbatch.setdefault(microbatch, {})
        for key, value, sharding in recipe.receives:
            own[key] = runner.channel.send(self.sent[value, microbatch].pop(), sharding)
        for key in recipe.counters:
            own[key] = runner.numbers[piece][microbatch]
        held.run_one(part, recipe, own)
        for key, value in recipe.sends:
            self.sent[value, microbatch] = [own[key]] * runner.receivers[value]
        if part == runner.last:
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

    def value(self, key: Key) -> Any:
        """An array that belongs to no microbatch."""
        return self.kept[key]

    def run(self, part: int) -> None:
        """Run what comes before or after the microbatches, if there is anything."""
        program = self.programs.by_part.get(part)
        if program is not None:
            self.kept.update(zip(program.gives, program.run(*(self.kept[k] for k in program.takes)), strict=True))

    def run_one(self, part: int, recipe: Recipe, own: dict[Key, Any]) -> None:
        """Run a microbatch's program on what is the piece's and what is the microbatch's own."""
        program = self.programs.by_part.get(part)
        if program is None:
            return
        kept = self.kept
        results = program.run(*[own[k] if k in own else kept[k] for k in program.takes])
        for key, x in zip(program.gives, results, strict=True):
            if key in recipe.sums:
                kept[recipe.sums[key]] = x
            else:
                own[key] = x
        for key in recipe.stacks:
            self.stacks.setdefault(key, []).append(own[key])

    def drop(self, microbatch: int) -> None:
        """Let go of what belongs to a microbatch."""
        del self.by_microbatch[microbatch]

    def close(self) -> None:
        """What the loop leaves."""
        for lane in self.programs.parts.lanes:
            if lane.outside is None:
                continue
            if lane.kind == "sum" and lane.inside is not None:
                self.kept[lane.outside] = self.kept[lane.inside]
            elif lane.kind == "stacked" and lane.leaves in self.stacks:
                self.kept[lane.outside] = self.programs.stack(lane.outside)(*self.stacks[lane.leaves])
