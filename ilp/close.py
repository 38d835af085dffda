"""The end of a search: descent and kernels until the gap is closed or time is over."""

from __future__ import annotations

import itertools
import math

import numpy as np

from ilp.ascent import SETTLING, climb
from ilp.clock import Clock
from ilp.core import Cores
from ilp.incumbent import Incumbent
from ilp.kernel import below, pairs_left, restrict, seen_in
from ilp.mip import entries
from ilp.narrow import Narrowing
from ilp.oracle import Oracle
from ilp.outright import SHARE, Part, most_entries, solve_outright
from ilp.primal import descend, oscillate, read_around, restart, spread
from ilp.relaxation import Relaxation
from ilp.solution import relative_gap

__all__ = ["MIXES", "close", "fuse"]

SMALL = 4_000
"""Table entries up to which it is always tried."""

ATTEMPTS = 13
"""Rounds, where neither seconds nor work are limited."""

EXCURSIONS = {"all": 4, "improve": 12, "prove": 0}
"""Excursions beyond the limit between two kernels."""

DESCENTS = 300
"""Forests re-chosen between two kernels."""

POLISH = 100
"""Forests re-chosen once the gap is closed: what is left of it may be more than nothing."""

FUSIONS = 4
"""Rounds after which the choices seen are fused again."""

CLIMB = {"all": 50, "improve": 0, "prove": 200}
"""Sweeps along the slope of the bound between two kernels."""

SETTLED = 4
"""Sweeps before that, where a sweep takes long and nothing but cores was between."""

FOLLOWED = 0.03
"""Share of the gap by which the other process's bound must be better for its prices to be taken over."""

RESTING = 1e-3
"""Share of the gap by which these must raise the bound; else they rest."""

STUCK = 2
"""Rounds without a better choice after which the search begins anew beside, where seconds are limited."""

IDLE = 30
"""Rounds in a row that lead nowhere after which it ends, where seconds are not limited: small problems would go on for
thousands before their work is spent."""

LAST = 0.1
"""Share of the seconds at the end in which no kernel is begun that may take longer than what is left."""

MIXES = 15
"""Optima at other prices that are looked at before the messages are."""


def close(
    relaxation: Relaxation,
    incumbent: Incumbent,
    clock: Clock,
    rng: np.random.Generator,
    oracle: Oracle | None,
    cores: Cores | None,
    part: Part,
) -> float:
    """Improve the incumbent by descent and kernels until the gap is closed or the clock is over; return the bound.

    What is proved to hold nothing cheaper than the incumbent, or than the cutoff, is bounded by the lower of the two.
    """
    bound = relaxation.bound
    share, took, stuck, idle = 0.1, 0.0, 0, 0
    narrowing = Narrowing(relaxation, incumbent, clock, rng, part)
    climbing = len(relaxation.prices) > 0 and oracle is None and CLIMB[part] > 0
    for attempt in itertools.count():
        incumbent.exchange(relaxation, clock)
        bound = min(max(bound, relaxation.bound, clock.bound), incumbent.cost)
        clock.bound = max(clock.bound, bound)
        clock.tell("search")
        if clock.over() or bound >= incumbent.cost or (clock.seconds is None and idle >= IDLE):
            break
        before = incumbent.cost, bound
        if part != "prove" or not climbing:
            stuck = 0 if _improve(relaxation, incumbent, clock, rng, cores, part) else stuck + 1
        if part != "prove" and cores is None and stuck >= STUCK and clock.seconds is not None:
            restart(relaxation, incumbent, clock, rng)
        climbing = _raise(relaxation, incumbent, clock, rng, cores, part, climbing)
        if not clock.over():
            _mix(relaxation, incumbent, clock, rng, oracle, part, attempt)
        if clock.over():
            break
        if not _late(clock, took):
            began = clock.spent
            proof, bound = _kernel(relaxation, incumbent, clock, bound, share, part)
            took = clock.spent - began
            if proof:
                bound = min(incumbent.cost, clock.cutoff)
                break
            share = min(1.0, share * 1.6)
        if part != "improve" and not climbing and not (part == "all" and stuck < 1) and not clock.over():
            proof, proved = narrowing.prove()
            bound = max(bound, proved)
            if proof:
                bound = min(incumbent.cost, clock.cutoff)
                break
        raised, gap = max(bound, relaxation.bound) - before[1], before[0] - before[1]
        idle = 0 if incumbent.cost < before[0] or raised > RESTING * gap else idle + 1
        if attempt + 1 >= ATTEMPTS and clock.seconds is None and clock.work is None:
            break
    bound = min(bound, incumbent.cost)
    clock.bound = max(clock.bound, bound)
    if incumbent.choice is not None and relative_gap(incumbent.cost, bound) <= clock.gap:
        descend(relaxation, incumbent, clock, rng, POLISH, None)
    incumbent.exchange(relaxation, clock)
    return min(max(bound, clock.bound), incumbent.cost)


def _late(clock: Clock, took: float) -> bool:
    """Whether the seconds are so nearly over that a kernel, the last of which ``took`` so long, would end too late."""
    return clock.seconds is not None and clock.seconds - clock.spent < min(took, LAST * clock.seconds)


