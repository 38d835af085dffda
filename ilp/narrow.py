"""Narrowing: what nothing cheaper takes is left out, round after round, until the exact program can end it.

Each round probes every strategy, presolves what is left and bounds it anew; fewer strategies let more be ruled out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from ilp.ascent import climb
from ilp.clock import Clock
from ilp.incumbent import Incumbent
from ilp.kernel import below, restrict
from ilp.mip import entries
from ilp.outright import Part, most_entries, solve_outright
from ilp.presolve import Reduced
from ilp.prices import find_prices
from ilp.probe import probe, probing_work
from ilp.problem import Problem
from ilp.relaxation import Relaxation, relax

__all__ = ["Narrowing"]

SHARE = 0.75
"""Of the time left, what a pass of probing may be expected to take."""

SHRUNK = 0.9
"""Share of the table entries left above which another round is not worth while."""

ROUND = 0.2
"""Of the time left, what bounding anew may take in each round."""

SWEEPS = 1_500
"""Sweeps of that."""

LAST = {"all": 0.5, "prove": 0.9}
"""Of the seconds left, what the exact program may take at the end."""

LARGER = 2
"""How much larger than a kernel what is left at the end may be for the exact program: nothing else is to be done."""


@dataclass(slots=True)
class Narrowing:
    """The choices that may be cheaper than the cheapest known, or than the cutoff, as a problem that shrinks."""

    whole: Relaxation
    incumbent: Incumbent
    clock: Clock
    rng: np.random.Generator
    part: Part
    left: Reduced | None = None
    """What is left, and the way back to the whole problem."""
    relaxation: Relaxation = field(init=False)
    """Of that."""
    tried: float = math.inf
    """The ceiling when it led no further."""

    def __post_init__(self) -> None:
        self.relaxation = self.whole

    @property
    def ceiling(self) -> float:
        """What a choice must cost less than to be of use."""
        return min(self.incumbent.cost, self.clock.cutoff)

    @property
    def affordable(self) -> bool:
        """Whether it may lead further, and a pass of probing is likely to end in its share of the time."""
        if self.incumbent.choice is None or self.ceiling >= self.tried:
            return False
        before = self.clock.spent
        self.relaxation.ascend(1, self.clock)
        took = self.clock.spent - before
        work = probing_work(self.relaxation, self.ceiling)
        return self.clock.affords(work, took * work / self.relaxation.entries, SHARE)

    def prove(self) -> tuple[bool, float]:
        """Narrow as far as that goes, then solve what is left; return whether that settled the problem, and a bound.

        Better choices met on the way are offered.
        """
        bound = self.whole.bound
        while self.affordable:
            ceiling = self.ceiling
            if self._round(ceiling):
                return True, ceiling
            bound = max(bound, min(ceiling, self.relaxation.bound))
            self.clock.bound = max(self.clock.bound, bound)
            self.clock.tell("narrowing")
            self.incumbent.exchange(self.whole, self.clock)
        if self.tried < math.inf and self.left is not None and not self.clock.over():
            return self._end(bound)
        return False, bound

    def _round(self, ceiling: float) -> bool:
        """Probe, leave out and bound anew; True if nothing is left that costs less than ``ceiling``."""
        complete = probe(self.relaxation, ceiling, self.clock)
        reduced = restrict(self.relaxation, below(self.relaxation, ceiling, None))
        self.clock.spend(20 * len(self.relaxation.cost))
        if reduced.small is None:
            return True
        if complete and entries(reduced.small) >= SHRUNK * entries(self.relaxation.problem):
            self.tried = ceiling
        self.left = reduced if self.left is None else _after(self.left, reduced)
        bound = self.relaxation.bound
        self.relaxation = self._bounded(reduced.small, ceiling)
        self.relaxation.bound = max(self.relaxation.bound, bound)
        return self.relaxation.bound >= ceiling

    def _bounded(self, problem: Problem, ceiling: float) -> Relaxation:
        """What is left, its memory priced."""
        relaxation = relax(problem)
        clock = self.clock.inner(self.clock.gap, ROUND)
        clock.objective = ceiling
        found = Incumbent(cost=ceiling)
        if len(relaxation.prices):
            find_prices(relaxation, found, clock, self.rng)
            climb(relaxation, found, clock, self.rng, 1.0, SWEEPS)
        else:
            relaxation.ascend(SWEEPS, clock)
        if found.choice is not None:
            assert self.left is not None
            self.incumbent.offer(self.whole, np.array(self.left.undo(tuple(found.choice.tolist()))), self.clock)
        return relaxation

    def _end(self, bound: float) -> tuple[bool, float]:
        """The exact program on what is left, if that is small enough."""
        left, self.left = self.left, None
        self.relaxation = self.whole
        assert left is not None
        assert left.small is not None
        if entries(left.small) > LARGER * most_entries(self.clock, left.small.limit is not None):
            return False, bound
        ceiling = self.ceiling
        answer = solve_outright(self.whole, self.incumbent, left, self.clock, LAST[self.part])
        if answer.status in ("optimal", "infeasible"):
            return True, self.ceiling
        return False, max(bound, min(answer.bound, ceiling))


def _after(first: Reduced, second: Reduced) -> Reduced:
    """``second``, made of what ``first`` left, with the way back through both."""
    return Reduced(second.small, lambda choice: first.undo(second.undo(choice)))
