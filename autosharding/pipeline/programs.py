"""The programs of a planned piece: before the microbatches, forward, backward, and rounds after them.

All run the one plan of the piece, each some of its ops; what one leaves to another stays as the plan has it, partial
sums and resharded copies included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from autosharding import graph as region
from autosharding.executor import PlanRun
from autosharding.graph import Atom, Graph, Op, Value
from autosharding.partition import partition_spec
from autosharding.pipeline.piece import Piece, Port
from autosharding.plan import AS_MADE, Plan
from autosharding.reshard import Move, SpecSpace, apply
from autosharding.rules import rules_of
from autosharding.spec import Spec

Key = tuple[int, int]
"""(value id, copy or `AS_MADE`)."""

BEFORE, FORWARD, BACKWARD, AFTER = range(4)
"""The parts of a piece in the order they run; round r after the loop is `AFTER + r`."""

GIVEN = -1
"""What no part makes: inputs, and what the loop's borders make."""


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


@dataclass(frozen=True, slots=True)
class Lane:
    """What crosses the borders of the loop over microbatches.

    Attributes:
        kind: "constant", "sum", "received", "counter", "sent" or "stacked".
        inside: what the body sees; None for what it only makes.
        enters: what the opening border reads, and how: (atom, copy, spec).
        leaves: what the closing border reads.
        outside: what the closing border makes.
        port: of what is received or sent.
    """

    kind: str
    inside: Key | None
    enters: tuple[Atom, int, Spec] | None
    leaves: Key | None
    outside: Key | None
    port: int | None = None


