"""Why a problem has no answer, in words and in figures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ilp.problem import Problem
from ilp.solution import Infeasibility

__all__ = ["explain", "smallest_profile"]


def smallest_profile(problem: Problem) -> np.ndarray:
    """A lower bound of the bytes held from each moment of ``problem.times``: every row at its smallest."""
    if not len(problem.times):
        return np.zeros(0, dtype=np.int64)
    steps = np.zeros(len(problem.times) + 1, dtype=np.int64)
    for row, lo, hi in zip(problem.memory, *problem.spans, strict=True):
        least = _smallest(problem, row.node, row.usage)
        steps[lo] += least
        steps[hi] -= least
    return np.cumsum(steps)[:-1]


def explain(problem: Problem, least: Callable[[], int | None] | None = None) -> Infeasibility:
    """Name the moment that cannot fit and who is alive there, or the prices that forbid everything.

    ``least`` finds a small limit that is feasible; without it the peak of the smallest strategies is tried.
    """
    if problem.limit is None or not len(problem.times):
        return Infeasibility(_forbidden(problem))
    profile = smallest_profile(problem)
    at = int(np.argmax(profile))
    moment, peak = int(problem.times[at]), int(profile[at])
    alive: dict[int, int] = {}
    for row in problem.memory:
        if row.lo <= moment < row.hi:
            alive[row.node] = alive.get(row.node, 0) + _smallest(problem, row.node, row.usage)
    ranked = tuple(sorted(alive.items(), key=lambda item: (-item[1], item[0])))
    limits = [_smallest_limit(problem), least() if least is not None else None]
    limit = min((each for each in limits if each is not None), default=None)
    if peak > problem.limit:
        reason = (
            f"Infeasible: at time {moment} the {len(ranked)} nodes alive hold at least {peak} bytes, "
            f"the limit is {problem.limit}."
        )
    else:
        reason = (
            f"Infeasible: no choice of allowed strategies stays within {problem.limit} bytes; the tightest "
            f"moment is time {moment}, where at least {peak} bytes are held by {len(ranked)} nodes."
        )
    reason += f" The largest there: {_names(ranked)}."
    reason += (
        f" A limit of {limit} bytes would do." if limit is not None else " Raise the limit or allow more strategies."
    )
    return Infeasibility(reason, moment, peak, ranked, limit)


def _smallest(problem: Problem, node: int, usage: np.ndarray) -> int:
    allowed = problem.costs[node] < np.inf
    return int(usage[allowed].min()) if allowed.any() else int(usage.min())


def _smallest_limit(problem: Problem) -> int | None:
    """Where every node may take its strategy of least bytes x time, the peak of that choice; None if it may not."""
    total = [np.zeros(len(cost)) for cost in problem.costs]
    for row in problem.memory:
        total[row.node] += row.usage * float(row.hi - row.lo)
    choice = [
        int(np.lexsort((cost, np.where(cost < np.inf, held, np.inf)))[0])
        for cost, held in zip(problem.costs, total, strict=True)
    ]
    return problem.peak(choice)[0] if problem.evaluate(choice) < np.inf else None


def _names(ranked: tuple[tuple[int, int], ...]) -> str:
    return ", ".join(f"node {node} ({held} bytes)" for node, held in ranked[:5])


def _forbidden(problem: Problem) -> str:
    for node, cost in enumerate(problem.costs):
        if not (cost < np.inf).any():
            return f"Infeasible: every strategy of node {node} is forbidden (cost inf)."
    for edge in problem.edges:
        if not (edge.cost < np.inf).any():
            return f"Infeasible: the edge between nodes {edge.u} and {edge.v} forbids every pair of strategies."
    return "Infeasible: the forbidden pairs leave no choice of one strategy per node; allow more of them."
