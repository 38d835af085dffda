"""The slow and obvious twin: try every choice."""

from __future__ import annotations

import itertools
import math
import time

from ilp.infeasible import explain
from ilp.problem import Problem
from ilp.solution import Solution

__all__ = ["brute_force"]


def brute_force(problem: Problem) -> Solution:
    """Enumerate all choices; for problems of a few nodes."""
    problem.verify()
    began = time.perf_counter()
    best, least = (), math.inf
    tried = 0
    for choice in itertools.product(*(range(len(cost)) for cost in problem.costs)):
        tried += 1
        cost = problem.evaluate(choice)
        if cost < least and (problem.limit is None or problem.peak(choice)[0] <= problem.limit):
            best, least = choice, cost
    seconds = time.perf_counter() - began
    if math.isinf(least):
        return Solution((), math.inf, math.inf, "infeasible", seconds, tried, infeasibility=explain(problem))
    return Solution(best, least, least, "optimal", seconds, tried, problem.peak(best)[0])
