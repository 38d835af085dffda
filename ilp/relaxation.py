"""The Lagrangian relaxation: memory is priced instead of limited, messages bound what is left."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from ilp.clock import Clock
from ilp.flat import Flat, Rows, flatten, memory_rows
from ilp.forest import improve
from ilp.memory import charge, held
from ilp.messages import round_off, sweep, to_edges
from ilp.problem import Problem

__all__ = ["Relaxation", "relax", "worth"]


@dataclass(slots=True)
class Relaxation:
    """A problem flattened, its prices and messages, and the best bound so far."""

    problem: Problem
    flat: Flat
    cost: np.ndarray
    """float64, seconds per strategy; forbidden ones cost ``big``."""
    rows: Rows
    limit: int
    big: float
    """More than any allowed choice costs."""
    prices: np.ndarray
    """Seconds per byte at each moment of ``problem.times``."""
    priced: np.ndarray
    """``cost`` with memory at ``prices``."""
    messages: np.ndarray
    done: np.ndarray
    trial: np.ndarray
    margin: np.ndarray
    """A bound with each strategy forced: the best that any messages gave."""
    bound: float = -math.inf
    best_prices: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def entries(self) -> int:
        """Table entries that one sweep there and back looks at."""
        return int(np.sum(np.diff(self.flat.message) * self._far_sizes)) + len(self.cost)

    @property
    def _far_sizes(self) -> np.ndarray:
        return np.diff(self.flat.at)[self.flat.far]

    def set_prices(self, prices: np.ndarray) -> None:
        """Price memory anew; the messages stay."""
        self.prices = prices
        self.priced = charge(self.flat.at, self.rows, prices, self.cost)

    def ascend(self, sweeps: int, clock: Clock) -> float:
        """Sweep there and back, at least once; return the last bound at these prices, keep the best."""
        now = -math.inf
        owed = float(self.prices.sum()) * self.limit
        for _ in range(sweeps):
            sweep(self.flat, self.priced, self.messages, True, self.done, self.trial)
            now = sweep(self.flat, self.priced, self.messages, False, self.done, self.trial) - owed
            now -= 1e-13 * (abs(now) + owed)
            self.margin = np.maximum(self.margin, self.trial - owed)
            if now > self.bound:
                self.bound, self.best_prices = now, self.prices
            clock.spend(self.entries)
            if clock.spent_out:
                break
        return now

    def lend(self) -> None:
        """Sweep forward, and leave on the edges what nodes lent them: messages that hold for nodes in any order."""
        sweep(self.flat, self.priced, self.messages, True, self.done, self.trial)
        to_edges(self.flat, self.priced, self.messages)

    def secure(self, bound: float) -> float:
        """Take in a bound on the priced cost of every choice, at the present prices; return what it says of (1)."""
        owed = float(self.prices.sum()) * self.limit
        now = bound - owed - 1e-13 * (abs(bound) + owed)
        if now > self.bound:
            self.bound, self.best_prices = now, self.prices
        return now

    def rounded(self, forward: bool) -> np.ndarray:
        """A choice read off the messages."""
        choice = np.zeros(len(self.flat.at) - 1, dtype=np.int64)
        round_off(self.flat, self.priced, self.messages, forward, choice)
        return choice

    def polished(self, choice: np.ndarray, passes: int, rng: np.random.Generator, clock: Clock) -> np.ndarray:
        """A choice improved, at the present prices, by forests that span what they can."""
        out = choice.copy()
        for _ in range(passes):
            clock.spend(improve(self.flat, self.priced, out, rng.permutation(len(out))))
        return out

    def held(self, choice: np.ndarray) -> np.ndarray:
        """Bytes at each moment."""
        return held(self.rows, choice, len(self.prices))

    def excess(self, choice: np.ndarray) -> int:
        """Bytes over the limit at the worst moment; 0 or less where it fits."""
        return int(self.held(choice).max(initial=0)) - self.limit

    def worth(self, choice: np.ndarray) -> float:
        """What a choice costs, without memory prices; ``big`` or more where something forbidden is taken."""
        return worth(self.flat, self.cost, choice)


def worth(flat: Flat, cost: np.ndarray, choice: np.ndarray) -> float:
    """The objective (1) of a choice over flat arrays."""
    taken = flat.at[:-1] + choice
    near = np.repeat(np.arange(len(choice)), np.diff(flat.slots))
    once = near < flat.far
    near, far = near[once], flat.far[once]
    width = flat.at[far + 1] - flat.at[far]
    pairs = flat.matrix[once] + choice[near] * width + choice[far]
    return float(cost[taken].sum() + flat.pool[pairs].sum())


def relax(problem: Problem) -> Relaxation:
    """Flatten ``problem``; no prices, no messages."""
    big = 1.0 + _most(problem)
    flat, cost = flatten(problem, big)
    rows = memory_rows(problem)
    moments = len(problem.times) if problem.limit is not None else 0
    prices = np.zeros(moments)
    return Relaxation(
        problem=problem,
        flat=flat,
        cost=cost,
        rows=rows,
        limit=problem.limit or 0,
        big=big,
        prices=prices,
        priced=cost.copy(),
        messages=np.zeros(int(flat.message[-1])),
        done=np.zeros(len(problem.costs)),
        trial=np.zeros(len(cost)),
        margin=np.full(len(cost), -math.inf),
        best_prices=prices,
    )


def _most(problem: Problem) -> float:
    """More than any choice without forbidden parts costs, from its least: the sum of all largest prices."""
    seen: dict[int, float] = {}

    def largest(cost: np.ndarray) -> float:
        if id(cost) not in seen:
            finite = cost[np.isfinite(cost)]
            seen[id(cost)] = float(np.abs(finite).max(initial=0.0))
        return seen[id(cost)]

    return 2 * (sum(map(largest, problem.costs)) + sum(largest(edge.cost) for edge in problem.edges))
