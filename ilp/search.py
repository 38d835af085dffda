"""The search over a presolved problem: bound, round, fix, and the exact program on what is left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ilp.ascent import SETTLING, climb
from ilp.clock import Clock
from ilp.close import MIXES, close, fuse
from ilp.core import Cores, is_large
from ilp.engines import Stop
from ilp.incumbent import Incumbent
from ilp.kernel import below, pairs_left, restrict
from ilp.mip import Answer, entries, exact
from ilp.oracle import Oracle
from ilp.outright import Part
from ilp.pair import Post
from ilp.prices import find_prices, find_prices_exactly
from ilp.primal import first, read_around, repair, spread
from ilp.problem import Problem
from ilp.relaxation import Relaxation, relax
from ilp.ties import alike, copied, counted, tied, untied

__all__ = ["Found", "search"]

TINY = 4_000
"""Table entries up to which the exact program is solved outright."""

NODES = 2_000
"""Branch-and-bound nodes of one exact program, where seconds are not limited."""

TIED_SHARE = 0.5
"""Of what is left of seconds or work, what the tied problem may take."""

TIED_CORES = 0.3
"""Share of that until which its cores and the whole of it are searched in turn."""

TIED_CLIMB = 0.5
"""Share of that until which its prices are raised along the slope of the bound."""

REPEATED = 1_000
"""Nodes from which identical layers are looked for."""

TIED = 0.5
"""Share of the nodes that may be left when layers are tied, for it to be worth while."""

LOOKS = (6, 4, 3, 2)
"""Steps around a node that are looked at to tell layers apart: 6 tell the roles within a layer apart."""

TIED_ENTRIES = 16_000_000
"""Table entries up to which a tied problem is worth its sweeps: of larger ones, nearer looks make smaller ones."""

TIED_GAP = 3e-3
"""Relative gap at which a tied problem is solved well enough: only its choices are wanted."""

FUSED_EACH = 3
"""Optima after which the choices seen are fused again."""

CORES = 0.4
"""Share of the clock until which cores and the whole are searched in turn."""

CERTIFIED, CERTIFYING = 10, 0.4
"""A large problem without its limit is solved to this fraction of the gap asked for, in this share of what is left."""

CORE_SLOPE = 12, 0.7, 60
"""Of a large problem along the slope of its bound: sweeps to settle, until which share of the clock, sweeps."""

CLIMB = {"all": 0.35, "improve": 0.3, "prove": 0.7}
"""Share of the clock until which prices are raised along the slope of the bound, before the first kernel."""

SLOPES = {"all": 400, "improve": 200, "prove": 100_000}
"""Sweeps of that."""

ROUNDS = 200
"""Looks at the bound, at most."""

MOST_UNDER = 0.5
"""Share of the pairs of strategies that may be left under the cutoff, for a problem of these to be worth making."""

STALLED = 5e-3
"""Share of what is between bound and cutoff that a look must raise the bound by; else what is left is searched."""

SWEEPS = 20
"""Sweeps between two looks at the bound."""


@dataclass(frozen=True, slots=True)
class Found:
    """The best choice of a small problem (None if none was found), a bound, and its prices for memory."""

    choice: tuple[int, ...] | None
    bound: float
    prices: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """Of a byte, at each of the problem's times."""
    seen: tuple[np.ndarray, ...] = ()
    """Other choices met, whether they fit or not: they tell the prices of memory the next time."""


def search(
    problem: Problem,
    clock: Clock,
    start: tuple[int, ...] | None,
    known: Sequence[np.ndarray] = (),
    *,
    seed: int = 0,
    part: Part = "all",
    post: Post | None = None,
) -> Found:
    """Solve a presolved problem as well as ``clock`` allows. A bound of inf says that nothing is feasible.

    ``start`` is a feasible choice, ``known`` are choices good at some prices or other, of this problem or of the same
    under another limit. Where two processes search, ``part`` is this one's and ``post`` its view of the other.
    """
    if entries(problem) + sum(map(len, problem.costs)) <= TINY:
        answer = exact(problem, _stop(clock), start=start)
        clock.spend(200 * entries(problem) + 1000)
        return _taken(problem, answer, start)
    relaxation = relax(problem)
    if clock.cutoff < math.inf and not len(relaxation.prices):
        found = _under(relaxation, clock, seed)
        if found is not None:
            return found
    return _searched(relaxation, clock, start, known, seed, part, post)


