"""From Problem to Solution: presolve, search, undo, and an exact look at the answer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ilp.clock import Clock
from ilp.infeasible import explain
from ilp.least import least_peak, without_prices
from ilp.mip import entries
from ilp.pair import Post, partner
from ilp.presolve import Reduced, presolve
from ilp.problem import Problem, ProblemError
from ilp.search import Found, search
from ilp.solution import Progress, Solution, relative_gap

__all__ = ["solve", "solve_reduced", "with_fixed"]

PAIRED = 100_000
"""Table entries from which a second process is worth starting."""

LEAST_WORK = 1_000_000_000
"""Table entries looked at for the least feasible limit of an infeasible problem: about a second."""


def solve(
    problem: Problem,
    *,
    seconds: float | None = None,
    gap: float = 1e-4,
    work: int | None = None,
    start: Sequence[int] | None = None,
    fixed: Mapping[int, int] | None = None,
    cutoff: float = math.inf,
    least_limit: bool = True,
    progress: Callable[[Progress], None] | None = None,
    seed: int = 0,
    processes: int = 1,
    timer: Callable[[], float] = time.perf_counter,
) -> Solution:
    """Find a cheap choice that fits, and a bound on how much cheaper any could be.

    Stops at a relative ``gap``, after ``seconds``, or after ``work`` table entries looked at, whichever comes first;
    without ``seconds`` the answer is the same on every run. ``start`` is a choice to do no worse than (it is dropped
    if it is not feasible), ``fixed`` maps nodes to strategies they must take. Where only a choice cheaper than
    ``cutoff`` is of use, the search ends as soon as the bound is no less. An infeasible problem is an answer of that
    status, not an exception; it says what limit would do, if ``least_limit`` is wanted.

    ``seed`` is the search's; ``timer`` says what ``seconds`` are of. With two ``processes`` a second one looks for
    proofs while this one looks for choices (a script must then guard its main part by `if __name__ == "__main__"`).
    Without ``seconds`` one process does everything, so that the answer depends on nobody's pace.
    """
    clock = Clock(seconds, work, gap, progress, timer, cutoff=cutoff)
    problem.verify()
    asked = with_fixed(problem, fixed or {})
    if processes == 1 or seconds is None or entries(problem) < PAIRED:
        reduced = presolve(asked)
        clock.spend(sum(map(len, problem.costs)))
        return solve_reduced(asked, reduced, clock, start, seed=seed, least_limit=least_limit)[0]
    with partner(len(problem.costs) + 1, len(problem.times), _prove) as other:
        reduced = presolve(asked)
        post = None
        if reduced.small is not None and clock.left:
            post = other.begin(reduced.small, _Order(clock.left, gap, seed + 1, timer))
        return solve_reduced(asked, reduced, clock, start, seed=seed, post=post, least_limit=least_limit)[0]


@dataclass(frozen=True, slots=True)
class _Order:
    """What the second process is told besides the problem."""

    seconds: float
    gap: float
    seed: int
    timer: Callable[[], float]


def _prove(problem: Problem, post: Post, order: _Order) -> None:
    """The second process: prices, bounds, exact programs."""
    clock = Clock(order.seconds, None, order.gap, timer=order.timer)
    search(problem, clock, None, seed=order.seed, part="prove", post=post)


def solve_reduced(
    asked: Problem,
    reduced: Reduced,
    clock: Clock,
    start: Sequence[int] | None,
    known: Sequence[np.ndarray] = (),
    *,
    seed: int = 0,
    post: Post | None = None,
    least_limit: bool = True,
) -> tuple[Solution, tuple[np.ndarray, ...]]:
    """Solve what presolve left; return the answer, and the choices of the small problem met on the way."""
    if reduced.small is None:
        return _infeasible(asked, clock, least_limit), ()
    begin = None
    if start is not None and asked.feasible(start):
        begin = tuple(int(k) for k in start)
        clock.objective = asked.evaluate(begin)
    part = "all" if post is None else "improve"
    found = search(reduced.small, clock, None, known, seed=seed, part=part, post=post)
    if found.choice is None and begin is None and found.bound == math.inf:
        return _infeasible(asked, clock, least_limit), found.seen
    return _solution(asked, reduced, found, begin, clock), found.seen


def with_fixed(problem: Problem, fixed: Mapping[int, int]) -> Problem:
    """The same problem with every other strategy of the fixed nodes forbidden."""
    if not fixed:
        return problem
    costs = list(problem.costs)
    for node, k in fixed.items():
        if not 0 <= node < len(costs) or not 0 <= k < len(costs[node]):
            raise ProblemError(f"{problem.name}: fixed: node {node} has no strategy {k}.")
        only = np.full(len(costs[node]), np.inf)
        only[k] = costs[node][k]
        costs[node] = only
    return Problem(problem.name, tuple(costs), problem.edges, problem.memory, problem.limit)


def _infeasible(problem: Problem, clock: Clock, least_limit: bool) -> Solution:
    reason = explain(problem, least=(lambda: _least(problem)) if least_limit else None)
    return Solution((), math.inf, math.inf, "infeasible", clock.spent, clock.done, infeasibility=reason)


def _least(problem: Problem) -> int | None:
    """The least limit found to be feasible; None where the limit is not what forbids everything."""
    clock = Clock(None, LEAST_WORK, 0.0)
    reduced = presolve(without_prices(problem))
    if reduced.small is None:
        return None
    found = search(reduced.small, clock, None)
    return None if found.choice is None else least_peak(problem, reduced.undo(found.choice), clock)


def _solution(
    problem: Problem, reduced: Reduced, found: Found, begin: tuple[int, ...] | None, clock: Clock
) -> Solution:
    """Undo presolve, take the start where it is better, and check the answer against the problem itself."""
    choice = begin or ()
    cost = problem.evaluate(begin) if begin is not None else math.inf
    if found.choice is not None:
        other = reduced.undo(found.choice)
        if not problem.feasible(other):
            raise AssertionError(f"{problem.name}: the choice found is not feasible; this is an error in presolve.")
        if problem.evaluate(other) < cost:
            choice, cost = other, problem.evaluate(other)
    bound = min(found.bound, cost)
    if relative_gap(cost, bound) <= 1e-12:
        bound = cost
    done = bool(choice) and relative_gap(cost, bound) <= clock.gap
    return Solution(
        choice,
        cost,
        bound,
        "optimal" if done else "feasible",
        clock.spent,
        clock.done,
        problem.peak(choice)[0] if choice else 0,
        float(found.prices.sum()),
    )
