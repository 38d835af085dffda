"""Smaller problems by leaving strategies out: those that bounds rule out, or that no choice seen so far takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from ilp.flat import Flat
from ilp.memory import held
from ilp.presolve import Reduced, presolve
from ilp.problem import Edge, Memory, Problem
from ilp.relaxation import Relaxation

__all__ = ["below", "pairs_left", "restrict", "seen_in"]


def below(relaxation: Relaxation, ceiling: float, keep: np.ndarray | None) -> np.ndarray:
    """Mask of the strategies whose bound, when forced, is at most ``ceiling``, and of those of ``keep``.

    With the best known cost as ceiling nothing better is lost: an optimum of what is left is an optimum.
    """
    allowed = relaxation.margin <= ceiling
    if keep is not None:
        allowed[relaxation.flat.at[:-1] + keep] = True
    return allowed


def seen_in(relaxation: Relaxation, choices: list[np.ndarray]) -> np.ndarray:
    """Mask of the strategies that one of ``choices`` takes: what is left mixes them."""
    allowed = np.zeros(len(relaxation.cost), dtype=bool)
    for choice in choices:
        allowed[relaxation.flat.at[:-1] + choice] = True
    return allowed


def pairs_left(relaxation: Relaxation, allowed: np.ndarray) -> int:
    """How many pairs of allowed strategies the edges between undecided nodes have."""
    flat = relaxation.flat
    counts = np.add.reduceat(allowed.astype(np.int64), flat.at[:-1])
    near, far = _once(flat)[1:]
    pairs = counts[near] * counts[far]
    return int(pairs[(counts[near] > 1) & (counts[far] > 1)].sum())


def restrict(relaxation: Relaxation, allowed: np.ndarray) -> Reduced:
    """What is left when only ``allowed`` strategies may be taken, presolved."""
    flat = relaxation.flat
    counts = np.add.reduceat(allowed.astype(np.int64), flat.at[:-1])
    if not counts.all():
        return Reduced(None, lambda choice: choice)
    taken = np.where(counts == 1, _first(flat, allowed), -1)
    cost, constant = _settle(flat, relaxation.cost, taken)
    left = np.flatnonzero(taken < 0)
    kept = _Kept(relaxation, allowed, left)
    costs = [kept.cost(int(u), cost, relaxation.big) for u in left]
    costs.append(np.array([constant if constant < relaxation.big else np.inf]))
    problem = Problem(
        relaxation.problem.name,
        tuple(costs),
        tuple(kept.edges()),
        tuple(kept.memory(taken)),
        relaxation.problem.limit,
    )
    reduced = presolve(problem)
    return Reduced(reduced.small, lambda choice: kept.undo(taken, reduced.undo(choice)), moments=reduced.moments)


@dataclass(slots=True)
class _Kept:
    """Tables of the undecided nodes with the rows and columns that are left; equal ones made once."""

    relaxation: Relaxation
    allowed: np.ndarray
    left: np.ndarray

    def mask(self, u: int) -> np.ndarray:
        at = self.relaxation.flat.at
        return self.allowed[at[u] : at[u + 1]]

    def cost(self, u: int, cost: np.ndarray, big: float) -> np.ndarray:
        at = self.relaxation.flat.at
        prices = cost[at[u] : at[u + 1]][self.mask(u)]
        return np.where(prices < big, prices, np.inf)

    def edges(self) -> list[Edge]:
        flat, big = self.relaxation.flat, self.relaxation.big
        name = np.full(len(flat.at) - 1, -1)
        name[self.left] = np.arange(len(self.left))
        masks = {int(u): self.mask(u).tobytes() for u in self.left}
        sliced: dict[tuple[int, bytes, bytes], np.ndarray] = {}
        out = []
        slots, near, far = _once(flat)
        open_ = (name[near] >= 0) & (name[far] >= 0)
        matrices = flat.matrix[slots[open_]].tolist()
        for begin, u, v in zip(matrices, near[open_].tolist(), far[open_].tolist(), strict=True):
            key = (begin, masks[u], masks[v])
            if key not in sliced:
                a, b = self.mask(u), self.mask(v)
                matrix = flat.pool[begin : begin + len(a) * len(b)].reshape(len(a), len(b))[a][:, b]
                sliced[key] = np.where(matrix < big, matrix, np.inf)
            out.append(Edge(int(name[u]), int(name[v]), sliced[key]))
        return out

    def memory(self, taken: np.ndarray) -> list[Memory]:
        rows, problem = self.relaxation.rows, self.relaxation.problem
        if problem.limit is None:
            return []
        times, settled = problem.times, taken[rows.node] >= 0
        profile = held(
            rows._replace(node=rows.node[settled], lo=rows.lo[settled], hi=rows.hi[settled], at=rows.at[settled]),
            taken,
            len(times),
        )
        name = np.full(len(taken), -1)
        name[self.left] = np.arange(len(self.left))
        sliced: dict[tuple[int, bytes], np.ndarray] = {}
        out = []
        for r in np.flatnonzero(~settled).tolist():
            u, begin = int(rows.node[r]), int(rows.at[r])
            mask = self.mask(u)
            key = (begin, mask.tobytes())
            if key not in sliced:
                sliced[key] = rows.usage[begin : begin + len(mask)][mask]
            out.append(Memory(int(name[u]), int(times[rows.lo[r]]), int(times[rows.hi[r]]), sliced[key]))
        ends = [*(np.flatnonzero(np.diff(profile)) + 1).tolist(), len(times) - 1]
        lo = 0
        for hi in ends:
            if lo < hi and profile[lo]:
                out.append(Memory(len(self.left), int(times[lo]), int(times[hi]), profile[lo : lo + 1]))
            lo = hi
        return out

    def undo(self, taken: np.ndarray, choice: tuple[int, ...]) -> tuple[int, ...]:
        out = taken.copy()
        for u, k in zip(self.left.tolist(), choice[:-1], strict=True):
            out[u] = np.flatnonzero(self.mask(u))[k]
        return tuple(out.tolist())


def _once(flat: Flat) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each edge's slot at its earlier node, that node, and the later one."""
    near = np.repeat(np.arange(len(flat.at) - 1), np.diff(flat.slots))
    slots = np.flatnonzero(near < flat.far)
    return slots, near[slots], flat.far[slots]


def _first(flat: Flat, allowed: np.ndarray) -> np.ndarray:
    """Each node's first allowed strategy."""
    places = np.flatnonzero(allowed)
    return places[np.searchsorted(places, flat.at[:-1])] - flat.at[:-1]


@njit(cache=True)
def _settle(flat: Flat, cost: np.ndarray, taken: np.ndarray) -> tuple[np.ndarray, float]:
    """The costs with what settled nodes (taken >= 0) make of them, and what these cost among themselves."""
    out = cost.copy()
    constant = 0.0
    for u in range(len(taken)):
        if taken[u] < 0:
            continue
        constant += cost[flat.at[u] + taken[u]]
        for slot in range(flat.slots[u], flat.slots[u + 1]):
            v = flat.far[slot]
            k = flat.at[v + 1] - flat.at[v]
            row = flat.matrix[slot] + taken[u] * k
            if taken[v] < 0:
                for j in range(k):
                    out[flat.at[v] + j] += flat.pool[row + j]
            elif u < v:
                constant += flat.pool[row + taken[v]]
    return out, float(constant)
