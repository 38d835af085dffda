"""Runs a step as a pipeline: the tasks of a schedule in one order, each a program on the devices of its stage.

Every process goes through all tasks in that order and runs those of its own stages. What is sent is put into its wires
where it is made, and got where it is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from autosharding import placing
from autosharding.graph import Graph, Literal
from autosharding.pipeline.channel import Channel, Wire, absent
from autosharding.pipeline.parts import AFTER, BACKWARD, BEFORE, FORWARD, WEIGHT, Key
from autosharding.pipeline.programs import Program, Programs
from autosharding.pipeline.recipe import Recipe, recipe_of
from autosharding.plan import AS_MADE
from autosharding.processes import has_some, in_turn, processes_of
from stage_dp import Kind, Schedule

_PARTS = {Kind.FORWARD: FORWARD, Kind.BACKWARD: BACKWARD, Kind.WEIGHT: WEIGHT}


@dataclass(frozen=True)
class Hand:
    """What is handed on once, after the loop: from the output of a piece to the input of another.

    Attributes:
        piece: that makes it.
        key: what it is there.
        to: the piece that reads it.
        seen: what it is there.
        wire: between them.
    """

    piece: int
    key: Key
    to: int
    seen: Key
    wire: Wire


class Runner:
    """A step cut into pieces, ready to run.

    Args:
        graph: the step.
        pieces: the programs of each piece.
        schedule: which task runs when.
        rounds: id of each value sent after the loop -> the round in which it is made.
        state: result index -> index of the input whose new state it is.
        channel: between stages.
    """

    def __init__(
        self,
        graph: Graph,
        pieces: Sequence[Programs],
        schedule: Schedule,
        rounds: Mapping[int, int],
        state: Mapping[int, int],
        channel: Channel,
    ) -> None:
        self.graph, self.pieces, self.schedule, self.rounds, self.channel = graph, pieces, schedule, rounds, channel
        self.state = state
        self.last = _PARTS[schedule.last_kind]
        self.recipes = self._recipes()
        self._feeds: dict[tuple[int, int, frozenset[Any]], tuple[NamedSharding, Wire]] = {}

    @cached_property
    def tasks(self) -> tuple[tuple[int, int, int], ...]:
        """(piece, part, microbatch) in the schedule's order."""
        order = (t for t in self.schedule.order if t.kind in _PARTS)
        return tuple((self.schedule.piece(t), _PARTS[t.kind], t.microbatch) for t in order)

    def _recipes(self) -> Mapping[tuple[int, int], Recipe]:
        """(piece, part) -> what its tasks do."""
        arrive: dict[tuple[int, int], list[tuple[Key, Wire]]] = {}
        leave: dict[int, list[Wire]] = {}
        for p, part, inside, value, to in self._received():
            wire = self.channel.wire(self._sent[value], to, exact=False)
            arrive.setdefault((p, part), []).append((inside, wire))
            leave.setdefault(value, []).append(wire)
            if wire.lies != to:
                self.pieces[p].arriving.add(inside)
        return {
            (p, part): recipe_of(programs, part, arrive.get((p, part), ()), leave)
            for p, programs in enumerate(self.pieces)
            for part in _PARTS.values()
        }

    def _received(self) -> Iterator[tuple[int, int, Key, int, NamedSharding]]:
        """(piece, part, what the body sees, id of the value sent, how it is wanted)."""
        for p, programs in enumerate(self.pieces):
            for lane in programs.parts.lanes:
                if lane.kind == "received" and lane.inside and lane.port is not None:
                    port = programs.parts.piece.inputs[lane.port]
                    part = BACKWARD if port.backward else FORWARD
                    yield p, part, lane.inside, port.of, programs.received_sharding(lane)

    @cached_property
    def _sent(self) -> Mapping[int, jax.ShapeDtypeStruct]:
        """Id of each value that is sent in the loop -> what is sent."""
        return {
            programs.parts.piece.outputs[lane.port].of: programs.sent(lane.leaves)
            for programs in self.pieces
            for lane in programs.parts.lanes
            if lane.kind == "sent" and lane.port is not None and lane.leaves is not None
        }

    @cached_property
    def hands(self) -> Mapping[int, Sequence[Hand]]:
        """Round after the loop -> what is handed on at its end."""
        found: dict[int, list[Hand]] = {}
        made = {
            port.of: (p, o)
            for p, programs in enumerate(self.pieces)
            for o, port in enumerate(programs.parts.piece.outputs)
            if port.kind == "after"
        }
        for to, programs in enumerate(self.pieces):
            for i, port in enumerate(programs.parts.piece.inputs):
                if port.kind == "after":
                    p, o = made[port.of]
                    wire = self.channel.wire(self.pieces[p].output(o), programs.input_sharding(i), lent=True)
                    seen = programs.parts.graph.inputs[i].id, AS_MADE
                    hand = Hand(p, self.pieces[p].parts.output_key(o), to, seen, wire)
                    found.setdefault(self.rounds[port.of], []).append(hand)
        return found

    @cached_property
    def n_rounds(self) -> int:
        """Programs after the loop, one after another."""
        return max(p.parts.n_parts for p in self.pieces) - AFTER

    @cached_property
    def readers(self) -> tuple[tuple[tuple[int, Key, NamedSharding], ...], ...]:
        """For each input of the step (piece, what it is there, how it lies) of those that read it."""
        found: list[list[tuple[int, Key, NamedSharding]]] = [[] for _ in self.graph.inputs]
        for p, programs in enumerate(self.pieces):
            for i, port in enumerate(programs.parts.piece.inputs):
                if port.kind == "step":
                    key = programs.parts.graph.inputs[i].id, AS_MADE
                    found[port.of].append((p, key, programs.input_sharding(i)))
        return tuple(map(tuple, found))

    @cached_property
    def makers(self) -> Mapping[int, tuple[int, int]]:
        """Result of the step -> (piece, its output)."""
        return {
            port.of: (p, o)
            for p, programs in enumerate(self.pieces)
            for o, port in enumerate(programs.parts.piece.outputs)
            if port.kind == "step"
        }

    @cached_property
    def absent(self) -> Mapping[int, Any]:
        """Result of the step -> what stands for it, where it is on devices of which this process has none."""
        found = {}
        for i, (p, o) in self.makers.items():
            if not self.pieces[p].here and not isinstance(self.graph.outputs[i], Literal):
                like = self.pieces[p].output(o)
                assert isinstance(like.sharding, NamedSharding)
                found[i] = absent(like, like.sharding)
        return found

    @cached_property
    def told(self) -> Mapping[int, Wire]:
        """Result of the step -> the wire that brings it to all devices: scalars that are no state, for all to read."""
        devices = list(dict.fromkeys(d for programs in self.pieces for d in programs.mesh.devices.flat))
        if len(processes_of(devices)) == 1:
            return {}
        mesh = Mesh(np.array(devices), ("device",), axis_types=(AxisType.Auto,))
        everywhere = NamedSharding(mesh, PartitionSpec())
        return {
            i: self.channel.wire(self.pieces[p].output(o), everywhere)
            for i, (p, o) in sorted(self.makers.items())
            if not isinstance(a := self.graph.outputs[i], Literal) and not a.shape and i not in self.state
        }

    @cached_property
    def stages(self) -> frozenset[frozenset[Any]]:
        """The devices of each stage."""
        return frozenset(frozenset(p.mesh.devices.flat) for p in self.pieces)

    @cached_property
    def numbers(self) -> tuple[tuple[Any, ...], ...]:
        """For each piece the microbatches' numbers on its devices."""
        count = range(self.schedule.n_microbatches)
        return tuple(
            tuple(placing.placed(np.int32(m), NamedSharding(p.mesh, PartitionSpec())) for m in count) if p.here else ()
            for p in self.pieces
        )

    def feed(self, k: int, x: Any, piece: int, want: NamedSharding) -> Any:
        """An argument or constant as a piece wants it; None where that is not here.

        What lies on the devices of another stage is sent from there, all else is at hand.
        """
        has, here = getattr(x, "sharding", None), self.pieces[piece].here
        if has == want:
            return x if here else None
        if isinstance(has, NamedSharding) and has.device_set != want.device_set and has.device_set in self.stages:
            leaves, wire = self._feed(k, x, piece, want)
            bring = in_turn(placing.brought, has.device_set)
            wire.put(bring(x, leaves) if has_some(has.device_set) else None)
            return wire.get() if here else None
        return placing.placed(x, want) if here else None

    def _feed(self, k: int, x: Any, piece: int, want: NamedSharding) -> tuple[NamedSharding, Wire]:
        """(how it leaves, the wire) for an argument on another stage: the same wire, however it lies there."""
        devices = frozenset(x.sharding.device_set)
        if (k, piece, devices) not in self._feeds:
            read = (s for _, _, s in self.readers[k] if s.device_set == devices)
            stage = next(p.mesh for p in self.pieces if frozenset(p.mesh.devices.flat) == devices)
            leaves = next(read, NamedSharding(stage, PartitionSpec()))
            came = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=leaves)
            self._feeds[k, piece, devices] = leaves, self.channel.wire(came, want, lent=True)
        return self._feeds[k, piece, devices]

    def __call__(self, arrays: Sequence[Any]) -> list[Any]:
        """The results, given the arguments' arrays and the constants."""
        return StepRun(self, arrays).results()


