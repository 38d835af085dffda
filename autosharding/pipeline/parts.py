"""Which part of a planned piece runs what: before the microbatches, forward, backward, and rounds after them.

All parts run the one plan of the piece, each some of its ops. What one leaves to another is a value as made or one of
its resharded copies, as the plan has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from autosharding import graph as region
from autosharding.graph import Atom, Op, Value
from autosharding.pipeline.piece import Piece, Port
from autosharding.pipeline.units import spans
from autosharding.plan import AS_MADE, Plan
from autosharding.planner.liveness import is_elementwise
from autosharding.spec import Spec

Key = tuple[int, int]
"""(value id, copy or `AS_MADE`)."""

BEFORE, FORWARD, BACKWARD, WEIGHT, AFTER = range(5)
"""The parts of a piece in the order they run; round r after the loop is `AFTER + r`.

Where a schedule splits the backward pass, BACKWARD makes what is sent on and WEIGHT all else; elsewhere there is no
WEIGHT.
"""

GIVEN = -1
"""What no part makes: inputs, and what the loop's borders make."""


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


class Flow(NamedTuple):
    """What a part finds made, and what it makes for others."""

    takes: tuple[Key, ...]
    gives: tuple[Key, ...]


class Parts:
    """The parts of one piece.

    Args:
        piece: the piece.
        plan: its plan.
        rounds: id of each value sent after the loop -> the round in which it is made.
        splits_backward: whether weight gradients are a part of their own.
    """

    def __init__(self, piece: Piece, plan: Plan, rounds: Mapping[int, int], *, splits_backward: bool = False) -> None:
        self.piece, self.graph, self.plan, self.splits_backward = piece, piece.graph, plan, splits_backward
        self.opening = _main_loop(piece)
        self.closing = piece.graph.borders[self.opening][-1]
        self.lanes = self._lanes()
        self.rounds = rounds
        self.again: dict[int, set[int]] = {}  # part -> ops of the forward part that it runs for itself
        self.part_of = self._parts()
        self.n_parts = max(AFTER, *self.part_of.values()) + 1
        self.readers = self._readers()

    @cached_property
    def flows(self) -> Mapping[int, Flow]:
        """Part -> what it takes and gives, of the parts that do something."""
        wanted: dict[int, list[Key]] = {part: [] for part in range(self.n_parts)}
        entering = [lane.inside for lane in self.lanes if lane.kind in ("constant", "sum") and lane.inside]
        wanted[BEFORE] = [key for key in entering if key not in self.same]
        for key in (*self.same.values(), *self._wanted_outside()):
            self._want(key, wanted)
        found = {}
        for part in sorted(wanted, reverse=True):
            takes = self._takes(part, wanted[part])
            for key in takes:
                self._want(key, wanted)
            if self._ops_of(part) or wanted[part]:
                found[part] = Flow(takes, tuple(dict.fromkeys(wanted[part])))
        return dict(sorted(found.items()))

    @cached_property
    def same(self) -> Mapping[Key, Key]:
        """What the body sees of an array that it reads as it is -> the array."""
        found = {}
        for lane in self.lanes:
            if lane.kind == "constant" and lane.inside and lane.enters and not self.graph.is_free(lane.enters[0]):
                source = _id(lane.enters[0]), lane.enters[1]
                if self.spec(lane.inside) == self.spec(source):
                    found[lane.inside] = source
        return found

    def ranges(self, part: int) -> tuple[tuple[int, int], ...]:
        """Where the ops of a part are, from one up to another: those after the loop are partly written before it."""
        before, inside = (0, self.opening), (self.opening + 1, self.closing)
        if part == BEFORE:
            return (before,)
        return (inside,) if part < AFTER else (before, (self.closing + 1, len(self.graph.ops)))

    def bytes(self, key: Key) -> int:
        """Bytes per device of a value or copy."""
        v = self.graph.values[key[0]]
        return self.spec(key).local_bytes(v.shape, v.itemsize, self.plan.mesh)

    def sent_bytes(self, *, backward: bool) -> int:
        """Bytes per device and microbatch that the forward or the backward part sends."""
        sent = [lane for lane in self.lanes if lane.kind == "sent" and lane.leaves]
        at = BACKWARD if backward else FORWARD
        return sum(self.bytes(lane.leaves) for lane in sent if lane.leaves and self.home(lane.leaves) == at)

    def output_key(self, o: int) -> Key:
        """What an output of the piece is, of those that are not sent in the loop."""
        return _id(self.graph.outputs[o]), self.plan.outputs[o].read

    # ---- which op runs in which part -------------------------------------------------------------------------

    def _parts(self) -> dict[int, int]:
        """Op index -> its part; the ops of a region have one."""
        graph = self.graph
        ports = self.piece.inputs
        back = {lane.inside[0] for lane in self.lanes if lane.inside and is_backward(ports, lane)}
        late = {graph.inputs[i].id: self.rounds[p.of] + 1 for i, p in enumerate(ports) if p.kind == "after"}
        found: dict[int, int] = {}
        for first, last in self._spans():
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
        found.update(self._needed_after(found))
        if self.splits_backward:
            found.update(dict.fromkeys(self._not_sent_on(found), WEIGHT))
        return found

    def _needed_after(self, parts: Mapping[int, int]) -> dict[int, int]:
        """Ops written before the loop that only parts after it have use for: they run there."""
        graph = self.graph
        returned = {a.id for a in graph.outputs if isinstance(a, Value)}
        found: dict[int, int] = {}
        for first, last in reversed(list(spans(graph, 0, self.opening))):
            ops = graph.ops[first : last + 1]
            made = [v.id for op in ops for v in op.outputs]
            readers = {op.index for v in made for op, _ in graph.readers[v]} - set(range(first, last + 1))
            uses = [found.get(i, parts.get(i, BEFORE)) for i in readers] + [AFTER for v in made if v in returned]
            if min(uses, default=BEFORE) >= AFTER and not any(op.effects for op in ops):
                found.update((op.index, min(uses)) for op in ops)
        return found

    def _spans(self) -> list[tuple[int, int]]:
        """Single ops and whole regions, (first, last), before the loop, in it and after it."""
        n = len(self.graph.ops)
        within = ((0, self.opening), (self.opening + 1, self.closing), (self.closing + 1, n))
        return [span for first, end in within for span in spans(self.graph, first, end)]

    def _not_sent_on(self, parts: Mapping[int, int]) -> list[int]:
        """Ops of the backward pass in the loop on which nothing hangs that is sent."""
        wanted = {lane.leaves[0] for lane in self.lanes if lane.kind == "sent" and lane.leaves}
        found = []
        for first, last in reversed(self._spans()):
            ops = self.graph.ops[first : last + 1]
            if parts[first] != BACKWARD:
                continue
            if any(v.id in wanted for op in ops for v in op.outputs):
                wanted.update(v.id for op in ops for v in op.values)
            else:
                found += [op.index for op in ops]
        return found

    def _ops_of(self, part: int) -> list[Op]:
        return [op for op in self.graph.ops if self.part_of.get(op.index) == part]

    def _readers(self) -> dict[Key, int]:
        """For each value and copy the first part that has use for it."""
        uses = [(key, self.part_of[op.index]) for op in self._ops() for key in self._reads(op)]
        for lane in self.lanes:
            uses += [(lane.leaves, FORWARD)] if lane.leaves else []
            uses += [((_id(lane.enters[0]), lane.enters[1]), BEFORE)] if lane.enters else []
        for o, port in enumerate(self.piece.outputs):
            uses.append((self.output_key(o), AFTER + (self.rounds[port.of] if port.kind == "after" else 0)))
        found: dict[Key, int] = {}
        for key, part in uses:
            found[key] = min(found.get(key, part), part)
        for k, copy in reversed(list(enumerate(self.plan.copies))):  # and what it is made of
            key, source = (copy.value, k), (copy.value, copy.source)
            if key in found:
                found[source] = min(found.get(source, found[key]), found[key])
        return found

    def _ops(self) -> list[Op]:
        return [op for op in self.graph.ops if op.index in self.part_of]

    def _reads(self, op: Op) -> list[Key]:
        step = self.plan.steps[op.index]
        pairs = zip(op.inputs, step.reads, strict=True)
        return [(a.id, r) for a, r in pairs if isinstance(a, Value) and not self.graph.is_free(a)]

    def home(self, key: Key) -> int:
        """The part that makes it."""
        value, copy = key
        if copy == AS_MADE:
            op = self.graph.producer[value]
            return GIVEN if op is None else self.part_of.get(op.index, GIVEN)
        return max(self.home((value, self.plan.copies[copy].source)), self.readers[key])

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

    # ---- what goes from part to part -------------------------------------------------------------------------

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
        home = self.home(key)
        if home != GIVEN:
            wanted[home].append(key)

    def _made_again(self, key: Key, part: int) -> Op | None:
        """The op that makes a value of the forward part again for the backward part, rather than that it is kept.

        It is one that computes next to nothing of what is the same for every microbatch: a mask for all heads.
        """
        op = self.graph.producer[key[0]]
        if part not in (BACKWARD, WEIGHT) or op is None or key[1] != AS_MADE or self.home(key) != FORWARD:
            return None
        return op if op.index in self._constant else None

    @cached_property
    def _constant(self) -> frozenset[int]:
        """Ops of the loop that broadcast, element by element, what is the same for every microbatch."""
        same = {lane.inside[0] for lane in self.lanes if lane.kind == "constant" and lane.inside}
        found: set[int] = set()
        for op in self.graph.ops[self.opening + 1 : self.closing]:
            cheap = op.name == "broadcast_in_dim" or is_elementwise(op)
            if cheap and op.index in self.part_of and all(v.id in same or self.graph.is_free(v) for v in op.values):
                found.add(op.index)
                same.update(v.id for v in op.outputs)
        return frozenset(found)

    def _takes(self, part: int, gives: Sequence[Key]) -> tuple[Key, ...]:
        """What a part finds made."""
        found: dict[Key, None] = {}
        todo = [k for op in self._ops_of(part) for k in self._reads(op)]
        todo += [self.source_of_lane(k) if part == BEFORE else k for k in gives]
        seen: set[Key] = set()
        while todo:
            key = todo.pop()
            if key in seen or key[0] < 0 or self.graph.is_free(self.graph.values[key[0]]):
                continue
            seen.add(key)
            if self.home(key) != part and (again := self._made_again(key, part)) is not None:
                self.again.setdefault(part, set()).add(again.index)
                todo += self._reads(again)
            elif self.home(key) != part:
                found[key] = None
            elif key[1] != AS_MADE:
                todo.append((key[0], self.plan.copies[key[1]].source))
        inner = {v.id for op in self._ops_of(part) for v in op.outputs}
        return tuple(sorted(k for k in found if k[0] not in inner))

    def entering(self, key: Key) -> tuple[Atom, int, Spec] | None:
        """What the opening border reads for what the body sees."""
        return next((lane.enters for lane in self.lanes if lane.inside == key and lane.enters), None)

    def source_of_lane(self, key: Key) -> Key:
        """What lies outside of the loop of what the body sees."""
        enters = self.entering(key)
        return key if enters is None else (_id(enters[0]), enters[1])

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


def _id(a: Atom) -> int:
    return a.id if isinstance(a, Value) else -1


def is_backward(ports: Sequence[Port], lane: Lane) -> bool:
    """Whether a lane brings what the backward pass makes elsewhere."""
    return lane.kind == "received" and lane.port is not None and ports[lane.port].backward


def _main_loop(piece: Piece) -> int:
    """The op that opens the loop over microbatches: it reads what is received there and makes what is sent.

    Of a piece without others it is the largest region outside all others.
    """
    graph = piece.graph
    for v, port in zip(graph.inputs, piece.inputs, strict=False):
        if port.kind == "loop":
            return graph.readers[v.id][0][0].index
    opens = {group[-1]: a for a, group in graph.borders.items()}
    for a, port in zip(graph.outputs, piece.outputs, strict=True):
        made = graph.producer[a.id] if port.kind == "loop" and isinstance(a, Value) else None
        if made is not None:
            return opens[made.index]
    outer = {a: g[-1] - a for a, g in graph.borders.items() if not graph.depths[a] and graph.ops[a].name == "scan"}
    return max(outer, key=lambda a: outer[a])
