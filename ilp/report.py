"""A problem in words: its sizes, what presolve leaves of it, where memory binds."""

from __future__ import annotations

import numpy as np

from ilp.formulate import binding_times
from ilp.infeasible import smallest_profile
from ilp.mip import entries
from ilp.presolve import presolve
from ilp.problem import Problem

__all__ = ["report"]


def report(problem: Problem) -> str:
    """Return a few lines."""
    return "\n".join([str(problem), *_structure(problem), *_memory(problem), _presolved(problem)])


def _structure(problem: Problem) -> list[str]:
    degree = np.zeros(len(problem.costs), dtype=np.int64)
    for edge in problem.edges:
        degree[edge.u] += 1
        degree[edge.v] += 1
    largest = max(map(len, problem.costs), default=0)
    tables = {id(edge.cost): edge.cost for edge in problem.edges}.values()
    total = sum(table.size for table in tables)
    forbidden = sum(int(np.isinf(table).sum()) for table in tables)
    return [
        f"strategies: at most {largest} per node; table entries: {entries(problem)} in all edges, {total} distinct, "
        f"{forbidden / max(total, 1):.0%} of these forbidden",
        f"degree: at most {degree.max(initial=0)}, {np.mean(degree <= 1) if len(degree) else 0:.0%} of the nodes "
        "have one edge or none",
    ]


def _memory(problem: Problem) -> list[str]:
    if problem.limit is None:
        return ["memory: no limit"]
    least = smallest_profile(problem)
    if not len(least):
        return [f"memory: nothing is held; the limit is {problem.limit} bytes"]
    at = int(np.argmax(least))
    lo, hi = problem.spans
    live = int(((lo <= at) & (at < hi)).sum())
    return [
        f"memory: limit {problem.limit} bytes, {len(binding_times(problem))} of {len(problem.times)} moments can bind",
        f"at time {int(problem.times[at])} the {live} rows alive hold at least {int(least[at])} bytes, "
        f"{least[at] / max(problem.limit, 1):.1%} of the limit",
    ]


def _presolved(problem: Problem) -> str:
    small = presolve(problem).small
    if small is None:
        return "presolve: nothing is feasible"
    held = len({row.node for row in small.memory})
    return (
        f"presolve leaves {len(small.costs)} nodes ({held} that hold memory), {len(small.edges)} edges, "
        f"{sum(map(len, small.costs))} strategies, {entries(small)} table entries, {len(small.times)} moments"
    )
