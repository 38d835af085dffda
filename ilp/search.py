"""The search over a presolved problem: bound, round, fix, and the exact program on what is left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ilp.clock import Clock
from ilp.engines import Stop
from ilp.incumbent import Incumbent
from ilp.kernel import below, pairs_left, restrict, seen_in
from ilp.mip import Answer, entries, exact
from ilp.oracle import Oracle
from ilp.presolve import Reduced
from ilp.prices import find_prices, find_prices_exactly
from ilp.primal import descend, first, oscillate, read_around, repair, spread
from ilp.problem import Problem
from ilp.relaxation import Relaxation, relax
from ilp.ties import alike, tied

__all__ = ["Found", "search"]

TINY = 4_000
"""Table entries up to which the exact program is solved outright."""

EXACT = 60_000
"""Table entries up to which the exact program is tried on a kernel."""

UNTIMED_PRICE = 200_000
"""Work that the exact program counts per table entry where no seconds are there to end it."""

UNTIMED_EXACT = 7_000
"""The same where no seconds are there to end it."""

LIMITED_EXACT = 6_000
"""The same where memory is limited besides."""

LIMITED_NODES = 10
"""The same for a part of a problem whose memory is limited: its root alone may take seconds."""

NODES = 2_000
"""Branch-and-bound nodes of one exact program, where seconds are not limited."""

REPEATED = 1_000
"""Nodes from which identical layers are looked for."""

TIED = 0.5
"""Share of the nodes that may be left when layers are tied, for it to be worth while."""

TIED_GAP = 3e-3
"""Relative gap at which a tied problem is solved well enough: only its choices are wanted."""

MIXES = 15
"""Optima at other prices that are looked at before the messages are."""

EXCURSIONS = 4
"""Excursions beyond the limit between two kernels."""

FUSED_EACH = 3
"""Optima after which the choices seen are fused again."""

SWEEPS = 20
"""Sweeps between two looks at the bound."""


@dataclass(frozen=True, slots=True)
class Found:
    """The best choice of a small problem (None if none was found), a bound, and the price of a byte."""

    choice: tuple[int, ...] | None
    bound: float
    price: float = 0.0
    seen: tuple[np.ndarray, ...] = ()
    """Other choices met, whether they fit or not: they tell the prices of memory the next time."""


def search(problem: Problem, clock: Clock, start: tuple[int, ...] | None, known: Sequence[np.ndarray] = ()) -> Found:
    """Solve a presolved problem as well as ``clock`` allows. A bound of inf says that nothing is feasible.

    ``start`` is a feasible choice, ``known`` are choices good at some prices or other, of this problem or of the same
    under another limit.
    """
    if entries(problem) + sum(map(len, problem.costs)) <= TINY:
        answer = exact(problem, _stop(clock), start=start)
        clock.spend(200 * entries(problem) + 1000)
        return _taken(problem, answer, start)
    rng = np.random.default_rng(0)
    incumbent = Incumbent()
    relaxation = relax(problem)
    if start is not None:
        incumbent.offer(relaxation, np.array(start, dtype=np.int64), clock)
    if len(relaxation.prices) and incumbent.choice is None:
        first(relaxation, incumbent, clock, rng)
        clock.tell("first")
    known = known or (_layers(problem, clock) if start is None else [])
    for choice in known:
        incumbent.offer(relaxation, choice, clock)
    oracle = _prices(relaxation, incumbent, clock, rng, known) if len(relaxation.prices) else None
    _bound(relaxation, incumbent, clock, rng)
    price = float(relaxation.best_prices.sum())
    if relaxation.bound > relaxation.big:
        return Found(None, math.inf, price)
    if len(relaxation.prices) and not clock.over(0.6):
        read_around(relaxation, incumbent, clock, rng)
    if incumbent.choice is None:
        repair(relaxation, incumbent, clock, rng)
    bound = _close(relaxation, incumbent, clock, rng, oracle)
    choice = None if incumbent.choice is None else tuple(incumbent.choice.tolist())
    return Found(choice, bound, price, tuple(incumbent.seen.values()))


def _whole(problem: Problem, clock: Clock) -> tuple[tuple[int, ...] | None, float]:
    """Solve a problem without limit, for the oracle."""
    found = search(problem, clock, None)
    return found.choice, found.bound


def _layers(problem: Problem, clock: Clock) -> list[np.ndarray]:
    """Choices of the problem in which identical layers are tied; none where there are no such layers."""
    if len(problem.costs) < REPEATED:
        return []
    classes = alike(problem)
    if classes.max() > TIED * len(classes):
        return []
    small = tied(problem, classes)
    inner = clock.inner(max(clock.gap, TIED_GAP), 0.5)
    incumbent = Incumbent()
    relaxation = relax(small)
    rng = np.random.default_rng(0)
    if len(relaxation.prices):
        oracle = Oracle(relaxation, _whole, TIED_GAP)
        find_prices_exactly(relaxation, incumbent, inner, rng, oracle)
    else:
        _bound(relaxation, incumbent, inner, rng)
    return [choice[classes] for choice in incumbent.seen.values()]


def _prices(
    relaxation: Relaxation, incumbent: Incumbent, clock: Clock, rng: np.random.Generator, known: Sequence[np.ndarray]
) -> Oracle | None:
    """Find prices for memory: from priced problems solved whole, where that is quick, or else from messages.

    The oracle comes back where it was of use.
    """
    oracle = Oracle(relaxation, _whole, min(max(clock.gap / 10, 1e-5), 1e-3))
    if known or oracle.collapses():
        find_prices_exactly(relaxation, incumbent, clock, rng, oracle, known)
        if relaxation.best_prices.any():
            _mix(relaxation, incumbent, clock, rng, oracle)
            return oracle
    find_prices(relaxation, incumbent, clock, rng, list(incumbent.seen.values()))
    return None


def _mix(relaxation: Relaxation, incumbent: Incumbent, clock: Clock, rng: np.random.Generator, oracle: Oracle) -> None:
    """Offer optima at prices around the best, and what fusion makes of them."""
    for attempt in range(MIXES):
        if attempt % FUSED_EACH == 0:
            _fuse(relaxation, incumbent, clock)
            clock.tell("fusion")
        if clock.over(0.6):
            return
        spread(relaxation, incumbent, clock, rng, oracle, attempt)
        clock.tell("mix")


def _taken(problem: Problem, answer: Answer, start: tuple[int, ...] | None) -> Found:
    """An exact program's answer, or the start where that is no worse."""
    if start is not None and (answer.choice is None or problem.evaluate(start) <= answer.objective):
        cost = problem.evaluate(start)
        return Found(start, cost if answer.status in ("optimal", "infeasible") else min(answer.bound, cost))
    return Found(answer.choice, answer.bound)


