"""The steps of presolve, each with its way back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Eliminated", "Kept", "Merged", "Settled", "Step", "replay"]


@dataclass(frozen=True, slots=True)
class Kept:
    """Node u kept some of its strategies."""

    u: int
    kept: np.ndarray

    def undo(self, x: dict[int, int]) -> None:
        """Name the strategy as before."""
        x[self.u] = int(self.kept[x[self.u]])


@dataclass(frozen=True, slots=True)
class Settled:
    """Node u had one strategy left."""

    u: int

    def undo(self, x: dict[int, int]) -> None:
        """Take that one."""
        x[self.u] = 0


@dataclass(frozen=True, slots=True)
class Merged:
    """Node v followed node u."""

    v: int
    u: int
    f: np.ndarray

    def undo(self, x: dict[int, int]) -> None:
        """Follow."""
        x[self.v] = int(self.f[x[self.u]])


@dataclass(frozen=True, slots=True)
class Eliminated:
    """Node u was free to be best for its neighbours' choices."""

    u: int
    cost: np.ndarray
    around: tuple[tuple[int, np.ndarray], ...]
    """(v, matrix [k_u, k_v]) per neighbour."""

    def undo(self, x: dict[int, int]) -> None:
        """Be best."""
        total = self.cost.copy()
        for v, matrix in self.around:
            total += matrix[:, x[v]]
        x[self.u] = int(np.argmin(total))


Step = Kept | Settled | Merged | Eliminated


def replay(steps: list[Step], chosen: dict[int, int], nodes: int) -> tuple[int, ...]:
    """Walk the steps backwards from the choice of what was left."""
    x = dict(chosen)
    for step in reversed(steps):
        step.undo(x)
    return tuple(x[u] for u in range(nodes))
