"""When to stop: counted work, seconds, or a gap; and whom to tell."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ilp.solution import Progress, relative_gap

__all__ = ["DEFAULT_WORK", "Clock"]

DEFAULT_WORK = 30_000_000_000
"""Table entries looked at when neither seconds nor work are given: about half a minute on one core of 2024."""


@dataclass(slots=True)
class Clock:
    """Counts work and keeps the best cost and bound of one solve."""

    seconds: float | None
    work: int | None
    gap: float
    progress: Callable[[Progress], None] | None = None
    timer: Callable[[], float] = time.perf_counter
    """Seconds, from some moment on: `time.perf_counter` for wall time, `time.process_time` for the processor's."""
    began: float = field(init=False)
    done: int = 0
    objective: float = float("inf")
    bound: float = float("-inf")
    outer: Clock | None = None
    cutoff: float = float("inf")
    """A cost from which on a choice is of no use."""

    def __post_init__(self) -> None:
        self.began = self.timer()

    def inner(self, gap: float, share: float) -> Clock:
        """A clock for a part of this solve, with its own cost and bound; what it spends is spent here too.

        It may spend ``share`` of what is left.
        """
        work = self.work if self.work is not None else DEFAULT_WORK if self.seconds is None else None
        return Clock(
            None if self.left is None else share * self.left,
            None if work is None else int(share * max(0, work - self.done)),
            gap,
            timer=self.timer,
            outer=self,
        )

    def spend(self, entries: int) -> None:
        """Count table entries looked at."""
        self.done += int(entries)
        if self.outer is not None:
            self.outer.spend(entries)

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return self.timer() - self.began

    @property
    def left(self) -> float | None:
        """Seconds left; None if they are not limited."""
        return None if self.seconds is None else max(0.0, self.seconds - self.spent)

    @property
    def spent_out(self) -> bool:
        """Whether all that may be spent is spent."""
        if self.seconds is not None and self.spent >= self.seconds:
            return True
        return self.work is not None and self.done >= self.work

    def affords(self, work: int, seconds: float, share: float) -> bool:
        """Whether ``share`` of what is left covers that much work, or seconds where these are limited."""
        if self.seconds is not None:
            return seconds <= share * max(0.0, self.seconds - self.spent)
        return work <= share * ((DEFAULT_WORK if self.work is None else self.work) - self.done)

    def over(self, share: float = 1.0) -> bool:
        """Whether ``share`` of what may be spent is spent, or the gap or the cutoff is reached."""
        if relative_gap(self.objective, self.bound) <= self.gap or self.bound >= self.cutoff:
            return True
        if self.work is not None and self.done >= share * self.work:
            return True
        if self.seconds is not None:
            return self.spent >= share * self.seconds
        return self.work is None and self.done >= share * DEFAULT_WORK

    def tell(self, phase: str) -> None:
        """Report to whoever listens."""
        if self.progress is not None:
            self.progress(Progress(phase, self.objective, self.bound, self.spent, self.done))
