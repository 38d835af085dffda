"""The compiled loops: partial splits by number of layers, devices and last submesh.

A state (a, d, j) stands for layers 0 to a - 1 on d devices, the last stage on a submesh of class j. Its value is
the least of Σ (f_i + x_i) + max_i (D_i − Σ_{j<i} f_j − Σ_{j≤i} x_j) over its splits; another stage makes of it

    value'  =  f + max(value + x, D)                                                                     (2)

which grows with `value`, so that the least suffices.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from stage_dp.flat import Entries, Links

NEVER = 1 << 30
"""Stages wanted by layers that the devices left cannot run. One more is no overflow."""

ANY = -1
"""No particular number of stages to follow."""


@njit(cache=True)
def remaining(n_devices: int, entries: Entries, in_flight: np.ndarray, may_idle: bool) -> tuple[np.ndarray, np.ndarray]:
    """For layers a to the last on exactly d devices (at most, if `may_idle`): [a, d] bounds.

    The fewest stages, and the least Σ f_i, each by itself, without transfers, and with as few microbatches in
    flight as the fewest stages that follow ask for.
    """
    n_layers = len(entries.at) - 1
    stages = np.full((n_layers + 1, n_devices + 1), NEVER, dtype=np.int32)
    seconds = np.full((n_layers + 1, n_devices + 1), np.inf)
    last = n_devices if may_idle else 0
    stages[n_layers, : last + 1] = 0
    seconds[n_layers, : last + 1] = 0.0
    for a in range(n_layers - 1, -1, -1):
        for e in range(entries.at[a], entries.at[a + 1]):
            b, size, cap, fill = entries.end[e], entries.size[e], entries.cap[e], entries.fill[e]
            behind, then = stages[b, : n_devices + 1 - size], seconds[b, : n_devices + 1 - size]
            mine, least = stages[a, size:], seconds[a, size:]
            if cap >= in_flight[-1]:  # without a test on each the loop runs many at once
                for d in range(len(mine)):
                    mine[d] = min(mine[d], behind[d] + 1)
                    least[d] = min(least[d], then[d] + fill)
                continue
            for d in range(len(mine)):
                if behind[d] < NEVER and cap >= in_flight[behind[d]]:
                    mine[d] = min(mine[d], behind[d] + 1)
                    least[d] = min(least[d], then[d] + fill)
    return stages, seconds


@njit(cache=True)
def possible_counts(n_devices: int, entries: Entries, in_flight: np.ndarray, may_idle: bool, most: int) -> np.ndarray:
    """Which numbers of stages, 0 to `most`, memory and devices allow: bool [most + 1]."""
    n_layers = len(entries.at) - 1
    possible = np.zeros(most + 1, dtype=np.bool_)
    now = np.zeros((n_layers + 1, n_devices + 1), dtype=np.bool_)
    now[n_layers, : (n_devices if may_idle else 0) + 1] = True
    for follow in range(most):
        before = np.zeros_like(now)
        for a in range(n_layers):
            for e in range(entries.at[a], entries.at[a + 1]):
                if entries.cap[e] >= in_flight[follow]:
                    b, size = entries.end[e], entries.size[e]
                    for d in range(size, n_devices + 1):
                        before[a, d] |= now[b, d - size]
        now = before
        possible[follow + 1] = now[0, n_devices]
    return possible


@njit(cache=True)
def extend(
    now: np.ndarray,
    after: np.ndarray,
    by: np.ndarray,
    follow: int,
    entries: Entries,
    links: Links,
    in_flight: np.ndarray,
    stages: np.ndarray,
    seconds: np.ndarray,
    longest: float,
    budget: float,
) -> None:
    """Put one more stage behind every state of `now` [a, d, j]; write values to `after`, how to `by` [a, d, j, 2].

    `follow` stages come behind the new one; `ANY`: as few as can be, and `after` is `now` itself, so that all
    splits are made in one call. `by` holds the entry and the class of the stage before. Periods are at most
    `longest`; states that cannot end at `budget` or less are left out.
    """
    n_layers, n_devices, n_classes = now.shape[0] - 1, now.shape[1] - 1, now.shape[2]
    offers = np.empty(n_classes, dtype=np.int64)
    for a in range(n_layers):
        for d in range(n_devices):
            if np.min(now[a, d]) == np.inf:
                continue
            receiver, n_offers = -1, 0
            for e in range(entries.at[a], entries.at[a + 1]):
                b, used, k = entries.end[e], d + entries.size[e], entries.submesh[e]
                if used > n_devices or not _fits(b, used, follow, entries.cap[e], in_flight, stages, n_layers):
                    continue
                if k != receiver:
                    receiver, n_offers = k, _offers(now[a, d], links.period[a, :, k], links.seconds[a, :, k], offers)
                base = entries.period[e] if links.charged else 0.0
                pick = n_offers - 1
                while pick >= 0 and base + links.period[a, offers[pick], k] > longest:
                    pick -= 1
                if pick < 0:
                    continue
                j = offers[pick]
                value = entries.fill[e] + max(now[a, d, j] + links.seconds[a, j, k], entries.step[e])
                own = links.class_of[k]
                if value < after[b, used, own] and value + seconds[b, n_devices - used] <= budget:
                    after[b, used, own] = value
                    by[b, used, own, 0] = e
                    by[b, used, own, 1] = j


@njit(cache=True)
def _fits(b: int, used: int, follow: int, cap: int, in_flight: np.ndarray, stages: np.ndarray, n_layers: int) -> bool:
    """Whether the layers from b on can still be run, and memory holds what the stages that follow make it hold."""
    fewest = stages[b, stages.shape[1] - 1 - used]
    if follow == ANY:
        return fewest < NEVER and bool(cap >= in_flight[fewest])
    if follow < fewest or follow > n_layers - b or (follow == 0) != (b == n_layers):
        return False
    return bool(cap >= in_flight[follow])


@njit(cache=True)
def _offers(values: np.ndarray, period: np.ndarray, seconds: np.ndarray, offers: np.ndarray) -> int:
    """Classes worth receiving from, into `offers`: by growing period of the transfer, each cheaper than the last."""
    order = np.argsort(period)
    n, best = 0, np.inf
    for j in order:
        value = values[j] + seconds[j]
        if value < best:
            best = value
            if n and period[offers[n - 1]] == period[j]:
                n -= 1
            offers[n] = j
            n += 1
    return n


@njit(cache=True)
def next_period(entries: Entries, links: Links, above: float) -> float:
    """The smallest period above `above` that any stage or transfer has; inf if there is none."""
    best = np.inf
    n_classes = links.period.shape[1]
    for a in range(len(entries.at) - 1):
        for e in range(entries.at[a], entries.at[a + 1]):
            base = entries.period[e]
            if base > above:
                best = min(best, base)
            elif a == 0:
                continue
            for j in range(n_classes):
                sent = links.period[a, j, entries.submesh[e]]
                period = base + sent if links.charged else sent
                if above < period < best:
                    best = period
    return best
