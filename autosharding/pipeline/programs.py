"""The programs of a planned piece on its devices: for each part a jitted function of what it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from autosharding import placing
from autosharding.executor import PlanRun
from autosharding.graph import Op
from autosharding.partition import partition_spec
from autosharding.pipeline.parts import AFTER, BEFORE, Flow, Key, Lane, Parts
from autosharding.plan import AS_MADE
from autosharding.processes import has_some, in_turn
from autosharding.reshard import Move, SpecSpace, apply
from autosharding.rules import rules_of


@dataclass(frozen=True)
class Program:
    """A jitted program of a piece.

    Attributes:
        takes: what it reads, in the order of its arguments.
        gives: what it makes for others, in the order of its results.
        run: arrays -> arrays.
    """

    takes: tuple[Key, ...]
    gives: tuple[Key, ...]
    run: Any


class Programs:
    """The programs of one piece.

    Args:
        parts: what each of them does.
        mesh: the devices, with the axes of the plan.

    Attributes:
        arriving: what is received for a microbatch in another split than wanted. The first program that reads it brings
            it there and, if others do too, gives it to them.
    """

    def __init__(self, parts: Parts, mesh: Mesh) -> None:
        self.parts, self.mesh = parts, mesh
        self.arriving: set[Key] = set()
        self.rules = rules_of(parts.graph)
        self._stacks: dict[Key, Any] = {}

    @cached_property
    def by_part(self) -> Mapping[int, Program]:
        """Part -> its program, of the parts that do something."""
        return {part: self._program(part, flow) for part, flow in self.parts.flows.items()}

    @cached_property
    def here(self) -> bool:
        """Whether this process runs them: it has some of the devices."""
        return has_some(self.mesh.devices.flat)

    @cached_property
    def constants(self) -> Mapping[Key, Any]:
        """What the piece closed over, placed."""
        graph, n = self.parts.graph, len(self.parts.piece.inputs)
        return {
            (graph.inputs[i].id, AS_MADE): placing.placed(c, self.input_sharding(i))
            for i, c in enumerate(graph.constants, n)
        }

    def input_sharding(self, i: int) -> NamedSharding:
        """How an input of the piece lies."""
        return NamedSharding(self.mesh, partition_spec(self.parts.plan.inputs[i].spec))

    def received_sharding(self, lane: Lane) -> NamedSharding:
        """How what is received for a microbatch lies."""
        assert lane.inside is not None
        return NamedSharding(self.mesh, self.outside_spec(lane.inside))

    def sent(self, key: Key) -> jax.ShapeDtypeStruct:
        """What is sent of a microbatch, and how it lies: never partial."""
        v = self.parts.graph.values[key[0]]
        spec = partition_spec(self.parts.spec(key).whole())
        return jax.ShapeDtypeStruct(v.shape, v.aval.dtype, sharding=NamedSharding(self.mesh, spec))

    def output(self, o: int) -> jax.ShapeDtypeStruct:
        """An output of the piece that is not sent in the loop, and how it lies."""
        v = self.parts.graph.outputs[o]
        spec = self.outside_spec(self.parts.output_key(o))
        return jax.ShapeDtypeStruct(v.shape, v.aval.dtype, sharding=NamedSharding(self.mesh, spec))

    def stack(self, key: Key) -> Any:
        """Puts together what the microbatches made of a value, in their order."""
        if key not in self._stacks:
            sharding = NamedSharding(self.mesh, self.outside_spec(key))
            axis = 1 if self.parts.spec(key).partial else 0  # terms lie along the first
            stacked = jax.jit(lambda *xs: jnp.stack(xs, axis), out_shardings=sharding)
            self._stacks[key] = in_turn(stacked, self.mesh.devices.flat)
        return self._stacks[key]

    def _program(self, part: int, flow: Flow) -> Program:
        parts, (takes, gives) = self.parts, flow
        sends = {lane.leaves: self._sent_moves(lane) for lane in parts.lanes if lane.kind == "sent" and lane.leaves}

        def local(*arrays: Any) -> tuple[Any, ...]:
            run = _Part(self, part)
            run.put({k: self._opened(k, x) for k, x in zip(takes, arrays, strict=True)})
            for first, end in parts.ranges(part):
                run.run(first, end)
            return tuple(self._closed(k, _moved(run.get(k), sends.get(k, ()), parts.plan.mesh), sends) for k in gives)

        mapped = jax.shard_map(
            local,
            mesh=self.mesh,
            in_specs=tuple(map(self.outside_spec, takes)),
            out_specs=tuple(self._given_spec(k, sends) for k in gives),
            check_vma=False,
        )
        kept = {lane.inside for lane in parts.lanes if lane.kind == "sum" and lane.leaves in gives}
        kept |= self._last_taken.get(part, set())
        donated = tuple(i for i, k in enumerate(takes) if k in kept)
        passed = self._passed_on(part, takes)

        def run(*arrays: Any) -> tuple[Any, ...]:
            there = list(arrays)
            for i in passed:
                lies = NamedSharding(self.mesh, self.outside_spec(takes[i]))
                there[i] = jax.lax.with_sharding_constraint(there[i], lies)
            return (*mapped(*there), *(there[i] for i in passed))

        jitted = jax.jit(run, donate_argnums=donated)
        return Program(takes, (*gives, *(takes[i] for i in passed)), in_turn(jitted, self.mesh.devices.flat))

    def _passed_on(self, part: int, takes: Sequence[Key]) -> list[int]:
        """Which of the keys that a part takes are brought into their split by it, for later parts too."""
        flows = self.parts.flows
        here = [i for i, k in enumerate(takes) if k in self.arriving]
        before = {k for p, flow in flows.items() if p < part for k in flow.takes}
        after = {k for p, flow in flows.items() if p > part for k in flow.takes}
        return [i for i in here if takes[i] in after - before]

    @cached_property
    def _last_taken(self) -> Mapping[int, set[Key]]:
        """Part -> the donated inputs that it is the last to take."""
        donated = {(self.parts.graph.inputs[i].id, AS_MADE) for i in self.parts.piece.donated}
        last = {k: part for part, flow in self.parts.flows.items() for k in flow.takes if k in donated}
        found: dict[int, set[Key]] = {}
        for key, part in last.items():
            if part >= AFTER and key not in self._returned:
                found.setdefault(part, set()).add(key)
        return found

    @cached_property
    def _returned(self) -> set[Key]:
        """Results that no part makes: they are inputs as they came."""
        return {self.parts.output_key(o) for o, p in enumerate(self.parts.piece.outputs) if p.kind != "loop"}

    def _sent_moves(self, lane: Lane) -> tuple[Move, ...]:
        """From the spec that a microbatch's array has to the one in which it is sent: never partial."""
        assert lane.leaves is not None
        spec = self.parts.spec(lane.leaves)
        if not spec.partial:
            return ()
        v = self.parts.graph.values[lane.leaves[0]]
        space = SpecSpace(v.shape, v.itemsize, spec.monoid, self.parts.plan.topology)
        return space.path(spec, spec.whole())

    def outside_spec(self, key: Key) -> PartitionSpec:
        """Of the array between two programs: the terms of a partial value along a dim more."""
        spec = self.parts.spec(key)
        inner = partition_spec(spec.whole())
        return PartitionSpec(spec.partial, *inner) if spec.partial else inner

    def _given_spec(self, key: Key, sends: Mapping[Key, Sequence[Move]]) -> PartitionSpec:
        return partition_spec(self.parts.spec(key).whole()) if sends.get(key) else self.outside_spec(key)

    def _opened(self, key: Key, x: Any) -> Any:
        return x[0] if self.parts.spec(key).partial else x

    def _closed(self, key: Key, x: Any, sends: Mapping[Key, Sequence[Move]]) -> Any:
        return x[None] if self.parts.spec(key).partial and not sends.get(key) else x


def _moved(x: Any, moves: Sequence[Move], mesh: Mapping[str, int]) -> Any:
    for move in moves:
        x = apply(move, x, mesh)
    return x


class _Part(PlanRun):
    """One trace of a part of the plan on one device."""

    def __init__(self, programs: Programs, part: int) -> None:
        super().__init__(programs.parts.graph, programs.parts.plan, programs.rules)
        self.parts, self.part = programs.parts, part

    def runs(self, op: Op) -> bool:
        """What belongs to the part."""
        mine = self.parts.part_of.get(op.index) == self.part or op.index in self.parts.again.get(self.part, ())
        return mine and super().runs(op)

    def put(self, arrays: Mapping[Key, Any]) -> None:
        """What other parts have made."""
        self.made.update((v, x) for (v, copy), x in arrays.items() if copy == AS_MADE)
        self.copies.update((copy, x) for (_, copy), x in arrays.items() if copy != AS_MADE)

    def get(self, key: Key) -> Any:
        """What this part has made."""
        enters = self.parts.entering(key) if self.part == BEFORE else None
        if enters is not None:
            return self.read(*enters, None)
        return self.read(self.graph.values[key[0]], key[1], self.parts.spec(key), None)
