"""From Problem to Solution."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ilp.problem import Problem
from ilp.solution import Progress, Solution
from ilp.textbook import solve_textbook, with_fixed

__all__ = ["solve"]


def solve(
    problem: Problem,
    *,
    seconds: float | None = None,
    gap: float = 1e-4,
    work: int | None = None,
    start: Sequence[int] | None = None,
    fixed: Mapping[int, int] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Solution:
    """Solve ``problem``; see the package's docstring."""
    del gap, work, start, progress
    return solve_textbook(with_fixed(problem, dict(fixed or {})), seconds=seconds)
