"""One problem, asked again and again: under another limit, with other pins. What was found before is used again.

Presolve is made to hold for every larger limit too: a moment that cannot bind does not bind under it either, and
strategies that do not fit now may then, so they stay. Choices hold for any limit; each is a cut of the dual function,
and together they tell the prices of memory before anything is solved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from ilp.clock import Clock
from ilp.presolve import Reduced, presolve
from ilp.problem import Problem
from ilp.solution import Progress, Solution
from ilp.solve import solve_reduced, with_fixed

__all__ = ["Resolver"]


class Resolver:
    """A problem with all that was found out about it so far. Its own limit is the first one asked for."""

    def __init__(self, problem: Problem) -> None:
        problem.verify()
        self.problem = problem
        self._choices: list[tuple[int, ...]] = []
        self._pins: dict[int, int] = {}
        self._reduced: Reduced | None = None
        self._limit: int | None = None
        """The limit that ``_reduced`` was made for."""
        self._seen: tuple[np.ndarray, ...] = ()
        """Choices of the reduced problem."""

    def solve(
        self,
        *,
        limit: int | None,
        fixed: Mapping[int, int] | None = None,
        seconds: float | None = None,
        gap: float = 1e-4,
        work: int | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Solution:
        """Solve under ``limit`` bytes (None = no limit) and pins; the other arguments are those of ``solve``.

        Never worse than an earlier answer that is feasible now.
        """
        asked = with_fixed(replace(self.problem, limit=limit), fixed or {})
        clock = Clock(seconds, work, gap, progress)
        reduced = self._reduce(asked, dict(fixed or {}), clock)
        fitting = [choice for choice in self._choices if asked.feasible(choice)]
        start = min(fitting, key=asked.evaluate, default=None)
        solution, seen = solve_reduced(asked, reduced, clock, start, self._seen)
        self._seen = seen or self._seen
        if solution.choice:
            self._choices.append(solution.choice)
        return solution

    def _reduce(self, asked: Problem, pins: dict[int, int], clock: Clock) -> Reduced:
        """Presolve, unless what was presolved before still holds."""
        old = self._reduced
        if old is not None and old.small is not None and pins == self._pins and self._covers(asked.limit):
            if self._limit is None or asked.limit is None or old.small.limit is None:
                return old
            return replace(old, small=replace(old.small, limit=old.small.limit + asked.limit - self._limit))
        clock.spend(sum(map(len, asked.costs)))
        self._reduced, self._limit, self._pins, self._seen = presolve(asked, for_larger=True), asked.limit, pins, ()
        return self._reduced

    def _covers(self, limit: int | None) -> bool:
        """Whether presolve for the old limit says the truth about this one."""
        if self._limit is None or limit is None:
            return self._limit == limit
        return limit >= self._limit
