"""Choices that fit: repair by raising prices where too much is held, then descent over forests."""

from __future__ import annotations

import numpy as np

from ilp.clock import Clock
from ilp.forest import ball, improve
from ilp.incumbent import Incumbent
from ilp.memory import charge
from ilp.oracle import Oracle
from ilp.relaxation import Relaxation

__all__ = ["descend", "first", "oscillate", "read_around", "repair", "restart", "spread"]

REPAIR_ROUNDS = 80

FIRST_PASSES = 30
"""Forests tried for an early answer."""

FIRST_DEARER = 4.0
"""Factor of the price of the moments at which one of them holds too much."""

SCALES = (1.02, 0.98, 1.1, 0.9, 1.35, 2.0)
"""Multiples of the best prices: their optima are optimal for limits around the one asked for."""

DEARER = (1.0, 1.03, 1.08, 1.15, 1.25, 1.4)
"""Multiples of the best prices at which messages are read."""

DEARER_SWEEPS = 10
"""Sweeps at each of them."""

EXCURSION = (0.8, 1.0)
"""Shares of the best prices at which a choice leaves the limit."""

EXCURSION_MOVES = 5
"""Forests re-chosen on the way out, at most."""

RESTART = (0.7, 1.5)
"""Multiples of the best prices from which a search begins anew."""

RESTART_SWEEPS = 5
"""Sweeps there: few, so that messages differ."""

RESTART_ROUNDS, RESTART_EXCURSIONS, RESTART_MOVES = 6, 12, 300
"""What a new beginning is given: rounds, and in each excursions and forests re-chosen."""

TILT = 0.3
"""Share by which the prices of single rows are bent to find choices that mix."""


def first(relaxation: Relaxation, incumbent: Incumbent, clock: Clock, rng: np.random.Generator) -> bool:
    """An early answer: memory so dear that little else counts, dearer yet where too much is held, forest by forest."""
    prices = np.full(len(relaxation.prices), relaxation.big / max(relaxation.limit, 1))
    choice = np.zeros(len(relaxation.problem.costs), dtype=np.int64)
    for _ in range(FIRST_PASSES):
        priced = charge(relaxation.flat.at, relaxation.rows, prices, relaxation.cost)
        clock.spend(improve(relaxation.flat, priced, choice, rng.permutation(len(choice))))
        if incumbent.offer(relaxation, choice, clock):
            return True
        prices[relaxation.held(choice) > relaxation.limit] *= FIRST_DEARER
    return False


def repair(relaxation: Relaxation, incumbent: Incumbent, clock: Clock, rng: np.random.Generator) -> bool:
    """From the choice that the messages tell, raise the prices of what is broken until it fits."""
    choice = relaxation.polished(relaxation.rounded(True), 2, rng, clock)
    return _fit(relaxation, incumbent, choice, clock, rng)


def read_around(relaxation: Relaxation, incumbent: Incumbent, clock: Clock, rng: np.random.Generator) -> None:
    """Read choices off the messages at prices somewhat above the best, and make them fit."""
    prices = relaxation.best_prices
    for factor in DEARER:
        if clock.over():
            break
        relaxation.set_prices(prices * factor)
        relaxation.ascend(DEARER_SWEEPS, clock)
        for forward in (True, False):
            choice = relaxation.polished(relaxation.rounded(forward), 4, rng, clock)
            _fit(relaxation, incumbent, choice, clock, rng)
    relaxation.set_prices(relaxation.best_prices)


