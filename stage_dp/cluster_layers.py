"""Layers: a program cut, in its own order, into pieces of like cost and with little to send between them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numba import njit

from stage_dp.errors import NoStages, StageError

DEFAULT_SLACK = 0.5
"""A layer costs at most half as much again as the mean."""

ROUNDING = 1e-9
"""Relative: sums of the same costs in another order differ by less."""


def cluster_layers(
    cost: Sequence[float], cut_bytes: Sequence[int], n_layers: int, slack: float = DEFAULT_SLACK
) -> tuple[int, ...]:
    """First op of each layer, and the number of ops at the end: `n_layers` + 1 positions.

    cost: of each op in program order, in any one unit, none negative. cut_bytes: `cut_bytes[i]` are sent when
    op i starts a layer, that is all that ops before it make and ops from it on read; one per op, the first
    unused. Of all cuts into layers of at most (1 + slack) times the mean cost, those with the fewest bytes sent
    in all, and of these those with the least Σ cost², which makes layers equal. Exact. Work: ops times layers
    times ops that fit in one layer.
    """
    costs, sent = np.asarray(cost, dtype=np.float64), np.asarray(cut_bytes, dtype=np.float64)
    _check(costs, sent, n_layers, slack)
    sums = np.concatenate([[0.0], np.cumsum(costs)])
    limit = (1 + slack) * sums[-1] / n_layers * (1 + ROUNDING)
    before = _cheapest_cuts(sums, sent, n_layers, limit)
    if before[n_layers, -1] < 0:
        least = _least_limit(sums, n_layers)
        raise NoStages(
            f"{len(costs)} ops cannot be cut into {n_layers} layers that cost at most {1 + slack:.3g} times the mean: "
            f"some op, or what cannot be parted evenly, costs more. The nearest choice is a slack of "
            f"{math.ceil((least * n_layers / sums[-1] - 1) * 1000) / 1000:.3f}, or fewer layers."
        )
    starts = [len(costs)]
    for layer in range(n_layers, 0, -1):
        starts.append(int(before[layer, starts[-1]]))
    return tuple(starts[::-1])


def _check(costs: np.ndarray, sent: np.ndarray, n_layers: int, slack: float) -> None:
    n = len(costs)
    if not 1 <= n_layers <= n:
        raise NoStages(
            f"{n} ops cannot be cut into {n_layers} layers: a layer has at least one op. "
            f"The nearest choice is {min(max(n_layers, 1), n)}."
        )
    if sent.shape != costs.shape or not (np.isfinite(costs).all() and (costs >= 0).all() and (sent >= 0).all()):
        raise StageError(
            f"Costs are {costs.shape}, bytes {sent.shape}: wanted is one of each per op, finite and none negative."
        )
    if not slack >= 0:
        raise StageError(f"slack is {slack}: the share by which a layer may cost more than the mean, 0 or more.")


@njit(cache=True)
def _cheapest_cuts(sums: np.ndarray, sent: np.ndarray, n_layers: int, limit: float) -> np.ndarray:
    """[layers, ops]: where the last layer starts in the best cut of that many ops into that many layers; -1: none."""
    n = len(sums) - 1
    before = np.full((n_layers + 1, n + 1), -1, dtype=np.int32)
    bytes_now, squares_now = np.full(n + 1, np.inf), np.full(n + 1, np.inf)
    bytes_now[0] = squares_now[0] = 0.0
    for layer in range(1, n_layers + 1):
        bytes_next, squares_next = np.full(n + 1, np.inf), np.full(n + 1, np.inf)
        for end in range(layer, n + 1):
            for start in range(end - 1, layer - 2, -1):
                cost = sums[end] - sums[start]
                if cost > limit:
                    break
                if bytes_now[start] == np.inf:
                    continue
                total = bytes_now[start] + (sent[start] if start else 0.0)
                squares = squares_now[start] + cost * cost
                if total < bytes_next[end] or (total == bytes_next[end] and squares < squares_next[end]):
                    bytes_next[end], squares_next[end], before[layer, end] = total, squares, start
        bytes_now, squares_now = bytes_next, squares_next
    return before


def _least_limit(sums: np.ndarray, n_layers: int) -> float:
    """The smallest cost that the costliest of `n_layers` layers can have (layers may be empty here)."""
    low, high = 0.0, float(sums[-1])
    while high - low > ROUNDING * sums[-1]:
        middle = (low + high) / 2
        low, high = (low, middle) if _layers_needed(sums, middle) <= n_layers else (middle, high)
    return high


def _layers_needed(sums: np.ndarray, limit: float) -> float:
    """The fewest layers of at most `limit`; inf if one op costs more."""
    at, layers = 0, 0
    while at < len(sums) - 1:
        end = int(np.searchsorted(sums, sums[at] + limit, side="right")) - 1
        if end == at:
            return math.inf
        at, layers = end, layers + 1
    return layers