def _searched(
    relaxation: Relaxation,
    clock: Clock,
    start: tuple[int, ...] | None,
    known: Sequence[np.ndarray],
    seed: int,
    part: Part,
    post: Post | None,
) -> Found:
    """Search the whole problem."""
    rng = np.random.default_rng(seed)
    incumbent = Incumbent(post=post)
    limited = len(relaxation.prices) > 0
    if start is not None:
        incumbent.offer(relaxation, np.array(start, dtype=np.int64), clock)
    if limited and incumbent.choice is None and part != "prove":
        first(relaxation, incumbent, clock, rng)
        clock.tell("first")
    known = known or (_layers(relaxation, clock) if start is None and part != "improve" else [])
    for choice in known:
        incumbent.offer(relaxation, choice, clock)
    oracle, cores = None, None
    if is_large(relaxation.problem):
        cores = Cores(relaxation, incumbent, clock, _core)
        cores.alternate(CORES)
        if limited:
            _certify(relaxation, incumbent, clock)
    elif limited:
        oracle = _prices(relaxation, incumbent, clock, rng, known, part)
    if limited and oracle is None:
        settling, until, sweeps = (SETTLING, CLIMB[part], SLOPES[part]) if cores is None else CORE_SLOPE
        climb(relaxation, incumbent, clock, rng, until, sweeps, settling)
    if not limited or cores is None:
        _bound(relaxation, incumbent, clock, rng)
    if relaxation.bound > relaxation.big:
        return Found(None, math.inf)
    if limited and cores is None and part != "prove" and not clock.over(0.6):
        read_around(relaxation, incumbent, clock, rng)
    if incumbent.choice is None:
        repair(relaxation, incumbent, clock, rng)
    bound = close(relaxation, incumbent, clock, rng, oracle, cores, part)
    choice = None if incumbent.choice is None else tuple(incumbent.choice.tolist())
    return Found(choice, bound, relaxation.best_prices, tuple(incumbent.seen.values()))


def _under(relaxation: Relaxation, clock: Clock, seed: int) -> Found | None:
    """What costs less than the cutoff, once bounds leave far fewer strategies that may; None where they do not."""
    most, last = MOST_UNDER * entries(relaxation.problem), -math.inf
    now = relaxation.ascend(1, clock)
    allowed = below(relaxation, clock.cutoff, None)
    while pairs_left(relaxation, allowed) >= most:
        if clock.over(0.5) or now - last <= STALLED * (clock.cutoff - now):
            return None
        last, now = now, relaxation.ascend(SWEEPS, clock)
        if now > relaxation.big:
            return Found(None, math.inf)
        clock.bound = max(clock.bound, min(now, clock.cutoff))
        clock.tell("cutoff")
        if clock.bound >= clock.cutoff:
            return Found(None, clock.bound)
        allowed = below(relaxation, clock.cutoff, None)
    reduced = restrict(relaxation, allowed)
    clock.spend(20 * len(relaxation.cost))
    if reduced.small is None:
        return Found(None, clock.cutoff)
    found = search(reduced.small, clock, None, seed=seed)
    choice = None if found.choice is None else reduced.undo(found.choice)
    return Found(choice, min(found.bound, clock.cutoff))


def _whole(problem: Problem, clock: Clock) -> tuple[tuple[int, ...] | None, float]:
    """Solve a problem without limit, for the oracle."""
    found = search(problem, clock, None)
    return found.choice, found.bound


def _core(problem: Problem, clock: Clock) -> tuple[tuple[int, ...] | None, np.ndarray]:
    """Search a core."""
    found = search(problem, clock, None)
    return found.choice, found.prices


