"""Memory in compiled loops: what choices hold, and what prices on moments make of costs."""

from __future__ import annotations

import numpy as np
from numba import njit

from ilp.flat import Rows

__all__ = ["charge", "held"]


@njit(cache=True)
def held(rows: Rows, choice: np.ndarray, moments: int) -> np.ndarray:
    """Bytes at each moment."""
    out = np.zeros(moments + 1, dtype=np.int64)
    for r in range(len(rows.node)):
        usage = rows.usage[rows.at[r] + choice[rows.node[r]]]
        out[rows.lo[r]] += usage
        out[rows.hi[r]] -= usage
    for t in range(1, moments + 1):
        out[t] += out[t - 1]
    return out[:moments]


@njit(cache=True)
def charge(at: np.ndarray, rows: Rows, prices: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """The costs, plus prices[t] seconds per byte for what each strategy holds at each moment t."""
    out = cost.copy()
    paid = np.zeros(len(prices) + 1)
    for t in range(len(prices)):
        paid[t + 1] = paid[t] + prices[t]
    for r in range(len(rows.node)):
        price = paid[rows.hi[r]] - paid[rows.lo[r]]
        if price > 0.0:
            u = rows.node[r]
            for i in range(at[u + 1] - at[u]):
                out[at[u] + i] += price * rows.usage[rows.at[r] + i]
    return out
