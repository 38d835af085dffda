"""The priced problem solved whole: what the least of cost + λ·(held - limit) is, and a choice that attains it.

With memory priced instead of limited nothing stands in the way of presolve, which leaves little of a compiler's own
graphs. Solving what is left gives more than messages on the limited problem do: the Lagrangian bound itself, which is
no less than the linear relaxation's, and choices that are optimal for some limit near the one asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ilp.clock import Clock
from ilp.memory import charge
from ilp.presolve import presolve
from ilp.problem import Problem
from ilp.relaxation import Relaxation

__all__ = ["Oracle", "collapses", "priced"]

COLLAPSED = 0.5
"""Share of the table entries that presolve may leave of a priced problem that is worth solving whole."""

Search = Callable[[Problem, Clock], tuple[tuple[int, ...] | None, float]]
"""Solves a presolved problem: a choice (or None) and a bound."""


def priced(relaxation: Relaxation, prices: np.ndarray) -> Problem:
    """The problem without limit in which each byte costs ``prices`` of its moments."""
    flat, problem = relaxation.flat, relaxation.problem
    cost = charge(flat.at, relaxation.rows, prices, relaxation.cost)
    return Problem(problem.name, _split(relaxation, cost), problem.edges)


def _split(relaxation: Relaxation, cost: np.ndarray) -> tuple[np.ndarray, ...]:
    """Per node its costs; forbidden ones are infinite again."""
    allowed = np.where(relaxation.cost < relaxation.big, cost, np.inf)
    return tuple(np.split(allowed, relaxation.flat.at[1:-1]))


def size(problem: Problem) -> int:
    """Table entries of the edges and nodes."""
    return sum(edge.cost.size for edge in problem.edges) + sum(map(len, problem.costs))


def collapses(relaxation: Relaxation) -> bool:
    """Whether presolve leaves little of the problem once memory is priced."""
    reduced = presolve(priced(relaxation, relaxation.prices))
    return reduced.small is not None and size(reduced.small) <= COLLAPSED * size(relaxation.problem)


@dataclass(slots=True)
class Oracle:
    """Solves priced problems and keeps what their bounds say."""

    relaxation: Relaxation
    search: Search
    gap: float

    def __call__(self, cost: np.ndarray, clock: Clock) -> tuple[np.ndarray | None, float]:
        """The best choice at these costs per strategy, and a bound of what any costs there."""
        relaxation = self.relaxation
        problem = relaxation.problem
        reduced = presolve(Problem(problem.name, _split(relaxation, cost), problem.edges))
        clock.spend(20 * len(cost))
        if reduced.small is None:
            return None, np.inf
        inner = clock.inner(self.gap)
        choice, bound = self.search(reduced.small, inner)
        return (None if choice is None else np.array(reduced.undo(choice), dtype=np.int64)), bound
