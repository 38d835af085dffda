"""From a graph on a topology to a 0-1 program, and what each of its nodes means.

Nodes: an input (its specs), an op (its strategies), a lane of a region (the spec in which it crosses the borders), a
copy (the spec a value is brought into for several readers) and a result. The bodies of all regions are part of the one
program; what stands in a loop counts as often as the loop runs, and a carry has one spec because it is one lane. Edges
carry the price of the reshard between what one side leaves and the other reads. A value with several readers is
resharded once for those of one phase: they read a common copy node; where several phases read it their copies start
from a common one, so that a gathered weight may be kept for the backward pass or gathered again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from autosharding.graph import PHASES, Crossing, Graph, Op, Value
from autosharding.planner.liveness import Liveness
from autosharding.planner.tables import Table, Tables
from autosharding.rules import Rule
from autosharding.spec import Spec
from ilp import Edge, Memory, Problem
from ilp.collector import collector_paused

SMALL = 1 / 256
"""Share of the memory limit below which copies for one reader are left to the plan's own account."""

IN_FLIGHT = 4
"""Of what passes by, an entry at a time, so many are rented for: the microbatches that a stage holds at once."""

Reader = tuple[int, int]
"""(op index, operand position); an output is (number of ops, output position)."""


@dataclass(frozen=True, slots=True)
class CopyNode:
    """A spec that a value is brought into: its node, its parent copy (None: the value as made), its readers."""

    node: int
    parent: int | None
    readers: tuple[Reader, ...]


@dataclass(frozen=True)
class Restrictions:
    """What a method or the user asks for; each answers whether a spec or strategy may be taken.

    Attributes:
        inputs: input index -> the specs allowed.
        steps: (op, its table) -> bool [k]; None allows all.
    """

    inputs: Mapping[int, Callable[[Spec], bool]] = field(default_factory=dict)
    steps: Callable[[Op, Table], np.ndarray | None] | None = None


@dataclass(frozen=True)
class Formulation:
    """The program with its meaning.

    Attributes:
        problem: what the solver gets.
        inputs: node of each input.
        ops: node of each op; -1 for free ops and borders.
        lanes: node of each lane of the graph.
        lane_specs: for each lane the specs that its node's states stand for, inside the bodies.
        copies: for each value id its copy nodes, parents first.
        reads: (reader) -> index into `copies[value]`, or None where it reads the value as made.
        outputs: node of each result that is not state and not free; -1 else.
        tables: op index -> table (after restrictions), for decoding.
        specs: for each input, copy and output node the indices of its states' specs in the value's space.
    """

    problem: Problem
    inputs: tuple[int, ...]
    ops: tuple[int, ...]
    lanes: tuple[int, ...]
    lane_specs: tuple[tuple[Spec, ...], ...]
    copies: Mapping[int, tuple[CopyNode, ...]]
    reads: Mapping[Reader, int | None]
    outputs: tuple[int, ...]
    tables: Mapping[int, tuple[Table, np.ndarray]]
    specs: Mapping[int, np.ndarray]


@dataclass(frozen=True, eq=False)
class _States:
    """What the states of an op's node mean; one for all ops with the same table, the same part of it, run as often.

    Attributes:
        costs: seconds of each.
        operands: for each input the spec each of them reads; None where it is free.
        results: for each output the spec each of them leaves.
    """

    costs: np.ndarray
    operands: tuple[np.ndarray | None, ...]
    results: tuple[np.ndarray, ...]


@collector_paused()
def formulate(
    graph: Graph,
    rules: list[Rule | None],
    tables: Tables,
    life: Liveness,
    *,
    state: Mapping[int, int],
    donated: frozenset[int],
    restrictions: Restrictions,
    limit: int | None,
    rent: float = 0.0,
) -> Formulation:
    """Build the program.

    Args:
        graph: the step.
        rules: for each op its rule; None for borders.
        tables: spec spaces and tables on the topology.
        life: when values are in memory.
        state: result index -> index of the input whose new state it is.
        donated: inputs whose buffers their new state takes over.
        restrictions: of the method and the user.
        limit: bytes a device may hold, or None.
        rent: seconds that a byte costs which a device holds all the time: of an argument, or of what goes into a loop
            whole. Where what may be held is not known yet, the best plans for some rents are those worth having.
    """
    return _Builder(graph, rules, tables, life, state, donated, restrictions, limit, rent).build()


