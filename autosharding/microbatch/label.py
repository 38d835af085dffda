"""What every value of a step is when its batch is worked through in microbatches, and where every op runs.

One pass over the graph in program order, repeated until what goes round in loops is settled. An op on the batch runs in
the loop; what does not depend on it runs before; what has to wait for all microbatches runs after. An op in the loop
that would read what is known only after it is a conflict: it, and what hangs on it, run on the whole batch after the
loop; `ways` looks for something better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal as Choice

from autosharding.graph import Atom, Graph, Op, Value
from autosharding.microbatch.constants import aligned_factors, is_zero, scalar_behind
from autosharding.microbatch.parts import WAITS, Part, part_by, part_of, part_of_whole, part_with_ones
from autosharding.microbatch.states import AFTER, WHOLE, After, Each, Partial, Sliced, State, Whole, cut_of
from autosharding.rules import Rule

Place = Choice["before", "loop", "after", "everywhere"]


@dataclass(frozen=True, slots=True)
class Blocked:
    """An op that cannot run in the loop.

    Attributes:
        op: its index.
        why: "reads a sum over the whole batch".
        waits_for: id of the value that is known only after the loop, where that is what stops it.
    """

    op: int
    why: str
    waits_for: int | None = None


@dataclass(frozen=True)
class Labels:
    """A graph cut into microbatches.

    Attributes:
        microbatches: how many.
        states: of each value, by id.
        places: of each op; a barrier is "everywhere", each lane where its array is.
        parts: of the ops in the loop, by index.
        blocked: the ops that should be in the loop and cannot, in program order.
        lost: indices of the ops of the forward and backward pass that hang on these, or run whole to help them.
        own: indices of the ops that take the sums over a microbatch for those over the batch.
    """

    graph: Graph
    rules: Sequence[Rule | None]
    microbatches: int
    states: tuple[State, ...]
    places: tuple[Place, ...]
    parts: Mapping[int, Part]
    blocked: tuple[Blocked, ...]
    lost: frozenset[int]
    own: Set[int]


def label(
    graph: Graph,
    rules: Sequence[Rule | None],
    microbatches: int,
    inputs: Mapping[int, Sliced],
    whole: Set[int] = frozenset(),
    factored: Set[int] = frozenset(),
    own: Set[int] = frozenset(),
) -> Labels:
    """Label a graph.

    Args:
        graph: the step on the full batch.
        rules: of its ops.
        microbatches: how many.
        inputs: id of each input that has the batch -> how it is sliced.
        whole: indices of ops that run on the whole batch before the loop.
        factored: indices of products with a scalar known only after the loop, by which their sums are multiplied then.
        own: indices of ops that take the sums over a microbatch for those over the batch.
    """
    late: set[int] = set()  # regions that have to wait, by the op that opens them
    blocked: dict[int, Blocked] = {}
    while True:
        labeller = _Labeller(graph, rules, microbatches, inputs, whole, factored, own, late)
        labeller.run()
        blocked.update(labeller.blocked)
        if labeller.late == late:
            break
        late = labeller.late
    labeller.let_go()
    labeller.sink()
    found = tuple(sorted(blocked.values(), key=lambda b: b.op))
    states, places = tuple(labeller.states), tuple(labeller.places)
    lost = _lost(graph, places, found, whole, late)
    return Labels(graph, rules, microbatches, states, places, labeller.parts, found, lost, own)


def _lost(
    graph: Graph, places: Sequence[Place], blocked: Sequence[Blocked], whole: Set[int], late: Set[int]
) -> frozenset[int]:
    """What should be in the loop: the blocked ops and what hangs on them up to the update, and what runs whole."""
    within = {i for a in late for i in range(a, graph.borders[a][-1] + 1)}
    found = {b.op for b in blocked if places[b.op] == "after"} | within | whole
    values = {v.id for i in found - whole for v in graph.ops[i].outputs}
    for op in graph.ops:
        if places[op.index] == "after" and op.phase != "update" and any(v.id in values for v in op.values):
            found.add(op.index)
            values.update(v.id for v in op.outputs)
    return frozenset(found)


class _Labeller:
    """One labelling; alive during one call of `label`."""

    def __init__(
        self,
        graph: Graph,
        rules: Sequence[Rule | None],
        microbatches: int,
        inputs: Mapping[int, Sliced],
        whole: Set[int],
        factored: Set[int],
        own: Set[int],
        late: Set[int],
    ) -> None:
        self.graph, self.rules, self.microbatches = graph, rules, microbatches
        self.inputs, self.whole, self.factored, self.own, self.late = inputs, whole, factored, own, set(late)
        self.states: list[State] = [WHOLE] * len(graph.values)
        for i, s in inputs.items():
            self.states[i] = s
        self.places: list[Place] = ["before"] * len(graph.ops)
        self.parts: dict[int, Part] = {}
        self.blocked: dict[int, Blocked] = {}
        self.lanes: list[State] = [WHOLE] * len(graph.lanes)
        self.within: list[Place] = []  # the regions that we are in: where they run
        self.openings: list[int] = []  # and the ops that open them
        self.over_batch: dict[int, Each] = {}  # loops of the user's own over the batch, by the op that opens them
        self.repeated: set[int] = set()  # values that are the same for every microbatch, and made in the loop
        self.twins: dict[int, dict[str, str]] = {}

    def run(self) -> None:
        """Label all ops, until the states of lanes stay as they are."""
        while True:
            before = list(self.lanes), set(self.late)
            waiting = [(a, self.graph.borders[a][-1]) for a in self.late]  # why they wait is not met again
            self.blocked = {i: b for i, b in self.blocked.items() if any(a <= i <= end for a, end in waiting)}
            for op in self.graph.ops:
                if op.region is None:
                    self._op(op)
                else:
                    self._border(op)
            if (self.lanes, self.late) == before:
                return

    def state(self, atom: Atom) -> State:
        """What an operand is."""
        return self.states[atom.id] if isinstance(atom, Value) else WHOLE

    # ---- single ops ------------------------------------------------------------------------------------------

    def _op(self, op: Op) -> None:
        rule = self.rules[op.index]
        assert rule is not None
        given = [self.state(a) for a in op.inputs]
        inside = self.within[-1] if self.within else None
        if op.index in self.whole or (inside == "before") or all(isinstance(s, Whole) for s in given):
            place = self._place_of_whole(op)
            if place == "loop":
                self._in_loop(op, Part(None, tuple(given), (WHOLE,) * len(op.outputs)))
            elif place == "after":
                self._later(op)
            else:
                self._set(op, "before", part_of_whole(op, rule, given, self.microbatches))
        elif inside == "after" or any(isinstance(s, After) for s in given):
            if any(isinstance(s, Sliced) for s in given) and inside != "after":
                part = self._with_ones(op, rule, given)
                if part is not None:
                    self._in_loop(op, part)
                    return
                self._block(op, WAITS, self._waited_for(op))
            self._later(op)
        else:
            self._cut(op, rule, given)

    def _place_of_whole(self, op: Op) -> Place:
        """Where what is the same for every microbatch is made: in the loop only if what it is made of is."""
        if self.within:
            return self.within[-1]
        return "loop" if any(v.id in self.repeated for v in op.values) else "before"

    def _cut(self, op: Op, rule: Rule, given: Sequence[State]) -> None:
        over_batch = next((e for o in self.openings if (e := self.over_batch.get(o)) is not None), None)
        if over_batch is not None:  # what is the same in each run is a term in each run
            given = [over_batch if isinstance(s, Whole) else s for s in given]
        part = part_of(op, rule, given, self.microbatches, self._twins(op, rule), self._zeros(op), op.index in self.own)
        if isinstance(part, Part):
            self._in_loop(op, part)
            return
        if any(isinstance(s, Sliced) for s in given) or self.within:
            terms = (a.id for a in op.values if isinstance(self.states[a.id], Partial))
            self._block(op, part, next(terms, None))
        self._later(op)

    def _twins(self, op: Op, rule: Rule) -> dict[str, str]:
        if op.index not in self.twins:
            self.twins[op.index] = aligned_factors(self.graph, op, rule)
        return self.twins[op.index]

    def _zeros(self, op: Op) -> set[int]:
        return {i for i, a in enumerate(op.inputs) if is_zero(self.graph, a)}

    def _with_ones(self, op: Op, rule: Rule, given: Sequence[State]) -> Part | None:
        """Ones in the place of a scalar that is known after the loop."""
        late = [i for i, s in enumerate(given) if isinstance(s, After)]
        if op.index not in self.factored or len(late) > 1 or self.within:
            return None
        scalar = scalar_behind(self.graph, op.inputs[late[0]])
        if scalar is None:
            return None
        part = part_with_ones(op, rule, given, self.microbatches, late[0], scalar.id, self._zeros(op))
        return part if isinstance(part, Part) else None

    def _waited_for(self, op: Op) -> int:
        return next(v.id for v in op.values if isinstance(self.states[v.id], After))

    def _in_loop(self, op: Op, part: Part) -> None:
        self.parts[op.index] = part
        self._set(op, "loop", part.results)

    def _later(self, op: Op) -> None:
        self.parts.pop(op.index, None)
        self._set(op, "after", (AFTER,) * len(op.outputs))

    def _set(self, op: Op, place: Place, states: Sequence[State]) -> None:
        self.places[op.index] = place
        for v, s in zip(op.outputs, states, strict=True):
            self.states[v.id] = s
            if place == "loop" and isinstance(s, Whole):
                self.repeated.add(v.id)

    def _block(self, op: Op, why: str, waits_for: int | None = None) -> None:
        """Note an op that cannot be in the loop; a region that it is in waits with it."""
        self.blocked.setdefault(op.index, Blocked(op.index, why, waits_for))
        if self.openings:
            self.late.add(self.openings[0])

    # ---- borders ---------------------------------------------------------------------------------------------

    def _border(self, op: Op) -> None:
        assert op.region is not None
        if not op.region.bodies:
            self._barrier(op)
            return
        if op.border:
            self.within.pop()
            opening = self.openings.pop()
            place = self.places[opening]
        else:
            opening, place = op.index, self._region_place(op)
        if place == "loop" and not self._join(op):
            place = "after"
        self._make(op, place)
        if op.border < op.region.bodies:
            self.within.append(place)
            self.openings.append(opening)

    def _region_place(self, op: Op) -> Place:
        if op.index in self.late:
            return "after"
        given = [self.state(a) for a in op.inputs]
        if op.index in self.whole or all(isinstance(s, Whole) for s in given):
            return self._place_of_whole(op)
        if any(isinstance(s, After) for s in given):
            if any(isinstance(s, Sliced) for s in given):
                self._block(op, WAITS, self._waited_for(op))
            return "after"
        sums_alone = not self.within and all(isinstance(s, Whole | Partial) for s in given)
        return "after" if sums_alone else "loop"

    def _join(self, op: Op) -> bool:
        """Bring what a border reads into its lanes; False where that fails, and the region has to wait."""
        reads = [self.graph.lane_read[op.index, i] for i in range(len(op.inputs))]
        for (n, stacked), a in zip(reads, op.inputs, strict=True):
            state = self.state(a)
            if stacked and isinstance(state, Sliced) and state.dim == 0:
                self.over_batch[self.graph.lanes[n].opening] = Each(state.outer, state.inner)
        for (n, stacked), a in zip(reads, op.inputs, strict=True):
            crossing = self.graph.lanes[n]
            both = self._met(n, self.state(a), stacked)
            if both is None or (crossing.lane.whole and not isinstance(both, Whole)):
                self._block(op, "decides by the batch what to run" if crossing.lane.whole else "goes through the batch")
                self.late.add(crossing.opening)
                return False
            self.lanes[n] = both
        return True

    def _met(self, n: int, state: State, stacked: bool) -> State | None:
        """What a lane is that is also read as this; None where that does not go together."""
        lane, now = self.graph.lanes[n].lane, self.lanes[n]
        over_batch = self.over_batch.get(self.graph.lanes[n].opening)
        if isinstance(state, After):
            return None
        if over_batch is not None:
            if lane.is_stacked:
                same = isinstance(state, Whole | Each) or state == Sliced(0, over_batch.outer, over_batch.inner)
                return over_batch if same else None
            if lane.is_carried:  # a sum over the runs, if it is one
                return Partial("sum") if isinstance(state, Whole) or state == Partial("sum") else None
            if isinstance(state, Sliced):
                return None
        if stacked and isinstance(state, Sliced):
            state = state.stacked(-1)
        if state == now or isinstance(state, Whole):
            return now
        return state if isinstance(now, Whole) else None

    def _make(self, op: Op, place: Place) -> None:
        """What a border reads and makes, by its lanes."""
        self.places[op.index] = place
        self.parts.pop(op.index, None)
        if place != "loop":
            self._set(op, place, (AFTER if place == "after" else WHOLE,) * len(op.outputs))
            return
        reads = [self._at(*self.graph.lane_read[op.index, i]) for i in range(len(op.inputs))]
        made = [self._at(*self.graph.lane_made[v.id]) for v in op.outputs]
        self._in_loop(op, Part(None, tuple(reads), tuple(made)))

    def _at(self, lane: int, stacked: bool) -> State:
        state = self.lanes[lane]
        if stacked and isinstance(state, Each):
            return Sliced(0, state.outer, state.inner)
        return state.stacked(1) if stacked and isinstance(state, Sliced) else state

    def _barrier(self, op: Op) -> None:
        self.places[op.index] = self.within[-1] if self.within else "everywhere"
        given = tuple(self.state(a) for a in op.inputs)
        made: dict[int, State] = {}
        for i, s in enumerate(given):
            for v, _ in self.graph.lanes[self.graph.lane_read[op.index, i][0]].makes:
                made[v.id] = s
        self.parts[op.index] = Part(None, given, tuple(made[v.id] for v in op.outputs))
        for v in op.outputs:
            self.states[v.id] = made[v.id]

    # ---- afterwards ------------------------------------------------------------------------------------------

    def let_go(self) -> None:
        """Have terms summed up as soon as the loop need not keep them apart.

        Terms stay apart where they are brought together (one accumulator instead of two), where they are widened (the
        sum is then as exact as the wide type), and inside regions.
        """
        kept: set[int] = set()
        depths = self.graph.depths
        for op in reversed(self.graph.ops):
            part = self.parts.get(op.index)
            if part is None or op.region is not None or not _only_terms(part):
                continue
            terms = {v.id for v in op.values if isinstance(self.states[v.id], Partial)}
            wider = op.name == "convert_element_type" and op.outputs[0].itemsize > op.values[0].itemsize
            leads_on = any(self._takes_terms(r, i, kept) for v in op.outputs for r, i in self.graph.readers[v.id])
            if len(terms) > 1 or wider or depths[op.index] or leads_on:
                kept.add(op.index)
        for op in self.graph.ops:
            part = self.parts.get(op.index)
            if part is not None and op.region is None and _only_terms(part) and op.index not in kept:
                self._later(op)

    def _takes_terms(self, reader: Op, position: int, kept: Set[int]) -> bool:
        part = self.parts.get(reader.index)
        if part is None:
            return False
        if not isinstance(part.reads[position], Partial):  # as the statistic of a microbatch
            return isinstance(self.state(reader.inputs[position]), Partial)
        return not _only_terms(part) or reader.index in kept or (reader.region is not None and reader.region.bodies > 0)

    def sink(self) -> None:
        """Have what does not depend on the batch made microbatch by microbatch, where only its parts are read."""
        returned = {a.id for a in self.graph.outputs if isinstance(a, Value)}
        for op in reversed(self.graph.ops):
            rule = self.rules[op.index]
            if rule is None or op.effects or self.places[op.index] != "before" or self.graph.depths[op.index]:
                continue
            wanted = [self._wanted(v) for v in op.outputs]
            first = wanted[0] if wanted else None
            if first is None or returned.intersection(v.id for v in op.outputs) or op.index in self.whole:
                continue
            cut = cut_of(first, rule.results[0], rule.sizes, self.microbatches)
            part = part_by(op, rule, cut, [WHOLE] * len(op.inputs), self.microbatches) if cut else ""
            if isinstance(part, Part) and list(part.results) == wanted:
                self._in_loop(op, part)

    def _wanted(self, v: Value) -> Sliced | None:
        """The one slice of a value that all its readers take; None where some take it otherwise."""
        found: set[State] = set()
        for reader, i in self.graph.readers[v.id]:
            part = self.parts.get(reader.index)
            found.add(part.reads[i] if part is not None else WHOLE)
        return s if len(found) == 1 and isinstance(s := found.pop(), Sliced) else None


def _only_terms(part: Part) -> bool:
    """Whether an op in the loop works on terms and on nothing sliced."""
    return part.cut is None and any(isinstance(s, Partial) for s in part.reads)
