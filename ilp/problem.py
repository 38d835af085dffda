"""The noun that goes in: a graph of choices with prices on nodes and edges, and memory over time.

Floats are seconds, ints are bytes. A forbidden strategy or pair costs ``inf``: no sentinel stands for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

__all__ = ["Edge", "Memory", "Problem", "ProblemError"]


class ProblemError(ValueError):
    """The problem (or a choice, or a file holding one) is malformed; the message says where and what would do."""


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """Node ``node`` holds ``usage[k]`` bytes at every time ``lo <= t < hi`` when it takes strategy ``k``."""

    node: int
    lo: int
    hi: int
    usage: np.ndarray
    """int64 [k_node], bytes."""


@dataclass(frozen=True, slots=True, eq=False)
class Edge:
    """``cost[i, j]`` seconds when node ``u`` takes strategy i and node ``v`` takes j; ``inf`` forbids the pair.

    Equal edges share one array, by identity: the solver works on distinct arrays, not on edges.
    """

    u: int
    v: int
    cost: np.ndarray
    """float64 [k_u, k_v], seconds."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Choose one strategy per node: least cost, within ``limit`` bytes at every moment."""

    name: str
    costs: tuple[np.ndarray, ...]
    """Per node float64 [k_u], seconds; ``inf`` forbids the strategy."""
    edges: tuple[Edge, ...]
    """Parallel edges add up; an edge joins two different nodes."""
    memory: tuple[Memory, ...] = ()
    """Several rows per node add up."""
    limit: int | None = None
    """Bytes; None = no limit."""

    def __str__(self) -> str:
        """One line of sizes."""
        distinct = len({id(e.cost) for e in self.edges})
        limit = "no limit" if self.limit is None else f"limit {self.limit} bytes"
        return (
            f"{self.name}: {len(self.costs)} nodes, {len(self.edges)} edges ({distinct} distinct), "
            f"{sum(len(c) for c in self.costs)} strategies, {len(self.memory)} memory rows, {limit}"
        )

    def verify(self) -> None:
        """Raise ProblemError at the first thing wrong, in words."""
        _verify_costs(self)
        _verify_edges(self)
        _verify_memory(self)

    def check_choice(self, choice: Sequence[int]) -> None:
        """Raise ProblemError unless ``choice`` names one existing strategy per node."""
        if len(choice) != len(self.costs):
            raise ProblemError(
                f"{self.name}: the choice has {len(choice)} entries, the problem {len(self.costs)} nodes; "
                "give one strategy index per node."
            )
        for node, (k, cost) in enumerate(zip(choice, self.costs, strict=True)):
            if not 0 <= k < len(cost):
                raise ProblemError(
                    f"{self.name}: node {node} is given strategy {k}, but has strategies 0 to {len(cost) - 1}."
                )

    def evaluate(self, choice: Sequence[int]) -> float:
        """The objective (1) of a choice, in seconds; ``inf`` if it takes something forbidden. Memory does not count."""
        self.check_choice(choice)
        total = sum(float(cost[k]) for cost, k in zip(self.costs, choice, strict=True))
        return total + sum(float(e.cost[choice[e.u], choice[e.v]]) for e in self.edges)

    @cached_property
    def times(self) -> np.ndarray:
        """The moments at which a row starts or ends, sorted; memory is constant between two of them."""
        bounds = [t for m in self.memory if m.lo < m.hi for t in (m.lo, m.hi)]
        return np.unique(np.array(bounds, dtype=np.int64))

    @cached_property
    def spans(self) -> tuple[np.ndarray, np.ndarray]:
        """Start and end of each memory row, as positions in ``times``."""
        lo = np.searchsorted(self.times, [m.lo for m in self.memory])
        hi = np.searchsorted(self.times, [max(m.lo, m.hi) for m in self.memory])
        return lo, hi

    def profile(self, choice: Sequence[int]) -> np.ndarray:
        """Bytes held from each moment of ``times`` to the next (the last entry is always 0)."""
        if not len(self.times):
            return np.zeros(0, dtype=np.int64)
        held = np.array([int(m.usage[choice[m.node]]) for m in self.memory], dtype=np.int64)
        lo, hi = self.spans
        steps = np.zeros(len(self.times) + 1, dtype=np.int64)
        np.add.at(steps, lo, held)
        np.add.at(steps, hi, -held)
        return np.cumsum(steps)[:-1]

    def peak(self, choice: Sequence[int]) -> tuple[int, int]:
        """The largest number of bytes held at any moment, and the first moment at which it is held."""
        self.check_choice(choice)
        profile = self.profile(choice)
        if not len(profile):
            return 0, 0
        at = int(np.argmax(profile))
        return int(profile[at]), int(self.times[at])

    def feasible(self, choice: Sequence[int]) -> bool:
        """Nothing forbidden is taken, and memory fits at every moment."""
        fits = self.limit is None or self.peak(choice)[0] <= self.limit
        return fits and self.evaluate(choice) < np.inf


