"""Smaller problems from bounds: strategies that cannot, or probably will not, be in a better choice go."""

from __future__ import annotations

import numpy as np

from ilp.presolve import Reduced, presolve
from ilp.problem import Problem
from ilp.relaxation import Relaxation

__all__ = ["kernel"]


def kernel(relaxation: Relaxation, ceiling: float, keep: np.ndarray | None) -> Reduced:
    """Forbid the strategies whose bound, when forced, exceeds ``ceiling`` (but not those of ``keep``), and presolve.

    With the best known cost as ceiling nothing better is lost: an optimum of what is left is an optimum.
    """
    at = relaxation.flat.at
    allowed = relaxation.margin <= ceiling
    if keep is not None:
        allowed[at[:-1] + keep] = True
    problem = relaxation.problem
    costs = tuple(
        cost if mask.all() else np.where(mask, cost, np.inf)
        for cost, mask in zip(problem.costs, np.split(allowed, at[1:-1]), strict=True)
    )
    return presolve(Problem(problem.name, costs, problem.edges, problem.memory, problem.limit))
