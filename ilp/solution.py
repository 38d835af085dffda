"""The noun that comes out: a choice with its cost, a lower bound, and how it was reached."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Infeasibility", "Progress", "Solution", "Status", "relative_gap"]

Status = Literal["optimal", "feasible", "infeasible"]


def relative_gap(objective: float, bound: float) -> float:
    """(objective - bound) / |objective|; 0 where both are 0, inf where there is no answer yet."""
    if objective == bound:
        return 0.0
    if not math.isfinite(objective) or objective == 0.0:
        return math.inf
    return max(0.0, (objective - bound) / abs(objective))


@dataclass(frozen=True, slots=True)
class Infeasibility:
    """Why nothing fits."""

    reason: str
    """A paragraph."""
    time: int | None = None
    """The moment at which even the smallest choices do not fit; None if memory is not to blame."""
    smallest_peak: int | None = None
    """Bytes: no choice holds less than this at ``time``."""
    alive: tuple[tuple[int, int], ...] = ()
    """(node, its smallest usage in bytes) of those alive at ``time``, largest first."""
    smallest_limit: int | None = None
    """Bytes: the least limit known to be feasible; None if none is known."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What is known so far, handed to the caller's ``progress`` while solving."""

    phase: str
    objective: float
    bound: float
    seconds: float
    work: int

    @property
    def gap(self) -> float:
        """Relative gap of what is known so far."""
        return relative_gap(self.objective, self.bound)


@dataclass(frozen=True, slots=True)
class Solution:
    """An answer and how good it is proved to be."""

    choice: tuple[int, ...]
    """One strategy per node; empty when infeasible or when none was found."""
    objective: float
    """Seconds; inf when there is no choice."""
    bound: float
    """Seconds: no choice costs less."""
    status: Status
    seconds: float = 0.0
    """Wall time spent."""
    work: int = 0
    """Counted work (table entries looked at); the same on every machine."""
    peak: int = 0
    """Bytes held at the worst moment."""
    shadow_price: float = 0.0
    """Seconds saved per byte of limit, at the bound's prices."""
    infeasibility: Infeasibility | None = field(default=None)

    @property
    def gap(self) -> float:
        """(objective - bound) / |objective|."""
        return relative_gap(self.objective, self.bound)

    def __str__(self) -> str:
        """The one line that the command line ends with."""
        return (
            f"cost={self.objective:.15g} bound={self.bound:.15g} gap={self.gap:.3g} "
            f"seconds={self.seconds:.2f} status={self.status}"
        )