class Programs:
    """The programs of one piece on its devices.

    Args:
        piece: the piece.
        plan: its plan.
        mesh: its devices, with the axes of the plan.
        rounds: id of each value sent after the loop -> the round in which it is made.
    """

    def __init__(self, piece: Piece, plan: Plan, mesh: Mesh, rounds: Mapping[int, int]) -> None:
        self.piece, self.graph, self.plan, self.mesh = piece, piece.graph, plan, mesh
        self.rules = rules_of(piece.graph)
        self.opening = _main_loop(piece.graph)
        self.closing = piece.graph.borders[self.opening][-1]
        self.lanes = self._lanes()
        self.part_of = self._parts(rounds)
        self.n_parts = max(AFTER, *self.part_of.values()) + 1
        self.readers = self._readers()

    @cached_property
    def programs(self) -> Mapping[int, Program]:
        """Part -> its program, of the parts that do something."""
        wanted: dict[int, list[Key]] = {part: [] for part in range(self.n_parts)}
        wanted[BEFORE] = [lane.inside for lane in self.lanes if lane.kind in ("constant", "sum") and lane.inside]
        for key in self._wanted_outside():
            self._want(key, wanted)
        found = {}
        for part in sorted(wanted, reverse=True):
            takes = self._takes(part, wanted[part])
            for key in takes:
                self._want(key, wanted)
            if self._ops_of(part) or wanted[part]:
                found[part] = self._program(part, takes, tuple(dict.fromkeys(wanted[part])))
        return dict(sorted(found.items()))

    def input_sharding(self, i: int) -> NamedSharding:
        """How an input of the piece lies."""
        return NamedSharding(self.mesh, partition_spec(self.plan.inputs[i].spec))

    def received_sharding(self, lane: Lane) -> NamedSharding:
        """How what is received for a microbatch lies."""
        assert lane.inside is not None
        return NamedSharding(self.mesh, self.outside_spec(lane.inside))

    def output_key(self, o: int) -> Key:
        """What an output of the piece is, of those that are not sent in the loop."""
        return _id(self.graph.outputs[o]), self.plan.outputs[o].read

    # ---- which op runs in which part -------------------------------------------------------------------------

    def _parts(self, rounds: Mapping[int, int]) -> dict[int, int]:
        """Op index -> its part; the ops of a region have one."""
        graph = self.graph
        ports = self.piece.inputs
        back = {lane.inside[0] for lane in self.lanes if lane.inside and _is_backward(ports, lane)}
        late = {graph.inputs[i].id: rounds[p.of] + 1 for i, p in enumerate(ports) if p.kind == "after"}
        found: dict[int, int] = {}
        for first, last in _spans(graph, self.opening):
            ops = graph.ops[first : last + 1]
            read = {v.id for op in ops for v in op.values}
            if first < self.opening:
                part = BEFORE
            elif first < self.closing:
                part = BACKWARD if ops[0].phase == "backward" or read & back else FORWARD
                if part == BACKWARD:
                    back.update(v.id for op in ops for v in op.outputs)
            else:
                at = max((late.get(i, 0) for i in read), default=0)
                late.update((v.id, at) for op in ops for v in op.outputs)
                part = AFTER + at
            found.update((op.index, part) for op in ops)
        return found

    def _ops_of(self, part: int) -> list[Op]:
        return [op for op in self.graph.ops if self.part_of.get(op.index) == part]

    def _readers(self) -> dict[Key, int]:
        """For each copy the first part that reads it."""
        found: dict[Key, int] = {}
        for op in self.graph.ops:
            for key in self._reads(op):
                if op.index in self.part_of:
                    found[key] = min(found.get(key, self.part_of[op.index]), self.part_of[op.index])
        return found

    def _reads(self, op: Op) -> list[Key]:
        step = self.plan.steps[op.index]
        pairs = zip(op.inputs, step.reads, strict=True)
        return [(a.id, r) for a, r in pairs if isinstance(a, Value) and not self.graph.is_free(a)]

    def _home(self, key: Key) -> int:
        """The part that makes it."""
        value, copy = key
        if copy == AS_MADE:
            op = self.graph.producer[value]
            return GIVEN if op is None else self.part_of.get(op.index, GIVEN)
        source = self._home((value, self.plan.copies[copy].source))
        first = self.readers.get(key, AFTER)
        if any(lane.leaves == key for lane in self.lanes):
            first = min(first, FORWARD)
        if any(lane.enters and (_id(lane.enters[0]), lane.enters[1]) == key for lane in self.lanes):
            first = BEFORE
        return max(source, first)

    # ---- the loop's lanes ------------------------------------------------------------------------------------

    def _lanes(self) -> list[Lane]:
        graph = self.graph
        at = {v.id: i for i, v in enumerate(graph.inputs)}
        out = {_id(a): o for o, a in enumerate(graph.outputs)}
        found = []
        for crossing in (c for c in graph.lanes if c.opening == self.opening):
            enters = leaves = inside = outside = None
            for index, position, _ in crossing.reads:
                a, step = graph.ops[index].inputs[position], self.plan.steps[index]
                if index == self.opening:
                    enters = (a, step.reads[position], step.operands[position])
                else:
                    leaves = (_id(a), step.reads[position])
            for v, _ in crossing.makes:
                if v in graph.ops[self.opening].outputs:
                    inside = (v.id, AS_MADE)
                else:
                    outside = (v.id, AS_MADE)
            port = at.get(_id(enters[0])) if enters else out.get(outside[0]) if outside else None
            kind = self._kind(crossing.lane, port)
            found.append(Lane(kind, inside, enters, leaves, outside, port if kind in ("received", "sent") else None))
        return found

    def _kind(self, lane: region.Lane, port: int | None) -> str:
        if lane.is_carried or not lane.is_stacked:
            return "sum" if lane.is_carried else "constant"
        ports = self.piece.inputs if lane.is_entering else self.piece.outputs
        crosses = port is not None and port < len(ports) and ports[port].kind == "loop"
        if lane.is_entering:
            return "received" if crosses else "counter"
        return "sent" if crosses else "stacked"

    # ---- programs --------------------------------------------------------------------------------------------

    def _wanted_outside(self) -> list[Key]:
        """What must be made besides what ops read: what leaves the loop, and the results."""
        found = [k for lane in self.lanes if (k := lane.leaves)]
        ports = self.piece.outputs
        return found + [
            self.output_key(o)
            for o, a in enumerate(self.graph.outputs)
            if isinstance(a, Value) and ports[o].kind != "loop"
        ]

    def _want(self, key: Key, wanted: dict[int, list[Key]]) -> None:
        home = self._home(key)
        if home != GIVEN:
            wanted[home].append(key)

    def _takes(self, part: int, gives: Sequence[Key]) -> tuple[Key, ...]:
        """What a part finds made."""
        found: dict[Key, None] = {}
        todo = [k for op in self._ops_of(part) for k in self._reads(op)]
        todo += [self._source_of_lane(k) if part == BEFORE else k for k in gives]
        seen: set[Key] = set()
        while todo:
            key = todo.pop()
            if key in seen or key[0] < 0 or self.graph.is_free(self.graph.values[key[0]]):
                continue
            seen.add(key)
            if self._home(key) != part:
                found[key] = None
            elif key[1] != AS_MADE:
                todo.append((key[0], self.plan.copies[key[1]].source))
        inner = {v.id for op in self._ops_of(part) for v in op.outputs}
        return tuple(sorted(k for k in found if k[0] not in inner))

    def entering(self, key: Key) -> tuple[Atom, int, Spec] | None:
        """What the opening border reads for what the body sees."""
        return next((lane.enters for lane in self.lanes if lane.inside == key and lane.enters), None)

    def _source_of_lane(self, key: Key) -> Key:
        enters = self.entering(key)
        return key if enters is None else (_id(enters[0]), enters[1])

    def _program(self, part: int, takes: tuple[Key, ...], gives: tuple[Key, ...]) -> Program:
        sends = {lane.leaves: self._sent_moves(lane) for lane in self.lanes if lane.kind == "sent" and lane.leaves}

        def local(*arrays: Any) -> tuple[Any, ...]:
            run = _Part(self, part)
            run.put({k: self._opened(k, x) for k, x in zip(takes, arrays, strict=True)})
            run.run(*self._range(part))
            return tuple(self._closed(k, _moved(run.get(k), sends.get(k, ()), self.plan.mesh), sends) for k in gives)

        mapped = jax.shard_map(
            local,
            mesh=self.mesh,
            in_specs=tuple(map(self.outside_spec, takes)),
            out_specs=tuple(self._given_spec(k, sends) for k in gives),
            check_vma=False,
        )
        kept = {lane.inside for lane in self.lanes if lane.kind == "sum" and lane.leaves in gives}
        donated = tuple(i for i, k in enumerate(takes) if k in kept)
        return Program(takes, gives, jax.jit(mapped, donate_argnums=donated))

    def _range(self, part: int) -> tuple[int, int]:
        """The ops before the loop, in it, or after it."""
        if part == BEFORE:
            return 0, self.opening
        return (self.opening + 1, self.closing) if part < AFTER else (self.closing + 1, len(self.graph.ops))

    def _sent_moves(self, lane: Lane) -> tuple[Move, ...]:
        """From the spec that a microbatch's array has to the one in which it is sent: never partial."""
        assert lane.leaves is not None
        spec = self.spec(lane.leaves)
        if not spec.partial:
            return ()
        v = self.graph.values[lane.leaves[0]]
        space = SpecSpace(v.shape, v.itemsize, spec.monoid, self.plan.topology)
        return space.path(spec, spec.whole())

    # ---- how arrays lie --------------------------------------------------------------------------------------

    def spec(self, key: Key) -> Spec:
        """How a value, or a copy of it, lies."""
        value, copy = key
        if copy != AS_MADE:
            return self.plan.copies[copy].spec
        op = self.graph.producer[value]
        if op is None:
            return self.plan.inputs[[v.id for v in self.graph.inputs].index(value)].spec
        return self.plan.steps[op.index].results[[v.id for v in op.outputs].index(value)]

    def outside_spec(self, key: Key) -> PartitionSpec:
        """Of the array between two programs: the terms of a partial value along a dim more."""
        spec = self.spec(key)
        inner = partition_spec(spec.whole())
        return PartitionSpec(spec.partial, *inner) if spec.partial else inner

    def _given_spec(self, key: Key, sends: Mapping[Key, Sequence[Move]]) -> PartitionSpec:
        return partition_spec(self.spec(key).whole()) if sends.get(key) else self.outside_spec(key)

    def _opened(self, key: Key, x: Any) -> Any:
        return x[0] if self.spec(key).partial else x

    def _closed(self, key: Key, x: Any, sends: Mapping[Key, Sequence[Move]]) -> Any:
        return x[None] if self.spec(key).partial and not sends.get(key) else x


