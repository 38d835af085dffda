"""The textbook way: the whole formulation to a stock solver, nothing clever in between."""

from __future__ import annotations

import math
import time
from typing import Literal

import numpy as np

from ilp.engines import Engine, Outcome, Stop, run
from ilp.formulate import Formulation, formulate
from ilp.infeasible import explain
from ilp.problem import Problem
from ilp.solution import Solution

__all__ = ["solve_textbook"]


def solve_textbook(
    problem: Problem,
    solver: Engine = "highs",
    *,
    relax: bool = False,
    edges: Literal["continuous", "binary"] = "continuous",
    seconds: float | None = None,
) -> Solution:
    """Equations (1)-(4) by HiGHS, CBC or CP-SAT.

    ``relax`` solves the linear relaxation: then only ``bound`` (and ``objective``, equal to it) mean anything,
    ``choice`` is empty unless the relaxation happens to be integral.
    """
    problem.verify()
    began = time.perf_counter()
    formulation = formulate(problem, edges=edges)
    outcome, work = _solve(problem, formulation, solver, Stop(seconds), relax)
    spent = time.perf_counter() - began
    if outcome.infeasible:
        return Solution((), math.inf, math.inf, "infeasible", spent, work, infeasibility=explain(problem))
    bound = outcome.bound / formulation.scale
    if outcome.x is None:
        return Solution((), math.inf, bound, "feasible", spent, work)
    if relax:
        return _relaxed(problem, formulation, outcome.x, bound, spent, work)
    choice = formulation.choice(outcome.x)
    cost = problem.evaluate(choice)
    closed = outcome.objective - outcome.bound <= 1e-8 * abs(outcome.objective)
    peak = problem.peak(choice)[0]
    return Solution(
        choice,
        cost,
        cost if closed else min(bound, cost),
        "optimal" if closed else "feasible",
        spent,
        work,
        peak,
    )


def _solve(problem: Problem, formulation: Formulation, solver: Engine, stop: Stop, relax: bool) -> tuple[Outcome, int]:
    """Solve until the choice fits in exact integers: a solver's tolerance may let a few bytes too many through."""
    program = formulation.program
    work = program.width
    while True:
        outcome = run(program, solver, stop, relax=relax)
        if relax or outcome.x is None or problem.limit is None:
            return outcome, work
        choice = formulation.choice(outcome.x)
        peak, moment = problem.peak(choice)
        if peak <= problem.limit:
            return outcome, work
        forbid(formulation, problem, choice, moment)
        work += program.width


def forbid(formulation: Formulation, problem: Problem, choice: tuple[int, ...], moment: int) -> None:
    """Cut off what ``choice`` holds at ``moment``: not all of the nodes alive there may choose so together."""
    live = sorted({m.node for m in problem.memory if m.lo <= moment < m.hi})
    taken = np.array([formulation.s[node][choice[node]] for node in live])
    formulation.program.rows("forbid", [(np.zeros(1, np.int64), taken, 1.0)], -np.inf, len(live) - 1.0, 1)


def _relaxed(
    problem: Problem, formulation: Formulation, x: np.ndarray, bound: float, spent: float, work: int
) -> Solution:
    integral = all(abs(x[s].max() - 1.0) < 1e-6 for s in formulation.s)
    choice = formulation.choice(x) if integral else ()
    peak = problem.peak(choice)[0] if integral else 0
    return Solution(choice, bound, bound, "optimal", spent, work, peak)