def lane_specs(crossing: Crossing, graph: Graph, tables: Tables) -> tuple[Spec, ...]:
    """The specs that an array can have at every port of a lane, as the bodies see it."""
    atoms = [(graph.ops[i].inputs[p], stacked) for i, p, stacked in crossing.reads]
    values = [*crossing.makes, *((a, s) for a, s in atoms if isinstance(a, Value) and not graph.is_free(a))]
    if crossing.lane.whole or not values:
        a, stacked = (values or atoms)[0]
        return (Spec.replicated(a.rank - stacked),)
    spaces = [(tables.space(v), stacked) for v, stacked in values]
    first, stacked = spaces[0]
    found = [s.unstacked() if stacked else s for s in first.specs]
    return tuple(
        s
        for s in found
        if s is not None and all((s.stacked() if stacked else s) in space.index for space, stacked in spaces)
    )


class _Builder:
    """Collects nodes and edges; alive during one call."""

    def __init__(
        self,
        graph: Graph,
        rules: list[Rule | None],
        tables: Tables,
        life: Liveness,
        state: Mapping[int, int],
        donated: frozenset[int],
        restrictions: Restrictions,
        limit: int | None,
        rent: float,
    ) -> None:
        self.graph, self.rules, self.tables, self.life, self.rent = graph, rules, tables, life, rent
        self.state, self.donated, self.restrictions, self.limit = state, donated, restrictions, limit
        self.aliased = {a.id for o, a in enumerate(graph.outputs) if isinstance(a, Value) and state.get(o) in donated}
        self.costs: list[np.ndarray] = []
        self.edges: list[Edge] = []
        self.memory: list[Memory] = []
        self.specs: dict[int, np.ndarray] = {}
        self.chosen: dict[int, tuple[Table, np.ndarray]] = {}
        self.states: dict[int, _States] = {}
        self.known_states: dict[tuple[int, int, int], _States] = {}
        self.made: dict[int, tuple[int, np.ndarray]] = {}
        self.copies: dict[int, list[CopyNode]] = {}
        self.reads: dict[Reader, int | None] = {}
        self.op_nodes = [-1] * len(graph.ops)
        self.lanes: list[int] = []
        self.lane_specs: list[tuple[Spec, ...]] = []

    def build(self) -> Formulation:
        inputs = tuple(self._input(i, v) for i, v in enumerate(self.graph.inputs))
        for crossing in self.graph.lanes:
            self._lane(crossing)
        for op in self.graph.ops:
            if op.region is None and not op.is_free:
                self._op(op)
        outputs = tuple(self._output(i, a) for i, a in enumerate(self.graph.outputs))
        self._wire(inputs, outputs)
        problem = Problem(self.graph.name, tuple(self.costs), tuple(self.edges), tuple(self.memory), self.limit)
        copies = {v: tuple(c) for v, c in self.copies.items()}
        return Formulation(
            problem,
            inputs,
            tuple(self.op_nodes),
            tuple(self.lanes),
            tuple(self.lane_specs),
            copies,
            self.reads,
            outputs,
            self.chosen,
            self.specs,
        )

    def _node(self, costs: np.ndarray) -> int:
        self.costs.append(costs)
        return len(self.costs) - 1

    def _spec_node(self, indices: np.ndarray) -> int:
        node = self._node(self.tables.shared(np.zeros(len(indices))))
        self.specs[node] = indices
        return node

    def _input(self, i: int, v: Value) -> int:
        space = self.tables.space(v)
        allowed = space.whole
        test = self.restrictions.inputs.get(i)
        if test is not None:
            kept = np.array([k for k in allowed if test(space.specs[k])], np.int64)
            allowed = kept if len(kept) else allowed
        node = self._spec_node(self.tables.shared(allowed))
        self.made[v.id] = (node, self.specs[node])
        if self.life.held[v.id]:
            end = len(self.graph.ops) + 1  # the caller holds its arguments, donated ones become results
            self._remember(node, 0, end, space.bytes[allowed])
            self._rented(node, space.bytes[allowed])
        return node

    def _rent_of(self, crossing: Crossing) -> float:
        """How many times a lane's bytes are held as long as its loop runs."""
        if not crossing.lane.is_entering or self.graph.depths[crossing.opening]:
            return 0.0
        if not crossing.lane.is_stacked:
            return 1.0
        outside = [self.graph.ops[i].inputs[p] for i, p, stacked in crossing.reads if stacked]
        streams = all(isinstance(a, Value) and a.id in self.life.streams for a in outside)
        return float(IN_FLIGHT) if streams else 0.0

    def _rented(self, node: int, usage: np.ndarray) -> None:
        if self.rent:
            self.costs[node] = self.tables.shared(self.costs[node] + self.rent * usage)

    def _lane(self, crossing: Crossing) -> None:
        """One node for all ports of a lane; everything it makes is made as that node says."""
        specs = lane_specs(crossing, self.graph, self.tables)
        node = self._node(self.tables.shared(np.zeros(len(specs))))
        self.lanes.append(node)
        self.lane_specs.append(specs)
        rent = self._rent_of(crossing)
        for n, (v, stacked) in enumerate(crossing.makes):
            index = self._lane_index(len(self.lanes) - 1, v, stacked=stacked)
            self.made[v.id] = (node, index)
            if rent and not n:
                self._rented(node, rent * self.tables.space(v).bytes[index])
            if self.life.held[v.id] and v.id not in self.aliased:
                self._remember(node, self.life.begin[v.id], self.life.end[v.id], self.tables.space(v).bytes[index])

    def _lane_index(self, lane: int, v: Value, *, stacked: bool) -> np.ndarray:
        """For each state of a lane's node the index of its spec in the space of a value at one of its ports."""
        index = self.tables.space(v).index
        specs = self.lane_specs[lane]
        return self.tables.shared(np.array([index[s.stacked() if stacked else s] for s in specs], np.int64))

    def _remember(self, node: int, lo: int, hi: int, usage: np.ndarray) -> None:
        if self.limit is not None and hi > lo and usage.any():
            self.memory.append(Memory(node, lo, hi, self.tables.shared(usage)))

    def _op(self, op: Op) -> None:
        rule = self.rules[op.index]
        assert rule is not None
        table = self.tables.table(op, rule)
        kept = self._kept(op, table)
        states = self.states[op.index] = self._states(table, kept, self.graph.op_times[op.index])
        self.chosen[op.index] = (table, kept)
        node = self.op_nodes[op.index] = self._node(states.costs)
        for v, index in zip(op.outputs, states.results, strict=True):
            self.made[v.id] = (node, index)
            if self.life.held[v.id] and v.id not in self.aliased:
                self._remember(node, self.life.begin[v.id], self.life.end[v.id], self.tables.space(v).bytes[index])

    def _kept(self, op: Op, table: Table) -> np.ndarray:
        """The strategies that the restrictions leave, as indices; all where they would leave none."""
        mask = self.restrictions.steps(op, table) if self.restrictions.steps is not None else None
        if mask is None or not mask.any():
            return self.tables.shared(np.arange(len(table.strategies)))
        return self.tables.shared(np.flatnonzero(mask))

    def _states(self, table: Table, kept: np.ndarray, times: int) -> _States:
        key = id(table), id(kept), times
        if key not in self.known_states:
            shared = self.tables.shared
            self.known_states[key] = _States(
                shared(table.seconds[kept] * times),
                tuple(None if index is None else shared(index[kept]) for index in table.operands),
                tuple(shared(index[kept]) for index in table.results),
            )
        return self.known_states[key]

    def _output(self, i: int, a: object) -> int:
        if i in self.state or not isinstance(a, Value) or self.graph.is_free(a):
            return -1
        return self._spec_node(self.tables.shared(self.tables.space(a).whole))

    def _wire(self, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
        """Copy nodes for values with several readers, and all edges."""
        n = len(self.graph.ops)
        readers: dict[int, list[Reader]] = {}
        for op in self.graph.ops:
            if not op.is_free:
                for i, a in enumerate(op.inputs):
                    if isinstance(a, Value) and not self.graph.is_free(a):
                        readers.setdefault(a.id, []).append((op.index, i))
        for i, a in enumerate(self.graph.outputs):
            if isinstance(a, Value) and not self.graph.is_free(a):
                readers.setdefault(a.id, []).append((n, i))
        for value, found in readers.items():
            self._wire_value(self.graph.values[value], found, inputs, outputs)

    def _wire_value(self, v: Value, found: list[Reader], inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
        by_phase: dict[str, list[Reader]] = {}
        for r in found:
            by_phase.setdefault(self._phase(r), []).append(r)
        parent: int | None = None
        if len(by_phase) > 1:
            parent = self._copy(v, None, tuple(found))
        for phase in PHASES:
            group = by_phase.get(phase, [])
            alone = len(group) == 1 and not self._counts(v, group)
            source = self._copy(v, parent, tuple(group)) if group and not alone else parent
            for r in group:
                own = self._counts(v, [r]) and (len(group) == 1 or self._enters(r))
                copy = self._copy(v, source, (r,)) if own and len(group) > 1 else source
                self.reads[r] = copy
                self._edge(v, copy, *self._target(v, r, inputs, outputs), as_is=own or v.id in self.life.streams)

    def _enters(self, r: Reader) -> bool:
        """Whether a loop or branch reads it from outside: what it reads is there as long as it runs."""
        op = self.graph.ops[r[0]] if r[0] < len(self.graph.ops) else None
        return op is not None and op.region is not None and op.region.bodies > 0 and op.border == 0

    def _phase(self, r: Reader) -> str:
        return self.graph.ops[r[0]].phase if r[0] < len(self.graph.ops) else "update"

    def _counts(self, v: Value, found: Sequence[Reader]) -> bool:
        """Whether a copy of this value for a single reader could matter to the memory limit.

        What a loop reads is there at one time with all else that it reads.
        """
        if self.limit is None or v.id in self.life.streams:
            return False
        beside = max((len(self.graph.ops[r[0]].inputs) for r in found if self._enters(r)), default=1)
        return v.nbytes * beside > self.limit * SMALL

    def _copy(self, v: Value, parent: int | None, found: tuple[Reader, ...]) -> int:
        """A copy node. Under a limit its states are doubled: the value itself, or a copy that takes memory."""
        space = self.tables.space(v)
        every = np.arange(len(space.specs))
        copies = self.copies.setdefault(v.id, [])
        if self.limit is None:
            node = self._spec_node(self.tables.shared(every))
            self._edge(v, parent, node, self.specs[node])
        else:
            node = self._spec_node(self.tables.shared(np.concatenate([every, every])))
            u, rows = self.made[v.id] if parent is None else self._copy_rows(v, parent)
            self.edges.append(Edge(u, node, self.tables.same_or_copy(space, rows, self.graph.times[v.id])))
            usage = np.concatenate([np.zeros(len(every), np.int64), space.bytes])
            lo = min(r[0] for r in found)
            hi = max(self.life.use[i][p] if i < len(self.life.use) else i + 1 for i, p in found)
            self._remember(node, lo, hi, usage)
        copies.append(CopyNode(node, parent, found))
        return len(copies) - 1

    def _copy_rows(self, v: Value, copy: int) -> tuple[int, np.ndarray]:
        node = self.copies[v.id][copy].node
        return node, self.specs[node]

    def _edge(self, v: Value, source: int | None, node: int, index: np.ndarray, *, as_is: bool = False) -> None:
        """The price between a value (or a copy of it) and a node; `as_is`: the node takes the copy as it is."""
        if source is None:
            u, rows = self.made[v.id]
        else:
            u, rows = self._copy_rows(v, source)
        space = self.tables.space(v)
        matrix = (
            self.tables.same(rows, index) if as_is else self.tables.matrix(space, rows, index, self.graph.times[v.id])
        )
        if u != node:
            self.edges.append(Edge(u, node, matrix))
        else:  # an op that returns its own operand's state: its own choice pays
            extra = np.diagonal(matrix)
            self.costs[node] = self.tables.shared(self.costs[node] + extra)

    def _target(self, v: Value, r: Reader, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> tuple[int, np.ndarray]:
        """(node, spec index of each of its states) of what a reader wants."""
        i, position = r
        if i == len(self.graph.ops):
            if position not in self.state:
                return outputs[position], self.specs[outputs[position]]
            came = self.graph.inputs[self.state[position]]
            node = inputs[self.state[position]]
            specs, index = self.tables.space(came).specs, self.tables.space(v).index
            return node, self.tables.shared(np.array([index[specs[k]] for k in self.specs[node]], np.int64))
        op = self.graph.ops[i]
        if op.region is not None:
            lane, stacked = self.graph.lane_read[i, position]
            return self.lanes[lane], self._lane_index(lane, v, stacked=stacked)
        index = self.states[i].operands[position]
        assert index is not None
        return self.op_nodes[i], index
