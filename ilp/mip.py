"""An exact 0-1 program for a small problem: tight edge rows, and memory rows only where they are broken."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ilp.engines import Outcome, Stop, run_mathopt
from ilp.formulate import Formulation, fits, formulate, objective_scale
from ilp.problem import Problem

__all__ = ["Answer", "entries", "exact"]

MOST_AT_ONCE = 4
"""Moments added per round; each is the worst of what is broken and apart from the others."""

MOST_ROUNDS = 60
"""Rounds of adding moments before the best so far is handed back."""

CUTOFF = 1e-7
"""Relative distance above a known cost from which on nothing is looked for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The choice found (None if none), its cost, and a bound on every choice's cost."""

    choice: tuple[int, ...] | None
    objective: float
    bound: float
    status: Literal["optimal", "feasible", "infeasible"]


def entries(problem: Problem) -> int:
    """How many pairs of strategies the edges have: the columns of the 0-1 program."""
    return sum(edge.cost.size for edge in problem.edges)


def exact(
    problem: Problem,
    stop: Stop,
    *,
    start: tuple[int, ...] | None = None,
    around: float | None = None,
    known: float | None = None,
    hot: Sequence[int] = (),
) -> Answer:
    """Solve ``problem``: the relaxation first, then the 0-1 program, adding rows (4) as they are broken.

    ``start`` is a feasible choice to beat, ``around`` about what the optimum costs, ``known`` what some choice that
    fits is known to cost (nothing dearer is looked for), ``hot`` moments likely to bind.
    """
    if start is None and around is None:
        first = _exact(problem, stop, None, None, None, hot)
        again = first.choice is not None and abs(first.objective) * objective_scale(problem) < 1e3
        return _exact(problem, stop, first.choice, first.objective, None, hot) if again else first
    return _exact(problem, stop, start, around if start is None else problem.evaluate(start), known, hot)


def _exact(
    problem: Problem,
    stop: Stop,
    start: tuple[int, ...] | None,
    around: float | None,
    known: float | None,
    hot: Sequence[int],
) -> Answer:
    moments = list(hot) if problem.limit is not None else []
    bound = -math.inf
    relaxed = problem.limit is not None
    ceiling = math.inf if start is None or around is None else around + 1e-9 * abs(around)
    formulation = formulate(problem, moments=moments, ceiling=ceiling, around=around)
    most = None if known is None else (known + CUTOFF * abs(known)) * formulation.scale
    began = time.perf_counter()
    for _ in range(MOST_ROUNDS):
        left = None if stop.seconds is None else stop.seconds - (time.perf_counter() - began)
        if left is not None and left <= 0:
            break
        hint = None if relaxed or start is None else hinted(formulation, problem, start)
        cutoff = None if relaxed else most
        outcome = run_mathopt(
            formulation.program, "highs", replace(stop, seconds=left), relax=relaxed, hint=hint, cutoff=cutoff
        )
        if outcome.infeasible:
            return Answer(None, math.inf, math.inf, "infeasible")
        if math.isfinite(outcome.bound):
            bound = max(bound, outcome.bound / formulation.scale)
        if outcome.x is None:
            return Answer(None, math.inf, bound, "feasible")
        broken = worst(problem, formulation, outcome.x, moments)
        if not broken and not relaxed:
            peak, moment = problem.peak(formulation.choice(outcome.x))
            if problem.limit is None or peak <= problem.limit:
                return _answer(problem, formulation, outcome, bound)
            if moment in moments:
                _forbid(formulation, problem, outcome.x, moment)
            else:
                broken = [moment]
        relaxed = relaxed and bool(broken)
        for moment in broken:
            moments.append(moment)
            fits(formulation.program, problem, formulation.s, moment)
    return Answer(None, math.inf, bound, "feasible")


def _answer(problem: Problem, formulation: Formulation, outcome: Outcome, bound: float) -> Answer:
    assert outcome.x is not None
    choice = formulation.choice(outcome.x)
    cost = problem.evaluate(choice)
    closed = outcome.objective - outcome.bound <= 2e-9 * abs(outcome.objective)
    return Answer(choice, cost, cost if closed else min(bound, cost), "optimal" if closed else "feasible")


def hinted(formulation: Formulation, problem: Problem, start: tuple[int, ...]) -> np.ndarray:
    """The vector of the program that ``start`` is, edges included."""
    x = np.zeros(formulation.program.width)
    for s, k in zip(formulation.s, start, strict=True):
        x[s[k]] = 1.0
    for e, edge in zip(formulation.e, problem.edges, strict=True):
        x[e[start[edge.u], start[edge.v]]] = 1.0
    return x


def worst(problem: Problem, formulation: Formulation, x: np.ndarray, known: list[int]) -> list[int]:
    """Moments not yet known at which a (fractional) solution holds too much: the largest peaks, worst first."""
    if problem.limit is None or not len(problem.times):
        return []
    lo, hi = problem.spans
    steps = np.zeros(len(problem.times) + 1)
    for row, begin, end in zip(problem.memory, lo, hi, strict=True):
        amount = float(row.usage @ x[formulation.s[row.node]])
        steps[begin] += amount
        steps[end] -= amount
    excess = np.cumsum(steps)[:-1] - problem.limit
    excess[excess <= 1e-9 * problem.limit] = 0.0
    excess[np.searchsorted(problem.times, known)] = 0.0
    window = max(1, len(excess) // 50)
    found: list[int] = []
    while len(found) < MOST_AT_ONCE and excess.max() > 0:
        at = int(np.argmax(excess))
        found.append(int(problem.times[at]))
        excess[max(0, at - window) : at + window + 1] = 0.0
    return found


def _forbid(formulation: Formulation, problem: Problem, x: np.ndarray, moment: int) -> None:
    """Where rounding of the row lets a few bytes too many through: not all alive there may choose so together."""
    choice = formulation.choice(x)
    live = sorted({m.node for m in problem.memory if m.lo <= moment < m.hi})
    taken = np.array([formulation.s[node][choice[node]] for node in live])
    formulation.program.rows("forbid", [(np.zeros(1, np.int64), taken, 1.0)], -np.inf, len(live) - 1.0, 1)
