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
from ilp.presolve import Reduced, presolve
from ilp.problem import Problem
from ilp.relaxation import Relaxation
from ilp.solution import relative_gap

__all__ = ["Oracle"]

COLLAPSED = 0.5
"""Share of the table entries that presolve may leave of a priced problem that is worth solving whole."""

SHARE = 0.1
"""Of what is left of seconds or work, what one of many priced problems may take."""

Search = Callable[[Problem, Clock], tuple[tuple[int, ...] | None, float]]
"""Solves a presolved problem: a choice (or None) and a bound."""


def _split(relaxation: Relaxation, cost: np.ndarray) -> tuple[np.ndarray, ...]:
    """Per node its costs; forbidden ones are infinite again."""
    allowed = np.where(relaxation.cost < relaxation.big, cost, np.inf)
    return tuple(np.split(allowed, relaxation.flat.at[1:-1]))


def size(problem: Problem) -> int:
    """Table entries of the edges and nodes."""
    return sum(edge.cost.size for edge in problem.edges) + sum(map(len, problem.costs))


@dataclass(slots=True)
class Oracle:
    """Solves priced problems and keeps what their bounds say."""

    relaxation: Relaxation
    search: Search
    gap: float
    share: float = SHARE
    """Of what is left of seconds or work, what one priced problem may take."""
    quick: bool = True
    """Whether the last priced problem was solved to ``gap`` in its share."""
    free: Reduced | None = None
    """Memory at no price, presolved."""

    def collapses(self) -> bool:
        """Whether presolve leaves little of the problem once memory is priced."""
        self.free = self.reduced(self.relaxation.cost)
        small = self.free.small
        return small is not None and size(small) <= COLLAPSED * size(self.relaxation.problem)

    def reduced(self, cost: np.ndarray) -> Reduced:
        """The problem without limit at these costs per strategy, presolved."""
        problem = self.relaxation.problem
        return presolve(Problem(problem.name, _split(self.relaxation, cost), problem.edges))

    def __call__(self, cost: np.ndarray, clock: Clock) -> tuple[np.ndarray | None, float]:
        """The best choice at these costs per strategy, and a bound of what any costs there."""
        free = self.free if self.relaxation.cost is cost else None
        reduced = free or self.reduced(cost)
        clock.spend(20 * len(cost))
        if reduced.small is None:
            return None, np.inf
        choice, bound = self.search(reduced.small, clock.inner(self.gap, self.share))
        least = np.inf if choice is None else reduced.small.evaluate(choice)
        self.quick = relative_gap(least, bound) <= self.gap
        return (None if choice is None else np.array(reduced.undo(choice), dtype=np.int64)), bound