def _verify_costs(problem: Problem) -> None:
    checked: set[int] = set()
    for node, cost in enumerate(problem.costs):
        if id(cost) in checked:
            continue
        where = f"{problem.name}: node {node}: costs"
        if not isinstance(cost, np.ndarray) or cost.dtype != np.float64 or cost.ndim != 1:
            raise ProblemError(f"{where} must be a float64 vector, got {_kind(cost)}.")
        if not len(cost):
            raise ProblemError(f"{where} are empty: a node needs at least one strategy.")
        _verify_prices(cost, where)
        checked.add(id(cost))


def _verify_edges(problem: Problem) -> None:
    nodes = len(problem.costs)
    checked: set[int] = set()
    for at, edge in enumerate(problem.edges):
        where = f"{problem.name}: edge {at} ({edge.u}, {edge.v})"
        if not (0 <= edge.u < nodes and 0 <= edge.v < nodes):
            raise ProblemError(f"{where} names a node outside 0 to {nodes - 1}.")
        if edge.u == edge.v:
            raise ProblemError(f"{where} joins a node to itself; add its diagonal to the node's costs instead.")
        if not isinstance(edge.cost, np.ndarray) or edge.cost.dtype != np.float64:
            raise ProblemError(f"{where}: costs must be a float64 matrix, got {_kind(edge.cost)}.")
        want = (len(problem.costs[edge.u]), len(problem.costs[edge.v]))
        if edge.cost.shape != want:
            raise ProblemError(
                f"{where}: costs have shape {edge.cost.shape}, but the nodes have {want[0]} and {want[1]} strategies."
            )
        if id(edge.cost) not in checked:
            _verify_prices(edge.cost, where)
            checked.add(id(edge.cost))


def _verify_memory(problem: Problem) -> None:
    if problem.limit is not None and problem.limit < 0:
        raise ProblemError(f"{problem.name}: the memory limit is {problem.limit} bytes; it cannot be negative.")
    nodes = len(problem.costs)
    checked: set[int] = set()
    for at, row in enumerate(problem.memory):
        where = f"{problem.name}: memory row {at} (node {row.node}, times {row.lo} to {row.hi})"
        if not 0 <= row.node < nodes:
            raise ProblemError(f"{where} names a node outside 0 to {nodes - 1}.")
        if row.lo > row.hi:
            raise ProblemError(f"{where} ends before it begins; give lo <= hi (lo == hi holds nothing).")
        if not isinstance(row.usage, np.ndarray) or row.usage.dtype != np.int64:
            raise ProblemError(f"{where}: usage must be an int64 vector of bytes, got {_kind(row.usage)}.")
        if row.usage.shape != problem.costs[row.node].shape:
            raise ProblemError(
                f"{where}: usage has shape {row.usage.shape}, but the node has "
                f"{len(problem.costs[row.node])} strategies."
            )
        if id(row.usage) not in checked and (row.usage < 0).any():
            raise ProblemError(f"{where}: usage {int(row.usage.min())} bytes is negative.")
        checked.add(id(row.usage))


def _verify_prices(prices: np.ndarray, where: str) -> None:
    if np.isnan(prices).any():
        raise ProblemError(f"{where}: entry {tuple(np.argwhere(np.isnan(prices))[0].tolist())} is not a number.")
    if (prices == -np.inf).any():
        raise ProblemError(f"{where}: a cost is minus infinity; only plus infinity (forbidden) has a meaning.")


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} with shape {value.shape}"
    return type(value).__name__
