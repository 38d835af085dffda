"""Large neighbourhoods: the best choice of all nodes of an induced forest, the others held, by dynamic programming."""

from __future__ import annotations

import numpy as np
from numba import njit

from ilp.flat import Flat

__all__ = ["ball", "improve"]


@njit(cache=True)
def _find(root: np.ndarray, u: int) -> int:
    """The representative of u's tree."""
    while root[u] != u:
        root[u] = root[root[u]]
        u = root[u]
    return u


@njit(cache=True)
def _grow(flat: Flat, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Take candidates one by one unless they close a cycle; return parents-first order and each one's parent slot."""
    nodes = len(flat.at) - 1
    root = np.full(nodes, -1, dtype=np.int64)
    mark = np.full(nodes, -1, dtype=np.int64)
    for u in candidates:
        good = root[u] < 0
        for slot in range(flat.slots[u], flat.slots[u + 1]):
            if root[flat.far[slot]] >= 0:
                r = _find(root, flat.far[slot])
                good = good and mark[r] != u
                mark[r] = u
        if good:
            root[u] = u
            for slot in range(flat.slots[u], flat.slots[u + 1]):
                if root[flat.far[slot]] >= 0:
                    root[_find(root, flat.far[slot])] = u
    order = np.empty(nodes, dtype=np.int64)
    parent = np.full(nodes, -2, dtype=np.int64)
    end = 0
    for u in candidates:
        if root[u] < 0 or parent[u] != -2:
            continue
        parent[u] = -1
        order[end] = u
        read = end
        end += 1
        while read < end:
            w = order[read]
            read += 1
            for slot in range(flat.slots[w], flat.slots[w + 1]):
                v = flat.far[slot]
                if root[v] >= 0 and parent[v] == -2:
                    parent[v] = flat.back[slot]
                    order[end] = v
                    end += 1
    return order[:end], parent


@njit(cache=True)
def _outside(flat: Flat, u: int, parent: np.ndarray, choice: np.ndarray, here: np.ndarray) -> None:
    """Add to u's costs what its neighbours outside the forest make of them."""
    lo, k = flat.at[u], flat.at[u + 1] - flat.at[u]
    for slot in range(flat.slots[u], flat.slots[u + 1]):
        v = flat.far[slot]
        if parent[v] == -2:
            row = flat.matrix[flat.back[slot]] + choice[v] * k
            for i in range(k):
                here[lo + i] += flat.pool[row + i]


@njit(cache=True)
def _upward(flat: Flat, u: int, slot: int, here: np.ndarray, best: np.ndarray) -> None:
    """Add u's least costs to its parent's, per strategy of the parent; remember by which strategy."""
    lo, k = flat.at[u], flat.at[u + 1] - flat.at[u]
    there = flat.at[flat.far[slot]]
    matrix = flat.matrix[flat.back[slot]]
    for j in range(len(best)):
        least, arg = np.inf, 0
        row = matrix + j * k
        for i in range(k):
            value = here[lo + i] + flat.pool[row + i]
            if value < least:
                least, arg = value, i
        here[there + j] += least
        best[j] = arg


@njit(cache=True)
def improve(flat: Flat, cost: np.ndarray, choice: np.ndarray, candidates: np.ndarray) -> int:
    """Make ``choice`` optimal on a forest grown from ``candidates``; return the table entries looked at."""
    order, parent = _grow(flat, candidates)
    here = cost.copy()
    begin = np.zeros(len(flat.at), dtype=np.int64)
    total, work = 0, len(order)
    for u in order:
        begin[u] = total
        if parent[u] >= 0:
            p = flat.far[parent[u]]
            total += flat.at[p + 1] - flat.at[p]
    best = np.empty(total, dtype=np.int64)
    for step in range(len(order) - 1, -1, -1):
        u = order[step]
        k = flat.at[u + 1] - flat.at[u]
        _outside(flat, int(u), parent, choice, here)
        work += k * (flat.slots[u + 1] - flat.slots[u])
        if parent[u] >= 0:
            p = flat.far[parent[u]]
            size = flat.at[p + 1] - flat.at[p]
            _upward(flat, int(u), int(parent[u]), here, best[begin[u] : begin[u] + size])
            work += size * k
    for u in order:
        if parent[u] >= 0:
            choice[u] = best[begin[u] + choice[flat.far[parent[u]]]]
        else:
            lo = flat.at[u]
            kept = lo + choice[u]
            for i in range(lo, flat.at[u + 1]):
                if here[i] < here[kept]:
                    kept = i
            choice[u] = kept - lo
    return int(work)


@njit(cache=True)
def ball(flat: Flat, centre: int, size: int) -> np.ndarray:
    """The ``size`` nodes nearest to ``centre``, breadth first."""
    seen = np.zeros(len(flat.at) - 1, dtype=np.bool_)
    out = np.empty(min(size, len(seen)), dtype=np.int64)
    out[0] = centre
    seen[centre] = True
    end, read = 1, 0
    while read < end and end < len(out):
        w = out[read]
        read += 1
        for slot in range(flat.slots[w], flat.slots[w + 1]):
            v = flat.far[slot]
            if not seen[v] and end < len(out):
                seen[v] = True
                out[end] = v
                end += 1
    return out[:end]
