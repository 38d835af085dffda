"""Strategies with their prices as tables, shared by all ops of the same structure.

A 96-layer model has a few hundred distinct tables; arrays are shared by identity, which is what lets the solver share
work between identical layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autosharding.graph import Graph, Literal, Op, Value
from autosharding.plan import Exchange as PlannedExchange
from autosharding.planner.liveness import Liveness, is_elementwise
from autosharding.reshard import SpecSpace
from autosharding.rules import Exchange, Rule, Shard
from autosharding.strategies import Strategy, strategies
from cost_model import Topology, roofline_seconds


@dataclass(frozen=True)
class Table:
    """The strategies of one kind of op.

    Attributes:
        strategies: one for each state of the node.
        seconds: float64 [k].
        operands: for each input int64 [k], the index of the spec it reads in its value's space; None where it is free.
        results: for each output int64 [k].
    """

    strategies: tuple[Strategy, ...]
    seconds: np.ndarray
    operands: tuple[np.ndarray | None, ...]
    results: tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class Known:
    """What was made for graphs on one topology, and serves all others with ops of the same structure."""

    spaces: dict[Any, SpecSpace] = field(default_factory=dict)
    tables: dict[Any, Table] = field(default_factory=dict)
    arrays: dict[Any, np.ndarray] = field(default_factory=dict)
    matrices: dict[Any, np.ndarray] = field(default_factory=dict)
    held: list[Any] = field(default_factory=list)
    """What the keys of `matrices` name by identity."""


class Tables:
    """Makes and remembers spec spaces, tables and edge matrices for one graph on one topology."""

    def __init__(
        self,
        graph: Graph,
        topology: Topology,
        monoids: tuple[str | None, ...],
        life: Liveness,
        known: Known | None = None,
    ) -> None:
        self.graph = graph
        self.topology = topology
        self.monoids = monoids
        self.life = life
        self.mesh = dict(zip(topology.axis_names, topology.sizes, strict=True))
        known = known or Known()
        self._spaces, self._tables, self._arrays = known.spaces, known.tables, known.arrays
        self._matrices, self._held = known.matrices, known.held
        self._space_of: dict[int, SpecSpace] = {}
        self._facts = [
            None if graph.is_free(v) else (monoid, there)
            for v, monoid, there in zip(graph.values, monoids, life.materialised, strict=True)
        ]
        self._table_of: dict[Any, Table] = {}

    def space(self, value: Value) -> SpecSpace:
        """All specs of a value of the graph."""
        if value.id not in self._space_of:
            self._space_of[value.id] = self._shared_space(value)
        return self._space_of[value.id]

    def _shared_space(self, value: Value) -> SpecSpace:
        key_like = value.dtype.startswith("key")
        key = (value.shape, value.itemsize, self.monoids[value.id], key_like)
        if key not in self._spaces:
            self._spaces[key] = SpecSpace(
                value.shape, value.itemsize, self.monoids[value.id], self.topology, splittable=not key_like
            )
        return self._spaces[key]

    def shared(self, array: np.ndarray) -> np.ndarray:
        """The one array of these contents."""
        key = (array.dtype.str, array.shape, array.tobytes())
        return self._arrays.setdefault(key, array)

    def matrix(self, space: SpecSpace, rows: np.ndarray, cols: np.ndarray, times: int) -> np.ndarray:
        """float64 [rows, cols]: the price of so many reshards between two nodes' states, shared."""
        key = (id(space), id(rows), id(cols), times)
        if key not in self._matrices:
            self._held += [rows, cols]
            self._matrices[key] = self.shared(_repeated(space.seconds[np.ix_(rows, cols)], times))
        return self._matrices[key]

    def same(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """float64 [rows, cols]: free where the specs are equal, else forbidden."""
        key = (id(rows), id(cols), "same")
        if key not in self._matrices:
            self._held += [rows, cols]
            self._matrices[key] = self.shared(np.where(rows[:, None] == cols[None, :], 0.0, np.inf))
        return self._matrices[key]

    def same_or_copy(self, space: SpecSpace, rows: np.ndarray, times: int) -> np.ndarray:
        """float64 [rows, 2 n]: first the value as it is, at no cost, then copies of it in every other spec."""
        key = (id(space), id(rows), "copy", times)
        if key not in self._matrices:
            self._held.append(rows)
            n = len(space.specs)
            same = np.full((len(rows), n), np.inf)
            same[np.arange(len(rows)), rows] = 0.0
            copy = _repeated(space.seconds[rows], times)
            copy[np.arange(len(rows)), rows] = np.inf
            self._matrices[key] = self.shared(np.concatenate([same, copy], axis=1))
        return self._matrices[key]

    def table(self, op: Op, rule: Rule) -> Table:
        """The strategies of an op of the graph, priced."""
        here = self.graph.kinds[op.index], tuple(self._facts[v.id] for v in (*op.values, *op.outputs))
        if here not in self._table_of:
            key = self._key(op, rule)
            if key not in self._tables:
                self._tables[key] = self._make(op, rule)
            self._table_of[here] = self._tables[key]
        return self._table_of[here]

    def _type(self, a: Value | Literal) -> Any:
        if isinstance(a, Literal) or self.graph.is_free(a):
            return (None, a.shape)
        return (a.shape, a.itemsize, a.dtype, self._facts[a.id])

    def _key(self, op: Op, rule: Rule) -> Any:
        return (
            op.name,
            (rule.operands, rule.results, rule.whole, rule.linear, rule.moves_data, rule.added, rule.slides),
            (tuple(rule.reduced.items()), tuple(rule.sizes.items())),
            rule.flops,
            rule.known,
            str(sorted(op.params.items())) if rule.admits or rule.exchanges else "",
            rule.specs,
            tuple(map(self._type, op.inputs)),
            tuple(map(self._type, op.outputs)),
        )

    def _make(self, op: Op, rule: Rule) -> Table:
        contraction = bool(rule.reduced) and rule.flops > 2 * sum(a.size for a in op.values)
        found = strategies(
            op,
            rule,
            self.mesh,
            [self.monoids[a.id] if isinstance(a, Value) else "sum" for a in op.inputs],
            [self.monoids[v.id] for v in op.outputs],
            partial_operands=not contraction,  # measured: partial operands of a matmul never pay
        )
        found = tuple(s for s in found if self._reachable(op, s))
        if contraction:  # the same matmul on several devices never pays either, and Alpa's space has none
            most = max(s.parts(self.mesh) for s in found)
            found = tuple(s for s in found if s.parts(self.mesh) == most)
        operands = []
        for i, a in enumerate(op.inputs):
            if isinstance(a, Literal) or self.graph.is_free(a):
                operands.append(None)
            else:
                index = self.space(a).index
                operands.append(self.shared(np.array([index[s.operands[i]] for s in found], np.int64)))
        results = [
            self.shared(np.array([self.space(v).index[s.results[j]] for s in found], np.int64))
            for j, v in enumerate(op.outputs)
        ]
        seconds = self.shared(np.array([self._seconds(op, rule, s) for s in found], np.float64))
        return Table(found, seconds, tuple(operands), tuple(results))

    def _reachable(self, op: Op, s: Strategy) -> bool:
        pairs = [(a, spec) for a, spec in zip(op.inputs, s.operands, strict=True) if isinstance(a, Value)]
        pairs += list(zip(op.outputs, s.results, strict=True))
        return all(spec in self.space(v).index for v, spec in pairs if not self.graph.is_free(v))

    def _seconds(self, op: Op, rule: Rule, s: Strategy) -> float:
        """Roofline on one device's share plus what the op exchanges; only what is materialised moves through memory."""
        moved = 0
        for a, spec in [*zip(op.inputs, s.operands, strict=True), *zip(op.outputs, s.results, strict=True)]:
            if isinstance(a, Value) and self.life.materialised[a.id]:
                moved += spec.local_bytes(a.shape, a.itemsize, self.mesh)
        dtype = op.outputs[0].dtype_name if op.outputs else "float32"
        launches = bool(op.outputs) and self.life.materialised[op.outputs[0].id]
        flops = 0.0 if is_elementwise(op) and not launches else rule.flops / s.parts(self.mesh)
        exchanged = sum(e.seconds for _, e in exchanges(op, rule, s, self.topology))
        return exchanged + roofline_seconds(self.topology.device, flops, moved, dtype, floor=launches)


def exchanges(op: Op, rule: Rule, s: Strategy, topology: Topology) -> list[tuple[Exchange, PlannedExchange]]:
    """The collectives that an op makes itself under a strategy: as its rule says, and priced."""
    if rule.exchanges is None or not (s.factors or rule.specs):
        return []
    shard = Shard(op, rule, dict(s.factors), s.operands, s.results, topology.shape)
    found = []
    for e in rule.exchanges(shard):
        size = e.elements * e.itemsize
        seconds = topology.seconds(e.kind, e.axes, size)
        found.append((e, PlannedExchange(e.kind, e.axes, size, e.elements, e.holds * e.itemsize, seconds)))
    return found


def _repeated(seconds: np.ndarray, times: int) -> np.ndarray:
    """The price of so many; what is forbidden stays so when it is done 0 times."""
    return seconds * times if times else np.where(np.isfinite(seconds), 0.0, np.inf)