def oscillate(relaxation: Relaxation, incumbent: Incumbent, clock: Clock, rng: np.random.Generator) -> bool:
    """Leave the best choice for a cheaper one that does not fit, and come back from there another way."""
    assert incumbent.choice is not None
    choice = incumbent.choice.copy()
    nodes = len(choice)
    factor = float(rng.uniform(*EXCURSION))
    priced = charge(relaxation.flat.at, relaxation.rows, relaxation.best_prices * factor, relaxation.cost)
    for _ in range(int(rng.integers(1, EXCURSION_MOVES))):
        near = ball(relaxation.flat, int(rng.integers(nodes)), int(rng.integers(nodes // 8, nodes + 1)))
        clock.spend(improve(relaxation.flat, priced, choice, rng.permutation(near)) + 4 * nodes)
    return _fit(relaxation, incumbent, choice, clock, rng)


def _fit(
    relaxation: Relaxation, incumbent: Incumbent, choice: np.ndarray, clock: Clock, rng: np.random.Generator
) -> bool:
    """Raise the prices of what is broken until ``choice``, changed forest by forest, fits; offer it."""
    prices = relaxation.best_prices.copy()
    step = max(float(prices.max(initial=0.0)), abs(relaxation.bound) / max(relaxation.limit, 1)) / 16
    for _ in range(REPAIR_ROUNDS):
        held = relaxation.held(choice)
        worst = int(np.argmax(held)) if len(held) else 0
        if not len(held) or held[worst] <= relaxation.limit:
            return incumbent.offer(relaxation, choice, clock)
        if clock.over():
            return False
        prices[worst] += step
        step *= 1.15
        priced = charge(relaxation.flat.at, relaxation.rows, prices, relaxation.cost)
        for _ in range(3):
            clock.spend(improve(relaxation.flat, priced, choice, rng.permutation(len(choice))))
    return False


def restart(relaxation: Relaxation, incumbent: Incumbent, clock: Clock, rng: np.random.Generator) -> bool:
    """Begin anew at prices rather above or below the best, go down from there, and offer where that led.

    Descents end in hollows; which one, the beginning decides.
    """
    other, messages = Incumbent(), relaxation.messages.copy()
    relaxation.set_prices(relaxation.best_prices * float(rng.uniform(*RESTART)))
    relaxation.ascend(RESTART_SWEEPS, clock)
    found = repair(relaxation, other, clock, rng)
    relaxation.messages[:] = messages
    relaxation.set_prices(relaxation.best_prices)
    for _ in range(RESTART_ROUNDS if found else 0):
        for _ in range(RESTART_EXCURSIONS):
            oscillate(relaxation, other, clock, rng)
        descend(relaxation, other, clock, rng, RESTART_MOVES, 1.0)
    return other.choice is not None and incumbent.offer(relaxation, other.choice, clock)


def descend(
    relaxation: Relaxation,
    incumbent: Incumbent,
    clock: Clock,
    rng: np.random.Generator,
    moves: int,
    share: float | None,
) -> bool:
    """Re-choose forests, large and small, at prices around the best; keep what fits and costs less.

    Ends with ``share`` of the clock, or (None) only after all ``moves``.
    """
    assert incumbent.choice is not None
    nodes = len(incumbent.choice)
    before = incumbent.cost
    factor, priced = 1.0, relaxation.priced
    for move in range(moves):
        if share is not None and clock.over(share):
            break
        if move % 8 == 0:
            factor = float(rng.choice([0.0, 0.5, 0.8, 0.9, 1.0, 1.1, 1.3]))
            prices = relaxation.best_prices * factor
            priced = charge(relaxation.flat.at, relaxation.rows, prices, relaxation.cost)
        if rng.random() < 0.2:
            candidates = rng.permutation(nodes)
        else:
            near = ball(relaxation.flat, int(rng.integers(nodes)), int(2 ** rng.uniform(3, 9)))
            candidates = rng.permutation(near) if rng.random() < 0.5 else near
        choice = incumbent.choice.copy()
        clock.spend(improve(relaxation.flat, priced, choice, candidates) + 4 * nodes)
        if (choice != incumbent.choice).any():
            incumbent.offer(relaxation, choice, clock)
    return incumbent.cost < before


def spread(
    relaxation: Relaxation, incumbent: Incumbent, clock: Clock, rng: np.random.Generator, oracle: Oracle, attempt: int
) -> None:
    """Offer optima at prices around the best, those of each row bent a little its own way after the first few."""
    factor = SCALES[attempt] if attempt < len(SCALES) else float(rng.uniform(0.9, 1.15))
    cost = charge(relaxation.flat.at, relaxation.rows, relaxation.best_prices * factor, relaxation.cost)
    if attempt >= len(SCALES):
        bent = np.repeat(rng.uniform(1 - TILT, 1 + TILT, len(relaxation.problem.costs)), np.diff(relaxation.flat.at))
        cost = relaxation.cost + (cost - relaxation.cost) * bent
    choice, _ = oracle(cost, clock)
    if choice is not None:
        incumbent.offer(relaxation, choice, clock)