def _stop(clock: Clock, share: float = 1.0, nodes: int = NODES) -> Stop:
    if clock.left is None:
        return Stop(None, min(clock.gap, 1e-6) / 2, nodes)
    return Stop(clock.left * share, min(clock.gap, 1e-6) / 2, None)


def _bound(relaxation: Relaxation, incumbent: Incumbent, clock: Clock, rng: np.random.Generator) -> None:
    """Raise the bound at the best prices as far as messages take it, offering choices on the way."""
    last = -math.inf
    for _ in range(40):
        now = relaxation.ascend(SWEEPS, clock)
        clock.bound = max(clock.bound, min(relaxation.bound, clock.objective))
        for forward in (True, False):
            choice = relaxation.polished(relaxation.rounded(forward), 2, rng, clock)
            incumbent.offer(relaxation, choice, clock)
        clock.tell("bound")
        gap = incumbent.cost - now if math.isfinite(incumbent.cost) else abs(now)
        if clock.over(0.5) or now - last <= 2e-3 * gap:
            return
        last = now


def _close(
    relaxation: Relaxation, incumbent: Incumbent, clock: Clock, rng: np.random.Generator, oracle: Oracle | None
) -> float:
    """Improve the incumbent by descent and kernels until the gap is closed or the clock is over; return the bound."""
    bound = relaxation.bound
    share = 0.1
    for attempt in range(200):
        bound = min(max(bound, relaxation.bound), incumbent.cost)
        clock.bound = max(clock.bound, bound)
        clock.tell("search")
        if clock.over() or bound >= incumbent.cost:
            break
        if incumbent.choice is not None:
            for _ in range(EXCURSIONS if len(relaxation.prices) else 0):
                oscillate(relaxation, incumbent, clock, rng)
            descend(relaxation, incumbent, clock, rng, 300, 1.0)
        if clock.over():
            break
        if attempt % 4 == 0:
            if oracle is not None and attempt:
                spread(relaxation, incumbent, clock, rng, oracle, MIXES + attempt)
            _fuse(relaxation, incumbent, clock)
            clock.tell("fusion")
            if clock.over():
                break
        proof, bound = _kernel(relaxation, incumbent, clock, bound, share)
        if proof:
            break
        share = min(1.0, share * 1.6)
        if attempt >= 12 and clock.seconds is None and clock.work is None:
            break
    return min(bound, incumbent.cost)


