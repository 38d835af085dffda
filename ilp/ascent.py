"""Prices for memory by following the slope of the bound, where more moments bind than cutting planes can tell apart.

A choice read off the messages jumps from one sweep to the next, and says little about the slope where many moments
bind. Here each node takes all its strategies at once, each the less the more it would cost if forced (its margin, in
a Boltzmann distribution); what these mixtures hold changes slowly with the prices. The steps are those of B. T. Polyak,
"Minimization of unsmooth functionals" (1969), along slopes averaged as in F. Barahona, R. Anbil, "The volume
algorithm", Mathematical Programming 87 (2000).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from ilp.clock import Clock
from ilp.flat import Rows
from ilp.incumbent import Incumbent
from ilp.relaxation import Relaxation

__all__ = ["SETTLING", "climb"]

WARMTH = 10.0
"""Seconds of the distribution: this multiple of the gap per node. It blurs the slope by no more than all nodes do."""

COOLING = 0.5
"""Power of the step that the warmth falls with."""

STEP = 3e-3
"""Share of Polyak's step that is taken at first."""

MEMORY = 0.95
"""Weight of the slopes before in their average."""

SMALLER = 0.6
"""Factor of the step after ``PATIENCE`` sweeps without progress, or a fall."""

LARGER = 1.05
"""Factor of the step after a sweep with progress."""

FALL = 0.03
"""Share of the gap by which the bound may fall for the sake of a later rise."""

PATIENCE = 20
"""Sweeps without progress that are borne."""

SMALLEST = 1e-6
"""Share of Polyak's step below which nothing more is to be had."""

PROGRESS = 1e-5
"""Share of the gap by which the bound must rise for a sweep to count as progress."""

OFFERED = 25
"""Sweeps between two choices read off the messages."""

SETTLING = 30
"""Sweeps before the first step: messages must belong to the prices for margins to mean something."""

LARGEST_GAP = 0.05
"""The gap is taken to be no more than this share of the bound: the choices known first are much too dear."""


def climb(
    relaxation: Relaxation,
    incumbent: Incumbent,
    clock: Clock,
    rng: np.random.Generator,
    share: float,
    sweeps: int,
    settling: int = SETTLING,
) -> None:
    """Raise the bound from the best prices on, until ``share`` of the clock, ``sweeps``, or nothing more is had."""
    moments = len(relaxation.prices)
    limit = max(relaxation.limit, 1)
    relaxation.set_prices(relaxation.best_prices)
    relaxation.ascend(settling, clock)
    mean, kept = np.zeros(moments), relaxation.messages.copy()
    base = relaxation.prices
    step, stalled, best, fresh = STEP, 0, -math.inf, True
    for sweep in range(sweeps):
        if clock.over(share) or step < SMALLEST:
            break
        now = relaxation.ascend(1, clock)
        gap = _gap(incumbent, now)
        if now > best + PROGRESS * gap:
            best, stalled, step = now, 0, step * LARGER
            kept[:] = relaxation.messages
            base = relaxation.prices
        else:
            stalled += 1
        if stalled >= PATIENCE or now < best - FALL * gap:
            step, stalled, fresh = step * SMALLER, 0, True
            relaxation.messages[:] = kept
            relaxation.set_prices(base)
            relaxation.ascend(1, clock)
        warmth = WARMTH * min(1.0, step / STEP) ** COOLING * gap / len(relaxation.done)
        mixed = _mixed_held(relaxation.flat.at, relaxation.rows, relaxation.trial, warmth, moments)
        clock.spend(len(relaxation.rows.node) + moments)
        mean = mixed if fresh else MEMORY * mean + (1 - MEMORY) * mixed
        fresh = False
        over = mean / limit - 1.0
        slope = np.where((over > 0) | (relaxation.prices > 0), over, 0.0)
        length = float(slope @ slope)
        if not length:
            break
        relaxation.set_prices(np.maximum(0.0, relaxation.prices + slope * (step * gap / (length * limit))))
        if sweep % OFFERED == 0:
            clock.bound = max(clock.bound, min(relaxation.bound, clock.objective))
            incumbent.offer(relaxation, relaxation.polished(relaxation.rounded(True), 2, rng, clock), clock)
            incumbent.exchange(relaxation, clock)
            clock.tell("slope")
    relaxation.set_prices(relaxation.best_prices)


def _gap(incumbent: Incumbent, now: float) -> float:
    """How far the bound may be from what it can be."""
    return max(min(incumbent.cost - now, LARGEST_GAP * abs(now)), 1e-6 * abs(now), 1e-300)


@njit(cache=True)
def _mixed_held(at: np.ndarray, rows: Rows, margin: np.ndarray, warmth: float, moments: int) -> np.ndarray:
    """Bytes at each moment, float64, when each node mixes its strategies by exp(-margin / warmth)."""
    weight = np.empty(len(margin))
    for u in range(len(at) - 1):
        least = margin[at[u]]
        for i in range(at[u], at[u + 1]):
            least = min(least, margin[i])
        total = 0.0
        for i in range(at[u], at[u + 1]):
            weight[i] = math.exp((least - margin[i]) / warmth)
            total += weight[i]
        for i in range(at[u], at[u + 1]):
            weight[i] /= total
    out = np.zeros(moments + 1)
    for r in range(len(rows.node)):
        lo, begin = at[rows.node[r]], rows.at[r]
        usage = 0.0
        for i in range(at[rows.node[r] + 1] - lo):
            usage += weight[lo + i] * rows.usage[begin + i]
        out[rows.lo[r]] += usage
        out[rows.hi[r]] -= usage
    for t in range(1, moments + 1):
        out[t] += out[t - 1]
    return out[:moments]
