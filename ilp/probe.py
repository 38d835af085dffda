"""Probing: strategies forced in turn, for bounds that say which of them nothing cheap takes.

M. W. P. Savelsbergh, "Preprocessing and probing techniques for mixed integer programming problems", ORSA Journal on
Computing 6(4), 1994, with messages as the relaxation: they start from those of the whole problem, and a forced
strategy moves them within a few sweeps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ilp.clock import Clock
from ilp.kernel import pairs_left
from ilp.messages import sweep
from ilp.relaxation import Relaxation

__all__ = ["probe", "probing_work"]

SWEEPS = 30
"""Sweeps there and back per strategy, at most."""

TRIED = 3
"""Sweeps after which a strategy is given up whose bound has not risen."""

RISE = 0.06
"""Share of the gap that it must have risen by then."""

SHRUNK = 0.75
"""Share of the pairs left at which a pass ends early: what is left is better probed as a smaller problem."""


EXPECTED = 4
"""Sweeps per strategy, as a rule."""


def probing_work(relaxation: Relaxation, ceiling: float) -> int:
    """Table entries that a pass of probing is expected to look at."""
    return EXPECTED * relaxation.entries * int(np.count_nonzero(relaxation.margin <= ceiling))


def probe(relaxation: Relaxation, ceiling: float, clock: Clock) -> bool:
    """Raise the margins of the strategies that ``ceiling`` does not rule out yet, and the bound by them.

    A margin above ``ceiling`` says that nothing as cheap takes the strategy, and no more: what is ruled out serves to
    rule out others. Nodes with few strategies come first. A pass ends before its time where the clock does, or where
    so much is ruled out that the rest had better be probed on what is left; whether it came to its end is returned.
    """
    relaxation.set_prices(relaxation.best_prices)
    flat, margin = relaxation.flat, relaxation.margin
    allowed = margin <= ceiling
    counts = np.add.reduceat(allowed, flat.at[:-1], dtype=np.int64)
    few = SHRUNK * pairs_left(relaxation, allowed)
    forced = _Forced(relaxation, ceiling, np.where(allowed, relaxation.priced, 2 * relaxation.big))
    for u in np.lexsort((np.arange(len(counts)), counts)).tolist():
        lo, hi = int(flat.at[u]), int(flat.at[u + 1])
        here = lo + np.flatnonzero(allowed[lo:hi])
        if len(here) < 2:
            continue
        for i in here[np.argsort(-margin[here], kind="stable")].tolist():
            margin[i] = max(margin[i], forced.bound(u, i))
            if margin[i] > ceiling:
                allowed[i], forced.cost[i] = False, 2 * relaxation.big
            clock.spend(forced.sweeps * relaxation.entries)
            if clock.spent_out:
                return False
        relaxation.bound = max(relaxation.bound, min(ceiling, float(margin[lo:hi].min())))
        if not allowed[lo:hi].any():
            return True
        if pairs_left(relaxation, allowed) < few:
            return False
    return True


@dataclass(slots=True)
class _Forced:
    """The bound with one strategy forced, at the best prices."""

    relaxation: Relaxation
    ceiling: float
    cost: np.ndarray
    """Priced; what is ruled out costs twice ``big``."""
    sweeps: int = 0
    """What the last took."""

    def bound(self, u: int, forced: int) -> float:
        """A bound on every choice that takes the strategy ``forced`` (a position among all) of node ``u``."""
        relaxation = self.relaxation
        flat = relaxation.flat
        owed = float(relaxation.prices.sum()) * relaxation.limit
        cost, messages = self.cost.copy(), relaxation.messages.copy()
        cost[flat.at[u] : flat.at[u + 1]] = 2 * relaxation.big
        cost[forced] = self.cost[forced]
        best = -math.inf
        for self.sweeps in range(1, SWEEPS + 1):
            sweep(flat, cost, messages, True, relaxation.done, relaxation.trial)
            now = sweep(flat, cost, messages, False, relaxation.done, relaxation.trial) - owed
            best = max(best, now - 1e-13 * (abs(now) + owed))
            if best > self.ceiling:
                break
            if self.sweeps == TRIED and best - relaxation.bound < RISE * (self.ceiling - relaxation.bound):
                break
        return best
