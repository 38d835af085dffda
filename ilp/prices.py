"""Prices for memory, by cutting planes.

Every choice x, whether it fits or not, says that the dual function is at most cost(x) + λ·(held(x) - limit). The
prices that maximise the least of these cuts are tried next (J. E. Kelley, "The cutting-plane method for solving
convex programs", J. SIAM 8(4), 1960), within a box around the best so far (R. E. Marsten, W. W. Hogan, J. W.
Blankenship, "The BOXSTEP method for large-scale optimization", Operations Research 23(3), 1975). Only moments at
which some choice held too much have a price at all, and of these one or two stay above zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linprog

from ilp.clock import Clock
from ilp.incumbent import Incumbent
from ilp.oracle import Oracle
from ilp.primal import repair
from ilp.relaxation import Relaxation
from ilp.solution import relative_gap

__all__ = ["find_prices", "find_prices_exactly"]

ROUNDS = 60
MOST_MOMENTS = 40
SERIOUS = 0.1
"""Share of the rise that the cuts promise with which a step counts as good: the next may go further."""
WIDER, NARROWER = 1.5, 0.5
"""Factors of how far from the best prices the next may lie: cuts know little far from where they were made."""
PATIENCE = 10
"""Rounds without progress after which prices rest."""
PROGRESS = 1e-3
"""Share of the gap by which a round must raise the bound to count as progress."""
FEW = 8
"""Moments with a price beyond which cuts, of which each tells one slope, take too long."""
FIRST_CAP = 0.5
"""Share of the cost that all bytes of the limit may be priced at, at first."""
SWEEPS = 12
"""Sweeps per price tried; the messages carry over from the last."""


@dataclass(slots=True)
class _Cuts:
    """The choices seen: what they cost and held over the limit at each moment."""

    cost: list[float] = field(default_factory=list)
    over: list[np.ndarray] = field(default_factory=list)
    moments: list[int] = field(default_factory=list)

    def add(self, cost: float, over: np.ndarray) -> None:
        self.cost.append(cost)
        self.over.append(over)
        if not self.moments:
            self.price(over)

    def price(self, over: np.ndarray) -> None:
        """Price the worst moment, if it is over the limit."""
        worst = int(np.argmax(over))
        if over[worst] > 0 and worst not in self.moments and len(self.moments) < MOST_MOMENTS:
            self.moments.append(worst)

    def at(self, prices: np.ndarray) -> float:
        """The least cut at these prices."""
        return min(cost + float(over @ prices) for cost, over in zip(self.cost, self.over, strict=True))

    def best(
        self, cap: float, limit: int, centre: np.ndarray | None = None, radius: float = math.inf
    ) -> tuple[np.ndarray, float]:
        """Prices that maximise the least cut, at most ``cap`` seconds per limit in all; and that cut.

        With a ``centre``, each price stays within ``radius`` seconds per limit of it. The multipliers of the cuts are
        a mixture of choices; a moment at which it is over the limit is priced next.
        """
        n = len(self.moments)
        scale = max(1e-300, float(np.abs(self.cost).min()))
        middle = np.zeros(n) if centre is None else centre[self.moments] * limit
        box = [(max(0.0, at - radius) / scale, (at + radius) / scale) for at in middle.tolist()]
        over = np.array([row[self.moments] for row in self.over]) / limit
        result = linprog(
            np.append(np.zeros(n), -1.0),
            A_ub=np.vstack([np.hstack([-over, np.ones((len(self.cost), 1))]), np.append(np.ones(n), 0.0)]),
            b_ub=np.append(np.array(self.cost) / scale, cap / scale),
            bounds=[*box, (None, None)],
            method="highs",
        )
        prices = np.zeros(len(self.over[0]))
        if result.x is None:
            return prices, math.inf
        prices[self.moments] = result.x[:n] * (scale / limit)
        mixture = np.maximum(0.0, -result.ineqlin.marginals[:-1]) @ np.array(self.over)
        self.price(mixture - 1e-6 * limit)
        return prices, float(result.x[n]) * scale


def find_prices(
    relaxation: Relaxation,
    incumbent: Incumbent,
    clock: Clock,
    rng: np.random.Generator,
    known: Iterable[np.ndarray] = (),
) -> None:
    """Raise the bound by pricing the moments that are over the limit; offer every choice met on the way.

    ``known`` choices tell where to begin.
    """
    cuts = _Cuts()
    limit = max(relaxation.limit, 1)
    for choice in known:
        _cut(relaxation, cuts, choice)
    _try(relaxation, cuts, incumbent, clock, rng, 4 * SWEEPS)
    cap = max(abs(relaxation.bound), abs(cuts.cost[0]) * 1e-3) if cuts.cost else 0.0
    stalled, radius = 0, cap
    for _ in range(ROUNDS):
        if clock.over(0.4) or not cuts.moments or stalled >= PATIENCE:
            break
        if np.count_nonzero(relaxation.best_prices) > FEW:
            break
        centre = relaxation.best_prices
        prices, model = cuts.best(cap, limit, centre, radius)
        full = prices.sum() * limit >= 0.99 * cap
        if full and relaxation.bound > relaxation.big:
            break
        if not full and relative_gap(model, relaxation.bound) < 0.2 * clock.gap:
            break
        before = relaxation.bound
        relaxation.set_prices(prices)
        _try(relaxation, cuts, incumbent, clock, rng, SWEEPS)
        risen = relaxation.bound - before
        if full:
            cap, radius = 4 * cap, 4 * radius
        else:
            radius *= WIDER if risen >= SERIOUS * (model - before) else NARROWER
        worth = max(min(incumbent.cost, model) - before, 1e-6 * abs(before))
        stalled = 0 if full or risen >= PROGRESS * worth else stalled + 1
        incumbent.exchange(relaxation, clock)
        clock.tell("prices")
    relaxation.set_prices(relaxation.best_prices)


def find_prices_exactly(
    relaxation: Relaxation,
    incumbent: Incumbent,
    clock: Clock,
    rng: np.random.Generator,
    oracle: Oracle,
    known: Iterable[np.ndarray] = (),
) -> None:
    """The same where priced problems are solved whole: each cut is tight, so few are needed.

    ``known`` choices, good at some prices or other, tell where to begin.
    """
    cuts = _Cuts()
    limit = max(relaxation.limit, 1)

    def cut(choice: np.ndarray) -> None:
        incumbent.offer(relaxation, choice, clock)
        _cut(relaxation, cuts, choice)

    for choice in known:
        cut(choice)
    prices, cap = np.zeros(len(relaxation.prices)), 0.0
    if cuts.moments:
        cap = FIRST_CAP * max(map(abs, cuts.cost))
        prices, _ = cuts.best(cap, limit)
    for _ in range(ROUNDS):
        relaxation.set_prices(prices)
        choice, bound = oracle(relaxation.priced if prices.any() else relaxation.cost, clock)
        relaxation.secure(bound)
        clock.bound = max(clock.bound, min(relaxation.bound, clock.objective))
        if choice is None:
            break
        cut(choice)
        clock.tell("prices")
        if clock.over(0.6) or not cuts.moments:
            break
        if not oracle.quick and (clock.seconds is not None or not prices.any()):
            break
        if incumbent.choice is None and not oracle.quick:
            repair(relaxation, incumbent, clock, rng)
        cap = cap or FIRST_CAP * max(abs(relaxation.bound), abs(cuts.cost[0]))
        here = cuts.at(prices)
        prices, model = cuts.best(cap, limit)
        if prices.sum() * limit >= 0.99 * cap:
            if relaxation.bound > relaxation.big:
                break
            cap *= 4
        elif relative_gap(model, here) <= max(oracle.gap, 1e-9):
            break
    relaxation.set_prices(relaxation.best_prices)


def _try(
    relaxation: Relaxation,
    cuts: _Cuts,
    incumbent: Incumbent,
    clock: Clock,
    rng: np.random.Generator,
    sweeps: int,
) -> None:
    """Bound the optimum at the present prices, and cut by two choices that are good there."""
    relaxation.ascend(sweeps, clock)
    clock.bound = max(clock.bound, min(relaxation.bound, clock.objective))
    for forward in (True, False):
        choice = relaxation.polished(relaxation.rounded(forward), 2, rng, clock)
        incumbent.offer(relaxation, choice, clock)
        _cut(relaxation, cuts, choice)


def _cut(relaxation: Relaxation, cuts: _Cuts, choice: np.ndarray) -> None:
    """What ``choice`` says about the dual function, unless it takes something forbidden."""
    cost = relaxation.worth(choice)
    if cost < relaxation.big:
        cuts.add(cost, relaxation.held(choice) - float(relaxation.limit))
