"""Which strategies of a node no other one beats, whatever its neighbours choose."""

from __future__ import annotations

import numpy as np

from ilp.tables import EXACT, Table, Tables

__all__ = ["undominated"]

Held = tuple[tuple[tuple[int, int], Table], ...]

MANY_ROWS = 48
"""Memory rows of one node beyond which they are compared one by one, not moment by moment."""


def undominated(tables: Tables, cost: Table, around: tuple[Table, ...], held: Held) -> np.ndarray:
    """Mask of the strategies to keep: i goes if some k holds no more at any moment and never costs more.

    Of strategies that beat each other the first stays.
    """
    c = cost.array
    gain = c[:, None] - c[None, :]
    scale = float(np.abs(c).max())
    for matrix in around:
        advantage, largest = tables.advantage(matrix)
        gain = gain + advantage
        scale += largest
    beaten = gain >= -EXACT * scale
    for usage in usages(held):
        beaten &= usage[:, None] >= usage[None, :]
    index = np.arange(len(c))
    beaten &= ~(beaten.T & (index[:, None] <= index[None, :]))
    return np.asarray(~beaten.any(axis=1))


def usages(held: Held) -> list[np.ndarray]:
    """The bytes of each strategy at each moment that differs from the others (or, for many rows, of each row)."""
    if len(held) > MANY_ROWS:
        return [usage.array for _, usage in held]
    marks = sorted({at for span, _ in held for at in span})
    out = []
    for at in marks[:-1]:
        live = [usage.array for (lo, hi), usage in held if lo <= at < hi]
        if live:
            out.append(np.sum(live, axis=0))
    return out