Start = Callable[[Programs, Program, Sequence[Any]], Sequence[Any]]


def _plainly(_: Programs, program: Program, operands: Sequence[Any]) -> Sequence[Any]:
    return program.run(*operands)


class StepRun:
    """One call of the step.

    Args:
        runner: of the step.
        arrays: its arguments and constants.
        start: how a program is started: (the programs of its piece, the program, its operands) -> its results.
    """

    def __init__(self, runner: Runner, arrays: Sequence[Any], start: Start = _plainly) -> None:
        self.runner = runner
        self.there = [Held(p, dict(p.constants) if p.here else {}, start) for p in runner.pieces]
        for k, x in enumerate(arrays):
            for piece, key, want in runner.readers[k]:
                self.there[piece].kept[key] = runner.feed(k, x, piece, want)

    @property
    def here(self) -> list[Held]:
        """The pieces that this process runs."""
        return [held for held in self.there if held.programs.here]

    def results(self) -> list[Any]:
        """Run all tasks."""
        runner = self.runner
        for held in self.here:
            held.run(BEFORE)
            held.kept.update((inside, held.kept[key]) for inside, key in held.programs.parts.same.items())
        for task in runner.tasks:
            self.task(*task)
        for held in self.here:
            held.close()
        for r in range(runner.n_rounds):
            for held in self.here:
                held.run(AFTER + r)
            for hand in runner.hands.get(r, ()):
                self._hand_on(hand)
        return [self._result(i, a) for i, a in enumerate(runner.graph.outputs)]

    def task(self, piece: int, part: int, microbatch: int) -> None:
        """Start one."""
        runner, held = self.runner, self.there[piece]
        recipe = runner.recipes[piece, part]
        if not held.programs.here:
            for _, wires in recipe.sends:
                for wire in wires:
                    wire.put(None)
            return
        own = held.by_microbatch.setdefault(microbatch, {})
        for key, wire in recipe.receives:
            own[key] = wire.get()
        for key in recipe.counters:
            own[key] = runner.numbers[piece][microbatch]
        held.run_one(part, recipe, own)
        for key, wires in recipe.sends:
            for wire in wires:
                wire.put(own[key])
        for key in recipe.done:
            own.pop(key, None)
        if part == runner.last:
            held.drop(microbatch)

    def _hand_on(self, hand: Hand) -> None:
        """What was known after a round, to one that reads it in a later one."""
        made, reads = self.there[hand.piece], self.there[hand.to]
        hand.wire.put(made.kept[hand.key] if made.programs.here else None)
        if reads.programs.here:
            reads.kept[hand.seen] = hand.wire.get()

    def _result(self, i: int, a: Any) -> Any:
        runner = self.runner
        if isinstance(a, Literal):
            return jnp.asarray(a.value, a.aval.dtype)
        piece, o = runner.makers[i]
        held = self.there[piece]
        x = held.kept[held.programs.parts.output_key(o)] if held.programs.here else None
        if (wire := runner.told.get(i)) is not None:
            wire.put(x)
            return wire.get()
        return runner.absent[i] if x is None else x


class Held:
    """What one piece has at hand."""

    def __init__(self, programs: Programs, inputs: dict[Key, Any], start: Start) -> None:
        self.programs = programs
        self.start = start
        self.kept = inputs
        self.by_microbatch: dict[int, dict[Key, Any]] = {}
        self.stacks: dict[Key, list[Any]] = {}

    def run(self, part: int) -> None:
        """Run what comes before or after the microbatches, if there is anything."""
        program = self.programs.by_part.get(part)
        if program is not None:
            results = self.start(self.programs, program, [self.kept[k] for k in program.takes])
            self.kept.update(zip(program.gives, results, strict=True))

    def run_one(self, part: int, recipe: Recipe, own: dict[Key, Any]) -> None:
        """Run a microbatch's program on what is the piece's and what is the microbatch's own."""
        program = self.programs.by_part.get(part)
        if program is None:
            return
        kept = self.kept
        results = self.start(self.programs, program, [own[k] if k in own else kept[k] for k in program.takes])
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