def _moved(x: Any, moves: Sequence[Move], mesh: Mapping[str, int]) -> Any:
    for move in moves:
        x = apply(move, x, mesh)
    return x


class _Part(PlanRun):
    """One trace of a part of the plan on one device."""

    def __init__(self, programs: Programs, part: int) -> None:
        super().__init__(programs.graph, programs.plan, programs.rules)
        self.programs, self.part = programs, part

    def runs(self, op: Op) -> bool:
        """What belongs to the part."""
        return self.programs.part_of.get(op.index) == self.part and super().runs(op)

    def put(self, arrays: Mapping[Key, Any]) -> None:
        """What other parts have made."""
        self.made.update((v, x) for (v, copy), x in arrays.items() if copy == AS_MADE)
        self.copies.update((copy, x) for (_, copy), x in arrays.items() if copy != AS_MADE)

    def get(self, key: Key) -> Any:
        """What this part has made."""
        enters = self.programs.entering(key) if self.part == BEFORE else None
        if enters is not None:
            return self.read(*enters, None)
        return self.made[key[0]] if key[1] == AS_MADE else self.source(key[1], None)


def _id(a: Atom) -> int:
    return a.id if isinstance(a, Value) else -1


def _is_backward(ports: Sequence[Port], lane: Lane) -> bool:
    return lane.kind == "received" and lane.port is not None and ports[lane.port].backward


def _main_loop(graph: Graph) -> int:
    """The op that opens the loop over microbatches: the largest region outside all others."""
    outer = {a: g[-1] - a for a, g in graph.borders.items() if not graph.depths[a] and graph.ops[a].name == "scan"}
    return max(outer, key=lambda a: outer[a])


def _spans(graph: Graph, opening: int) -> list[tuple[int, int]]:
    """The ops outside all regions but the main loop, and whole regions: (first, last)."""
    found = []
    i = 0
    while i < len(graph.ops):
        if i == opening or i == graph.borders[opening][-1]:
            i += 1
            continue
        last = graph.borders[i][-1] if i in graph.borders else i
        found.append((i, last))
        i = last + 1
    return found
