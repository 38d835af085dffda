"""The core: strategies that bounds leave near the best, searched as a problem of their own.

Most strategies of a large problem are in no good choice, and their bounds say so long before they prove it. What is
left without them is small enough for every means of the search. Its prices for memory hold, nearly, for the whole
problem, whose bounds at these prices tell a better core (E. Balas, E. Zemel, "An algorithm for large zero-one knapsack
problems", Operations Research 28(5), 1980).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ilp.clock import Clock
from ilp.incumbent import Incumbent
from ilp.kernel import pairs_left, restrict, seen_in
from ilp.mip import entries
from ilp.presolve import Reduced
from ilp.problem import Problem
from ilp.relaxation import Relaxation
from ilp.solution import relative_gap

__all__ = ["Cores", "is_large"]

MOST = 1_000_000
"""Pairs of strategies in a core, at first."""

LARGER = 2
"""Factor of that after a core that led to nothing better."""

LARGE = 8
"""How many times as many pairs as a core a problem has, for cores to be worth while."""

SHARE = 0.1
"""Of what is left of seconds or work, what a core may take."""

CLOSER = 4
"""A core is solved to this fraction of the gap of the whole, to leave room for its bound."""

LARGEST_GAP = 0.05
"""The gap is taken to be no more than this: the choices known first are much too dear."""

SWEEPS = 12
"""Sweeps of the whole problem between two cores."""

ROUNDS = 12
"""Cores in turn, at most."""

WORTH = 0.05
"""Share of the gap that a core and these sweeps must close for another to follow."""

Search = Callable[[Problem, Clock], tuple[tuple[int, ...] | None, np.ndarray]]
"""Searches a presolved problem: the best choice (or None), and prices for memory at each of its times."""


def is_large(problem: Problem) -> bool:
    """Whether a core is much smaller than ``problem``."""
    return entries(problem) > LARGE * MOST


@dataclass(slots=True)
class Cores:
    """The cores of a large problem, one after another."""

    relaxation: Relaxation
    incumbent: Incumbent
    clock: Clock
    search: Search
    most: int = MOST
    """Pairs of strategies in the next."""

    def alternate(self, share: float) -> None:
        """Search cores and bound the whole at their prices, in turn, as long as that closes the gap."""
        relaxation, incumbent, clock = self.relaxation, self.incumbent, self.clock
        relaxation.ascend(SWEEPS, clock)
        for _ in range(ROUNDS):
            clock.bound = max(clock.bound, min(relaxation.bound, clock.objective))
            clock.tell("core")
            gap = relative_gap(incumbent.cost, relaxation.bound)
            if gap <= clock.gap:
                break
            self._next()
            if clock.over(share):
                break
            relaxation.ascend(SWEEPS, clock)
            if relative_gap(incumbent.cost, relaxation.bound) > (1 - WORTH) * gap:
                break
        relaxation.set_prices(relaxation.best_prices)

    def improve(self) -> bool:
        """Search a core, larger ones as long as they lead to nothing better; whether this one did."""
        better = self._next()
        self.most *= 1 if better else LARGER
        return better

    def _next(self) -> bool:
        """Offer the best choice found in a core; if it is better than all before, take over the prices of memory."""
        relaxation, incumbent = self.relaxation, self.incumbent
        before = incumbent.cost
        core = restrict(relaxation, self._nearest())
        self.clock.spend(20 * len(relaxation.cost))
        relaxation.set_prices(relaxation.best_prices)
        if core.small is not None:
            gap = min(relative_gap(before, relaxation.bound), LARGEST_GAP)
            choice, prices = self.search(core.small, self.clock.inner(max(self.clock.gap, gap) / CLOSER, SHARE))
            if choice is not None:
                incumbent.offer(relaxation, np.array(core.undo(choice), dtype=np.int64), self.clock)
            if incumbent.cost < before and prices.any():
                relaxation.set_prices(self._placed(core, prices))
        return incumbent.cost < before

    def _placed(self, core: Reduced, prices: np.ndarray) -> np.ndarray:
        """Prices at the core's times as prices at the whole problem's."""
        assert core.small is not None
        out = np.zeros(len(self.relaxation.prices))
        priced = np.flatnonzero(prices)
        moments = core.moments[core.small.times[priced]]
        out[np.searchsorted(self.relaxation.problem.times, moments)] = prices[priced]
        return out

    def _nearest(self) -> np.ndarray:
        """Mask of the strategies whose last bounds, when forced, are least, and of those of the best choices seen."""
        relaxation = self.relaxation
        bounds = relaxation.trial
        seen = seen_in(relaxation, self.incumbent.best_seen(relaxation))
        ceilings = np.unique(bounds)
        lo, hi = 0, len(ceilings) - 1
        while lo < hi:
            middle = (lo + hi + 1) // 2
            if pairs_left(relaxation, seen | (bounds <= ceilings[middle])) <= self.most:
                lo = middle
            else:
                hi = middle - 1
        return seen | (bounds <= ceilings[lo])
