"""The least memory that would do, where what is allowed is too little: prices where most is held, forest by forest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ilp.clock import Clock
from ilp.forest import improve
from ilp.memory import charge
from ilp.problem import Edge, Problem
from ilp.relaxation import relax

__all__ = ["least_peak", "without_prices"]

ROUNDS = 60
"""How often the price of the worst moment is raised."""

PASSES = 2
"""Forests re-chosen after each."""


def without_prices(problem: Problem) -> Problem:
    """The same choices allowed, all at no cost and without limit."""
    made: dict[int, np.ndarray] = {}

    def free(cost: np.ndarray) -> np.ndarray:
        return made.setdefault(id(cost), np.where(np.isfinite(cost), 0.0, np.inf))

    edges = tuple(Edge(e.u, e.v, free(e.cost)) for e in problem.edges)
    return replace(problem, costs=tuple(map(free, problem.costs)), edges=edges, limit=None)


def least_peak(problem: Problem, start: Sequence[int], clock: Clock) -> int:
    """A peak, in bytes, as small as is found from ``start``, a choice that takes nothing forbidden."""
    relaxation = relax(replace(without_prices(problem), limit=problem.limit or 0))
    rng = np.random.default_rng(0)
    choice = np.array(start, dtype=np.int64)
    held = relaxation.held(choice)
    least = int(held.max(initial=0))
    if not least:
        return 0
    prices = np.full(len(held), 1.0 / len(held))
    for _ in range(ROUNDS):
        weights = prices / (prices.sum() * held.max() * 4)  # all memory together costs less than one forbidden pair
        priced = charge(relaxation.flat.at, relaxation.rows, weights, relaxation.cost)
        for _ in range(PASSES):
            clock.spend(improve(relaxation.flat, priced, choice, rng.permutation(len(choice))))
        held = relaxation.held(choice)
        if relaxation.worth(choice) < relaxation.big:
            least = min(least, int(held.max()))
        prices[int(np.argmax(held))] += 0.1 * prices.sum()
        if clock.over():
            break
    return least