def _most(clock: Clock, limited: bool) -> int:
    """Table entries up to which the exact program is tried."""
    if clock.seconds is not None:
        return EXACT
    return LIMITED_EXACT if limited else UNTIMED_EXACT


def _fuse(relaxation: Relaxation, incumbent: Incumbent, clock: Clock) -> None:
    """Mix the choices seen: the best of all that take, in every node, what one of them takes there."""
    choices = incumbent.best_seen(relaxation)
    most = _most(clock, len(relaxation.prices) > 0)
    for n in (len(choices), len(choices) // 2, 2):
        allowed = seen_in(relaxation, choices[:n])
        if pairs_left(relaxation, allowed) <= 2 * most:
            reduced = restrict(relaxation, allowed)
            clock.spend(2 * len(relaxation.cost))
            if reduced.small is not None and entries(reduced.small) <= most:
                _offer(relaxation, incumbent, reduced, clock)
                return


def _kernel(
    relaxation: Relaxation, incumbent: Incumbent, clock: Clock, bound: float, share: float
) -> tuple[bool, float]:
    """Solve the largest kernel that is small enough; return whether that settled the problem, and the bound."""
    keep = incumbent.choice
    span = incumbent.cost - relaxation.bound if keep is not None else 0.05 * abs(relaxation.bound)
    shrinks = 0.25
    most = _most(clock, len(relaxation.prices) > 0)
    for width in (1.0, 0.7, 0.5, 0.35, 0.25, 0.17, 0.12, 0.08, 0.05, 0.03, 0.01):
        complete = width == 1.0 and keep is not None
        allowed = below(relaxation, relaxation.bound + width * span + 1e-12 * abs(relaxation.bound), keep)
        pairs = pairs_left(relaxation, allowed)
        if pairs * shrinks > most * share:
            continue
        reduced = restrict(relaxation, allowed)
        clock.spend(20 * len(relaxation.cost))
        if reduced.small is None:
            return complete, incumbent.cost if complete else bound
        if entries(reduced.small) > most * share and entries(reduced.small) > TINY:
            shrinks = max(shrinks, entries(reduced.small) / pairs)
            continue
        before = incumbent.cost
        answer = _offer(relaxation, incumbent, reduced, clock)
        if complete and answer.status in ("optimal", "infeasible"):
            return True, incumbent.cost
        if complete:
            bound = max(bound, min(answer.bound, incumbent.cost))
        if incumbent.cost < before or answer.status == "optimal":
            return False, bound
    return False, bound


def _offer(relaxation: Relaxation, incumbent: Incumbent, reduced: Reduced, clock: Clock) -> Answer:
    """Solve what is left by the exact program, and offer its choice."""
    assert reduced.small is not None
    limited = reduced.small.limit is not None
    clock.spend((1000 if limited or clock.seconds is not None else UNTIMED_PRICE) * entries(reduced.small))
    stop = replace(_stop(clock, 0.3, LIMITED_NODES if limited else 200), gap=max(clock.gap, 1e-6) / 2)
    answer = exact(reduced.small, stop, around=relaxation.bound)
    if answer.choice is not None:
        incumbent.offer(relaxation, np.array(reduced.undo(answer.choice), dtype=np.int64), clock)
    return answer
