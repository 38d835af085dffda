"""The exact search: the least of (1) in `objective` over all splits.

For a ceiling L on the periods let G(L) be the least of the other terms; G falls as L grows, and one dynamic
program gives it. The least of w·L + G(L) is sought by intervals: nothing in (low, high) is better than
w·(next period above low) + G(high), and nothing above (best − G(high)) / w is better than the best. An interval
is halved while its bound is below the best, and each program is told what it must beat.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from stage_dp.flat import Flat, flatten, only
from stage_dp.kernel import ANY, extend, next_period, possible_counts, remaining
from stage_dp.objective import Objective
from stage_dp.price import Layers

ROUNDING = 1e-12
"""Relative: below this, two sums of the same seconds in another order differ by rounding alone."""


COARSE = 1.1
"""Ratio within which the first guess finds the shortest possible longest period."""


@dataclass(frozen=True, slots=True)
class Split:
    """One way to cut. stages: per stage (first layer, one past the last, submesh, point of the front)."""

    stages: tuple[tuple[int, int, int, int], ...]
    longest: float
    """max_i P_i, seconds."""
    rest: float
    """The other terms of (1), seconds."""

    def seconds(self, weight: float) -> float:
        """(1)."""
        return weight * self.longest + self.rest


class Path(NamedTuple):
    """A split as the program sees it."""

    entries: np.ndarray
    """Per stage, in the program's entries."""
    senders: np.ndarray
    """Per stage, the class of the submesh before."""
    rest: float


Interval = tuple[float, float, float, float]
"""A bound on (1), and of the ceilings on periods that it is for: above, below, and the least other terms."""

Reached = tuple[np.ndarray, np.ndarray]
"""Flat indices of states, ascending, and for each the entry and the class before it."""


class Search:
    """One table under one objective.

    n_stages: exactly so many stages, or None. may_idle: devices may be left out. memory: bytes of each device,
    or None (that of `layers` is not looked at).
    """

    def __init__(
        self, layers: Layers, objective: Objective, n_stages: int | None, may_idle: bool, memory: int | None
    ) -> None:
        self.objective = objective
        self.flat: Flat = flatten(layers, objective, memory)
        self.n_stages = n_stages
        self.may_idle = may_idle

    def best(self, ceiling: float = math.inf) -> Split | None:
        """The best split, if (1) is below `ceiling` for it."""
        weight = self.objective.weight
        if not weight:
            found = self.under(math.inf, ceiling)
            return found if found is not None and found.rest < ceiling else None
        best, seconds = None, ceiling
        high, rest = self._reach(ceiling)
        low, start = self._first_guess(high) if rest < math.inf else (0.0, 0.0)
        intervals: list[Interval] = []
        self._push(intervals, low, high, rest)
        while intervals:
            bound, low, high, rest = heapq.heappop(intervals)
            if not bound < seconds * (1 - ROUNDING):
                break
            middle = max(self._middle(low, high, (seconds - rest) / weight), start)
            start = 0.0
            found = self.under(middle, seconds - weight * self._above(low))
            if found is not None:
                if found.seconds(weight) < seconds:
                    best, seconds = found, found.seconds(weight)
                self._push(intervals, low, found.longest, found.rest)
            self._push(intervals, middle, high, rest)
        return best

    def _reach(self, ceiling: float) -> tuple[float, float]:
        """Of a split below `ceiling`: its periods are below the first, its other terms not below the second."""
        longest, rest = math.inf, self._rest(math.inf)
        while rest < math.inf and (ceiling - rest) / self.objective.weight < longest / COARSE:
            longest = (ceiling - rest) / self.objective.weight
            rest = self._rest(longest)
        return longest, rest

    def _rest(self, longest: float) -> float:
        """The other terms of (1) are no less when no period is longer; inf: there is no such split."""
        stages, seconds = self.remaining(longest)
        return float(seconds[0, -1]) if stages[0, -1] <= self.objective.max_stages else math.inf

    def _first_guess(self, end: float) -> tuple[float, float]:
        """Where to start below `end`: no split has periods of at most the first; some may, of at most the second."""
        period = self.flat.entries.period
        low, high = 0.0, min(end, float(period.max(initial=0.0)))
        least = min(high, float(period[period > 0].min(initial=high)))
        while high > max(low, least) * COARSE:
            middle = math.sqrt(max(low, least) * high)
            low, high = (low, middle) if self._rest(middle) < math.inf else (middle, high)
        return low, high

    def _middle(self, low: float, high: float, end: float) -> float:
        """A ceiling to try between `low` and `high`; nothing from `end` on is better than the best known."""
        end = min(high, end)
        above = self._above(low)
        middle = (low + end) / 2 if end < math.inf else above * COARSE
        return math.inf if middle > self._most else max(middle, above)

    @cached_property
    def _most(self) -> float:
        """No period is longer."""
        sent = float(self.flat.links.period.max(initial=0.0))
        longest = float(self.flat.entries.period.max(initial=0.0))
        return longest + sent if self.flat.links.charged else max(longest, sent)

    def _above(self, low: float) -> float:
        return next_period(self.flat.entries, self.flat.links, low)

    def _push(self, intervals: list[Interval], low: float, high: float, rest: float) -> None:
        """Note that ceilings above `low` and below `high`, of at least that `rest`, are still to be tried."""
        above = self._above(low)
        if above < high and rest < math.inf:
            heapq.heappush(intervals, (self.objective.weight * above + rest, low, high, rest))

    def remaining(self, longest: float) -> tuple[np.ndarray, np.ndarray]:
        """See `kernel.remaining`; periods are at most `longest`."""
        entries = only(self.flat.entries, self.flat.entries.period <= longest)
        return remaining(self.flat.n_devices, entries, self.objective.least_in_flight, self.may_idle)

    def possible(self) -> bool:
        """Whether there is any split."""
        objective, flat = self.objective, self.flat
        if self.n_stages is None:
            return self._rest(math.inf) < math.inf
        most = min(self.n_stages, objective.max_stages)
        counts = possible_counts(flat.n_devices, flat.entries, objective.in_flight, self.may_idle, most)
        return most == self.n_stages and bool(counts[most])

    def under(self, longest: float, budget: float = math.inf) -> Split | None:
        """A split with periods of at most `longest` and the least `rest`, if that is at most `budget`."""
        return _Program(self, longest, budget * (1 + ROUNDING)).solve()