def _layers(whole: Relaxation, clock: Clock) -> list[np.ndarray]:
    """Choices of the problem in which identical layers are tied; none where there are no such layers.

    The whole problem's prices and messages start from those of the tied one.
    """
    problem = whole.problem
    if len(problem.costs) < REPEATED:
        return []
    classes = alike(problem, LOOKS[0])
    small = tied(problem, classes)
    for rounds in LOOKS[1:]:
        if entries(small) <= TIED_ENTRIES:
            break
        classes = alike(problem, rounds)
        small = tied(problem, classes)
    if classes.max() > TIED * len(classes):
        return []
    inner = clock.inner(max(clock.gap, TIED_GAP) if len(whole.prices) else clock.gap, TIED_SHARE)
    incumbent = Incumbent()
    relaxation = relax(small)
    source = copied(whole.flat, relaxation.flat, classes)
    relaxation.flat = counted(whole.flat, relaxation.flat, classes, source)
    rng = np.random.default_rng(0)
    limited = len(relaxation.prices) > 0
    if is_large(small):
        if limited:
            first(relaxation, incumbent, inner, rng)
        Cores(relaxation, incumbent, inner, _core).alternate(TIED_CORES)
        if limited:
            climb(relaxation, incumbent, inner, rng, TIED_CLIMB, SLOPES["all"])
    elif limited:
        oracle = Oracle(relaxation, _whole, TIED_GAP)
        find_prices_exactly(relaxation, incumbent, inner, rng, oracle)
        if not oracle.quick:
            find_prices(relaxation, incumbent, inner, rng, list(incumbent.seen.values()))
    _bound(relaxation, incumbent, inner, rng)
    relaxation.set_prices(relaxation.best_prices)
    relaxation.lend()
    whole.messages[:] = untied(whole.flat, relaxation.flat, source, relaxation.messages)
    if relaxation.best_prices.any():
        whole.set_prices(relaxation.best_prices)
        whole.ascend(1, clock)
    return [choice[classes] for choice in incumbent.seen.values()]


def _prices(
    relaxation: Relaxation,
    incumbent: Incumbent,
    clock: Clock,
    rng: np.random.Generator,
    known: Sequence[np.ndarray],
    part: Part,
) -> Oracle | None:
    """Find prices for memory: from priced problems solved whole, where that is quick, or else from messages.

    The oracle comes back where it was of use.
    """
    if relaxation.best_prices.any():
        _bound(relaxation, incumbent, clock, rng)
        fuse(relaxation, incumbent, clock, part)
        clock.tell("layers")
    oracle = Oracle(relaxation, _whole, min(max(clock.gap / 10, 1e-5), 1e-3))
    if part != "improve" and (known or oracle.collapses()):
        find_prices_exactly(relaxation, incumbent, clock, rng, oracle, known)
        if relaxation.best_prices.any() and (oracle.quick or clock.seconds is None):
            _mix(relaxation, incumbent, clock, rng, oracle, part)
            return oracle
    find_prices(relaxation, incumbent, clock, rng, list(incumbent.seen.values()))
    return None


def _certify(relaxation: Relaxation, incumbent: Incumbent, clock: Clock) -> None:
    """Bound a large problem by what it costs without a limit, if presolve leaves little of that.

    Where cores have found how to hold less for little more, this says so at once.
    """
    oracle = Oracle(relaxation, _whole, clock.gap / CERTIFIED, CERTIFYING)
    if clock.over() or not oracle.collapses():
        return
    choice, bound = oracle(relaxation.cost, clock)
    relaxation.set_prices(np.zeros(len(relaxation.prices)))
    relaxation.secure(bound)
    relaxation.set_prices(relaxation.best_prices)
    clock.bound = max(clock.bound, min(relaxation.bound, clock.objective))
    if choice is not None:
        incumbent.offer(relaxation, choice, clock)
    clock.tell("certificate")


def _mix(
    relaxation: Relaxation,
    incumbent: Incumbent,
    clock: Clock,
    rng: np.random.Generator,
    oracle: Oracle,
    part: Part,
) -> None:
    """Offer optima at prices around the best, and what fusion makes of them."""
    for attempt in range(MIXES):
        if attempt % FUSED_EACH == 0:
            fuse(relaxation, incumbent, clock, part)
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


def _stop(clock: Clock) -> Stop:
    return Stop(clock.left, min(clock.gap, 1e-6) / 2, NODES if clock.left is None else None)


def _bound(relaxation: Relaxation, incumbent: Incumbent, clock: Clock, rng: np.random.Generator) -> None:
    """Raise the bound at the best prices as far as messages take it, offering choices on the way."""
    last = -math.inf
    for _ in range(ROUNDS):
        now = relaxation.ascend(SWEEPS, clock)
        clock.bound = max(clock.bound, min(relaxation.bound, clock.objective))
        for forward in (True, False):
            choice = relaxation.polished(relaxation.rounded(forward), 2, rng, clock)
            incumbent.offer(relaxation, choice, clock)
        clock.tell("bound")
        ceiling = min(incumbent.cost, clock.cutoff)
        gap = ceiling - now if math.isfinite(ceiling) else abs(now)
        if clock.over(0.5) or now - last <= 2e-3 * gap:
            return
        last = now
