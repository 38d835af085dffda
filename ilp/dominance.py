"""Which strategies of a node no other one beats, whatever its neighbours choose."""

from __future__ import annotations

import numpy as np
from numba import njit

from ilp.tables import EXACT, Table, Tables

__all__ = ["in_order", "undominated"]

Held = tuple[tuple[tuple[int, int], Table], ...]

MANY_ROWS = 48
"""Memory rows of one node beyond which they are compared one by one, not moment by moment."""


def in_order(held: dict[tuple[int, int], Table]) -> Held:
    """A node's memory rows with only the order of their moments kept: the same for the same node of every layer."""
    rank = {at: k for k, at in enumerate(sorted({at for span in held for at in span}))}
    rows = [((rank[lo], rank[hi]), usage) for (lo, hi), usage in held.items()]
    return tuple(sorted(rows, key=lambda row: (row[0], row[1].serial)))


def undominated(tables: Tables, cost: Table, around: tuple[Table, ...], held: Held) -> np.ndarray:
    """Mask of the strategies to keep: i goes if some k holds no more at any moment and never costs more.

    Of strategies that beat each other the first stays.
    """
    c = cost.array
    scale = float(np.abs(c).max())
    hoped = c[:, None] - c[None, :]
    for matrix in around:
        promise, largest = tables.promise(matrix)
        hoped = hoped + promise
        scale += largest
    slack = EXACT * scale
    possible = hoped >= -slack
    for usage in usages(held):
        possible &= usage[:, None] >= usage[None, :]
    np.fill_diagonal(possible, False)
    i, k = (np.ascontiguousarray(index) for index in np.nonzero(possible))
    spare = hoped[i, k] + slack
    for matrix in around:
        if not len(i):
            break
        promise, _ = tables.promise(matrix)
        stay = _spend(matrix.array, i, k, spare, promise[i, k])
        i, k, spare = i[stay], k[stay], spare[stay]
    return _standing(len(c), i, k)


@njit(cache=True)
def _spend(a: np.ndarray, i: np.ndarray, k: np.ndarray, spare: np.ndarray, promise: np.ndarray) -> np.ndarray:
    """Per pair: replace what ``a`` promised of i's cost over k's by what it keeps; whether something is left.

    It keeps min_j a[i, j] - a[k, j]; a column that forbids i does not count, one that forbids only k ends it.
    """
    stay = np.ones(len(i), dtype=np.bool_)
    for pair in range(len(i)):
        dear, cheap = a[i[pair]], a[k[pair]]
        enough = promise[pair] - spare[pair]
        least = promise[pair]
        for j in range(len(dear)):
            if dear[j] < np.inf:
                more = dear[j] - cheap[j]
                if more < least:
                    least = more
                    if least < enough:
                        stay[pair] = False
                        break
        spare[pair] += least - promise[pair]
    return stay


@njit(cache=True)
def _standing(n: int, i: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Mask of 0..n-1 without each i[p] whose k[p] stands; the pairs come sorted, the last are looked at first."""
    standing = np.ones(n, dtype=np.bool_)
    for pair in range(len(i) - 1, -1, -1):
        if standing[k[pair]]:
            standing[i[pair]] = False
    return standing


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