class _Program:
    """One dynamic program: periods of at most `longest`."""

    def __init__(self, search: Search, longest: float, budget: float) -> None:
        self.flat, self.objective, self.n_stages = search.flat, search.objective, search.n_stages
        self.longest, self.budget = longest, budget
        self.entries = only(self.flat.entries, self.flat.entries.period <= longest)
        self.stages, self.seconds = search.remaining(longest)

    def solve(self) -> Split | None:
        """First as if as few stages as possible followed each; where that is wrong, by number of stages."""
        if self.stages[0, -1] > self.objective.max_stages or self.seconds[0, -1] > self.budget:
            return None
        if self.n_stages is None:
            path = self._relaxed()
            if path is None or self._holds(path):
                return path and self._split(path)
        path = self._by_count()
        return path and self._split(path)

    def _relaxed(self) -> Path | None:
        """The least over a superset of the splits."""
        values, by = self._nothing(), self._no_parents()
        values[0, 0, 0] = 0.0
        self._extend(values, values, by, ANY)
        reached = np.flatnonzero(np.isfinite(values))
        step = (reached, by.reshape(-1, 2)[reached])
        return self._trace(values[-1], lambda: step)

    def _by_count(self) -> Path | None:
        """The least over exactly the splits asked for: states by the number of stages that follow, too."""
        most = self.objective.max_stages
        counts = range(1, most + 1) if self.n_stages is None else range(self.n_stages, min(self.n_stages, most) + 1)
        values = self._nothing()
        steps: list[Reached] = []
        for follow in range(max(counts, default=0) - 1, -1, -1):
            if follow + 1 in counts:
                values[0, 0, 0] = 0.0
            after, by = self._nothing(), self._no_parents()
            self._extend(values, after, by, follow)
            reached = np.flatnonzero(np.isfinite(after))
            steps.append((reached, by.reshape(-1, 2)[reached]))
            values = after
        return self._trace(values[-1], steps.pop)

    def _trace(self, ends: np.ndarray, previous: Callable[[], Reached]) -> Path | None:
        """How the best of the full splits `ends` [d, j] was made, from `previous` states; None if there is none."""
        least = ends.min()
        if least == math.inf:
            return None
        d, j = (int(x) for x in np.argwhere(ends == least)[-1])  # of equal ones, that with most devices
        a, made = self.flat.n_layers, []
        while a:
            reached, by = previous()
            state = np.ravel_multi_index((a, d, j), self._shape)
            e, before = (int(x) for x in by[np.searchsorted(reached, state)])
            made.append((e, before))
            a, d, j = int(self.entries.first[e]), d - int(self.entries.size[e]), before
        return Path(np.array([e for e, _ in made[::-1]]), np.array([j for _, j in made[::-1]]), float(least))

    def _extend(self, values: np.ndarray, after: np.ndarray, by: np.ndarray, follow: int) -> None:
        extend(
            values, after, by, follow, self.entries, self.flat.links, self.objective.in_flight,
            self.stages, self.seconds, self.longest, self.budget,
        )  # fmt: skip

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.flat.n_layers + 1, self.flat.n_devices + 1, self.flat.links.seconds.shape[1]

    def _nothing(self) -> np.ndarray:
        return np.full(self._shape, np.inf)

    def _no_parents(self) -> np.ndarray:
        return np.empty((*self._shape, 2), dtype=np.int32)

    def _holds(self, path: Path) -> bool:
        """Whether memory holds what each stage has in flight, and there are not too many stages."""
        n = len(path.entries)
        held = self.objective.in_flight[np.arange(n - 1, -1, -1)]
        return n <= self.objective.max_stages and bool(np.all(self.entries.cap[path.entries] >= held))

    def _split(self, path: Path) -> Split:
        entries, links, e = self.entries, self.flat.links, path.entries
        sent = links.period[entries.first[e], path.senders, entries.submesh[e]]
        period = entries.period[e] + sent if links.charged else np.maximum(entries.period[e], sent)
        columns = (entries.first[e], entries.end[e], entries.submesh[e], entries.point[e])
        stages = tuple((int(a), int(b), int(k), int(p)) for a, b, k, p in zip(*columns, strict=True))
        return Split(stages, float(period.max()), path.rest)
