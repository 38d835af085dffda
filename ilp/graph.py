"""The working copy that reductions shrink: a simple graph over shared tables, and the steps that undo it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ilp.formulate import binding_times
from ilp.problem import Edge, Memory, Problem
from ilp.tables import Table, Tables
from ilp.undo import Eliminated, Kept, Merged, Settled, Step, replay

__all__ = ["Graph", "NothingLeft", "least_between"]


class NothingLeft(Exception):
    """Every choice is forbidden, or does not fit."""


def least_between(values: np.ndarray, begins: Sequence[int], ends: Sequence[int]) -> np.ndarray:
    """The least of ``values[lo:hi]`` for each of many spans, none of them empty.

    Each span is covered by two windows whose width is a power of two (M. A. Bender and M. Farach-Colton, "The LCA
    problem revisited", LATIN 2000, section 3).
    """
    lo, hi = np.asarray(begins, dtype=np.int64), np.asarray(ends, dtype=np.int64)
    level = np.frexp(hi - lo)[1] - 1
    out = np.empty(len(lo), dtype=values.dtype)
    windows = values
    for power in range(int(level.max(initial=-1)) + 1):
        here = np.flatnonzero(level == power)
        out[here] = np.minimum(windows[lo[here]], windows[hi[here] - (1 << power)])
        windows = np.minimum(windows[: -(1 << power)], windows[1 << power :])
    return out


class Graph:
    """A problem being reduced. Every method keeps the optimum and writes down its undo."""

    def __init__(self, problem: Problem) -> None:
        self.tables = Tables()
        self.problem = problem
        self.constant = 0.0
        self.steps: list[Step] = []
        self.cost: list[Table | None] = [self.tables.shared(cost) for cost in problem.costs]
        self.near: list[dict[int, Table]] = [{} for _ in problem.costs]
        """near[u][v] is the matrix [k_u, k_v] between the neighbours u and v."""
        self.moments = binding_times(problem)
        self.room = np.full(len(self.moments), problem.limit or 0, dtype=np.int64)
        """Bytes left at each binding moment by what is settled."""
        self.held: list[dict[tuple[int, int], Table]] = [{} for _ in problem.costs]
        """held[u][lo, hi] are the bytes of u's strategies at the moments lo <= position < hi."""
        self.changed_edges: dict[tuple[int, int], None] = {}
        self.changed_nodes: dict[int, None] = dict.fromkeys(range(len(problem.costs)))
        for edge in problem.edges:
            self.join(edge.u, edge.v, self.tables.shared(edge.cost))
        begins = np.searchsorted(self.moments, [row.lo for row in problem.memory]).tolist()
        ends = np.searchsorted(self.moments, [row.hi for row in problem.memory]).tolist()
        for row, lo, hi in zip(problem.memory, begins, ends, strict=True):
            if lo < hi:
                self.hold(row.node, lo, hi, self.tables.shared(row.usage))

    def join(self, u: int, v: int, matrix: Table) -> None:
        """Add an edge; parallel ones add up."""
        tables = self.tables
        if v in self.near[u]:
            matrix = tables.plus(self.near[u][v], matrix)
        self.near[u][v] = matrix
        self.near[v][u] = tables.turned(matrix)
        self.changed_edges[min(u, v), max(u, v)] = None
        self.touch(u)
        self.touch(v)

    def cut(self, u: int, v: int) -> None:
        """Take an edge away."""
        del self.near[u][v], self.near[v][u]
        self.touch(u)
        self.touch(v)

    def touch(self, u: int) -> None:
        """Look at u again."""
        self.changed_nodes[u] = None

    def charge(self, u: int, prices: Table) -> None:
        """Add to the costs of u."""
        self.cost[u] = self.tables.plus(self.costs(u), prices)
        self.touch(u)

    def costs(self, u: int) -> Table:
        """The costs of a node that is still there."""
        table = self.cost[u]
        assert table is not None
        return table

    def hold(self, u: int, lo: int, hi: int, usage: Table) -> None:
        """Add a memory row to u; what all its strategies hold alike is settled at once."""
        old = self.held[u].pop((lo, hi), None)
        if old is not None:
            usage = self.tables.plus(old, usage)
        least, most = usage.ends
        if least:
            self.room[lo:hi] -= least
            usage = self.tables.less(usage, least)
        if least < most:
            self.held[u][lo, hi] = usage

    def keep(self, u: int, mask: np.ndarray) -> None:
        """Take away the strategies of u that are not in the mask: no need, or no way, to choose them."""
        kept = np.flatnonzero(mask)
        if not len(kept):
            raise NothingLeft
        tables = self.tables
        at = tables.table(kept)
        self.steps.append(Kept(u, kept))
        self.cost[u] = tables.rows(self.costs(u), at)
        for v, matrix in list(self.near[u].items()):
            del self.near[u][v]
            self.join(u, v, tables.rows(matrix, at))
        rows = list(self.held[u].items())
        self.held[u].clear()
        for (lo, hi), usage in rows:
            self.hold(u, lo, hi, tables.rows(usage, at))
        self.touch(u)

    def settle(self, u: int) -> None:
        """Remove a node with a single strategy: its edges become its neighbours' costs."""
        cost = float(self.costs(u).array[0])
        if not np.isfinite(cost):
            raise NothingLeft
        self.constant += cost
        for v, matrix in list(self.near[u].items()):
            self.charge(v, self.tables.row(matrix, 0))
        self.remove(u)
        self.steps.append(Settled(u))

    def merge(self, v: int, u: int, f: Table) -> None:
        """Remove v, whose strategy f[x_u] the choice of u dictates; its prices become those of u."""
        tables = self.tables
        matrix = self.near[u][v]
        self.cut(u, v)
        self.charge(u, tables.diagonal(matrix, f))
        self.charge(u, tables.rows(self.costs(v), f))
        for w, other in list(self.near[v].items()):
            self.join(u, w, tables.rows(other, f))
        for (lo, hi), usage in list(self.held[v].items()):
            self.hold(u, lo, hi, tables.rows(usage, f))
        self.remove(v)
        self.steps.append(Merged(v, u, f.array))

    def eliminate(self, u: int) -> None:
        """Remove a node of degree at most two without memory: always its best strategy for what is around it."""
        tables, cost = self.tables, self.costs(u)
        around = list(self.near[u].items())
        self.steps.append(Eliminated(u, cost.array, tuple((v, matrix.array) for v, matrix in around)))
        self.remove(u)
        if not around:
            self.constant += float(cost.array.min())
        elif len(around) == 1:
            self.charge(around[0][0], tables.least(cost, around[0][1]))
        else:
            (v, a), (w, b) = around
            self.join(v, w, tables.through(cost, a, b))

    def remove(self, u: int) -> None:
        """Forget u and its edges."""
        for v in list(self.near[u]):
            self.cut(u, v)
        self.cost[u] = None
        self.held[u] = {}

    def drop_slack_moments(self) -> None:
        """Forget the moments at which everything fits, whatever is chosen."""
        steps = np.zeros(len(self.room) + 1, dtype=np.int64)
        for rows in self.held:
            for (lo, hi), usage in rows.items():
                _, most = usage.ends
                steps[lo] += most
                steps[hi] -= most
        if (self.room < 0).any():
            raise NothingLeft
        binding = np.cumsum(steps)[:-1] > self.room
        if binding.all():
            return
        at = np.concatenate(([0], np.cumsum(binding)))
        self.moments, self.room = self.moments[binding], self.room[binding]
        for u, rows in enumerate(self.held):
            if rows:
                self.held[u] = {}
                for (lo, hi), usage in rows.items():
                    if at[lo] < at[hi]:
                        self.hold(u, int(at[lo]), int(at[hi]), usage)
                self.touch(u)

    def drop_unfit(self) -> None:
        """Take away the strategies that do not fit beside the fewest bytes that all other nodes hold."""
        fitting: dict[int, np.ndarray] = {}
        rows = [(u, lo, hi, usage) for u, held in enumerate(self.held) for (lo, hi), usage in held.items()]
        tightest = least_between(self.room, [row[1] for row in rows], [row[2] for row in rows])
        for (u, _, _, usage), room in zip(rows, tightest.tolist(), strict=True):
            if usage.ends[1] > room:
                fits = usage.array <= room
                fitting[u] = fitting[u] & fits if u in fitting else fits
        for u, mask in fitting.items():
            self.keep(u, mask)

    def small(self) -> tuple[Problem, tuple[int, ...]]:
        """What is left, as a problem, and which node each of its nodes was.

        Its last node has one strategy: it costs and holds what is settled.
        """
        left = [u for u, cost in enumerate(self.cost) if cost is not None]
        name = {u: at for at, u in enumerate(left)}
        costs = [self.costs(u).array for u in left]
        edges = [
            Edge(name[u], name[v], matrix.array)
            for u in left
            for v, matrix in self.near[u].items()
            if name[u] < name[v]
        ]
        memory = [Memory(name[u], lo, hi, usage.array) for u in left for (lo, hi), usage in self.held[u].items()]
        limit = int(self.room.max()) if len(self.room) else None
        if limit is not None:
            ends = [*(np.flatnonzero(np.diff(self.room)) + 1).tolist(), len(self.room)]
            lo = 0
            for hi in ends:
                memory.append(Memory(len(left), lo, hi, np.array([limit - self.room[lo]], dtype=np.int64)))
                lo = hi
        costs.append(np.array([self.constant]))
        small = Problem(self.problem.name, tuple(costs), tuple(edges), tuple(memory), limit)
        return small, tuple(left)

    def undo(self, left: tuple[int, ...], choice: tuple[int, ...]) -> tuple[int, ...]:
        """The choice of the original problem that a choice of ``small`` stands for, at the same cost."""
        return replay(self.steps, dict(zip(left, choice, strict=False)), len(self.cost))