def _raise(
    relaxation: Relaxation,
    incumbent: Incumbent,
    clock: Clock,
    rng: np.random.Generator,
    cores: Cores | None,
    part: Part,
    climbing: bool,
) -> bool:
    """Raise the bound, along the slope of the prices while that pays; return whether it still does."""
    if not climbing:
        _settle(relaxation, incumbent, clock)
        return False
    before, gap = relaxation.bound, incumbent.cost - relaxation.bound
    climb(relaxation, incumbent, clock, rng, 1.0, CLIMB[part], SETTLING if cores is None else SETTLED)
    return relaxation.bound - before > RESTING * gap


def _mix(
    relaxation: Relaxation,
    incumbent: Incumbent,
    clock: Clock,
    rng: np.random.Generator,
    oracle: Oracle | None,
    part: Part,
    attempt: int,
) -> None:
    """Take over the other process's prices where they are better; mix the choices seen, now and then."""
    if incumbent.follow(relaxation, FOLLOWED):
        relaxation.ascend(SETTLING, clock)
        read_around(relaxation, incumbent, clock, rng)
        fuse(relaxation, incumbent, clock, part)
    elif part != "prove" and attempt % FUSIONS == 0:
        if oracle is not None and attempt:
            spread(relaxation, incumbent, clock, rng, oracle, MIXES + attempt)
        fuse(relaxation, incumbent, clock, part)
        clock.tell("fusion")


def _settle(relaxation: Relaxation, incumbent: Incumbent, clock: Clock) -> None:
    """Sweep on at the best prices while that closes the gap: a better choice since may have made it worth while."""
    before = -math.inf
    ceiling = min(incumbent.cost, clock.cutoff)
    while relaxation.bound - before > RESTING * (ceiling - relaxation.bound) and not clock.over():
        before = relaxation.bound
        relaxation.ascend(SETTLING, clock)
        clock.bound = max(clock.bound, min(relaxation.bound, clock.objective))


def _improve(
    relaxation: Relaxation,
    incumbent: Incumbent,
    clock: Clock,
    rng: np.random.Generator,
    cores: Cores | None,
    part: Part,
) -> bool:
    """A core, or excursions and descent from the incumbent; whether they led to a better choice."""
    if cores is not None:
        return cores.improve()
    if incumbent.choice is None:
        return False
    before = incumbent.cost
    for _ in range(EXCURSIONS[part] if len(relaxation.prices) else 0):
        oscillate(relaxation, incumbent, clock, rng)
    descend(relaxation, incumbent, clock, rng, DESCENTS, 1.0)
    return incumbent.cost < before


def fuse(relaxation: Relaxation, incumbent: Incumbent, clock: Clock, part: Part) -> None:
    """Mix the choices seen: the best of all that take, in every node, what one of them takes there."""
    choices = incumbent.best_seen(relaxation)
    most = most_entries(clock, len(relaxation.prices) > 0)
    for n in (len(choices), len(choices) // 2, 2):
        if clock.spent_out:
            return
        allowed = seen_in(relaxation, choices[:n])
        if pairs_left(relaxation, allowed) <= 2 * most:
            reduced = restrict(relaxation, allowed)
            clock.spend(2 * len(relaxation.cost))
            if reduced.small is not None and entries(reduced.small) <= most:
                solve_outright(relaxation, incumbent, reduced, clock, SHARE[part])
                return


def _kernel(
    relaxation: Relaxation, incumbent: Incumbent, clock: Clock, bound: float, share: float, part: Part
) -> tuple[bool, float]:
    """Solve the largest kernel that is small enough; return whether that settled the problem, and the bound."""
    keep = incumbent.choice
    ceiling = min(incumbent.cost, clock.cutoff)
    span = ceiling - relaxation.bound if keep is not None else 0.05 * abs(relaxation.bound)
    shrinks = 0.25
    most = most_entries(clock, len(relaxation.prices) > 0)
    for width in (1.0, 0.7, 0.5, 0.35, 0.25, 0.17, 0.12, 0.08, 0.05, 0.03, 0.01):
        if clock.spent_out:
            break
        complete = width == 1.0 and keep is not None
        allowed = below(relaxation, relaxation.bound + width * span + 1e-12 * abs(relaxation.bound), keep)
        pairs = pairs_left(relaxation, allowed)
        if pairs * shrinks > most * share:
            continue
        reduced = restrict(relaxation, allowed)
        clock.spend(20 * len(relaxation.cost))
        if reduced.small is None:
            return complete, ceiling if complete else bound
        if entries(reduced.small) > most * share and entries(reduced.small) > SMALL:
            shrinks = max(shrinks, entries(reduced.small) / pairs)
            continue
        before = incumbent.cost
        answer = solve_outright(relaxation, incumbent, reduced, clock, SHARE[part])
        ceiling = min(incumbent.cost, ceiling)
        if complete and answer.status in ("optimal", "infeasible"):
            return True, ceiling
        if complete:
            bound = max(bound, min(answer.bound, ceiling))
        if incumbent.cost < before or answer.status == "optimal":
            return False, bound
    return False, bound
