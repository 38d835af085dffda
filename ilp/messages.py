"""A lower bound by message passing along the nodes' order, and choices read off the messages.

Sequential tree-reweighted message passing, V. Kolmogorov, "Convergent Tree-Reweighted Message Passing for Energy
Minimization", IEEE TPAMI 28(10), 2006: its fixed points are (near-)optimal duals of the linear relaxation.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ilp.flat import Flat

__all__ = ["marginals", "round_off", "sweep", "to_edges"]

FAST = {"nnan", "ninf", "nsz", "reassoc", "arcp"}


@njit(cache=True, fastmath=FAST)
def _send(pool: np.ndarray, begin: int, near: np.ndarray, out: np.ndarray) -> float:
    """out[j] = min_i near[i] + matrix[i, j], less its minimum, which is returned."""
    n = len(out)
    first = near[0]
    for j in range(n):
        out[j] = first + pool[begin + j]
    for i in range(1, len(near)):
        base, row = near[i], begin + i * n
        for j in range(n):
            value = base + pool[row + j]
            out[j] = value if value < out[j] else out[j]
    least = out[0]
    for j in range(1, n):
        least = out[j] if out[j] < least else least
    for j in range(n):
        out[j] -= least
    return least


@njit(cache=True, fastmath=FAST)
def sweep(
    flat: Flat,
    cost: np.ndarray,
    messages: np.ndarray,
    forward: bool,
    done: np.ndarray,
    margin: np.ndarray,
) -> float:
    """Pass messages to all later nodes (or, not ``forward``, earlier ones); return a lower bound of the optimum.

    A forward sweep leaves in done[u] what it had secured before u. A backward sweep after it leaves in ``margin`` a
    lower bound of the optimum with each strategy forced: what the past secured + what the future secures + here.
    """
    nodes = len(flat.at) - 1
    bound, future = 0.0, 0.0
    pending = np.zeros(nodes)
    here = np.empty(cost.size)
    share = np.empty(cost.size)
    for step in range(nodes):
        u = step if forward else nodes - 1 - step
        lo, k = flat.at[u], flat.at[u + 1] - flat.at[u]
        for i in range(k):
            here[i] = cost[lo + i]
        for slot in range(flat.slots[u], flat.slots[u + 1]):
            begin = flat.message[slot]
            for i in range(k):
                here[i] += messages[begin + i]
        if forward:
            done[u] = bound
        else:
            future += pending[u]
            for i in range(k):
                margin[lo + i] = done[u] + future + here[i]
        least = here[0]
        for i in range(1, k):
            least = here[i] if here[i] < least else least
        bound += least
        future += least
        for slot in range(flat.slots[u], flat.slots[u + 1]):
            v = flat.far[slot]
            if (v > u) == forward:
                begin = flat.message[slot]
                weight = flat.weight[slot]
                for i in range(k):
                    share[i] = weight * (here[i] - least) - messages[begin + i]
                there = flat.message[flat.back[slot]]
                size = flat.at[v + 1] - flat.at[v]
                sent = _send(flat.pool, flat.matrix[slot], share[:k], messages[there : there + size])
                bound += sent
                pending[v] += sent
    return bound


@njit(cache=True)
def to_edges(flat: Flat, cost: np.ndarray, messages: np.ndarray) -> None:
    """After a forward sweep: leave on the edges what their earlier nodes lent them for it.

    The sum of each node's least cost and each edge's, with messages in, is then that sweep's bound: what no order of
    the nodes is needed for. Sweeps from there, in any order, do not fall below it.
    """
    nodes = len(flat.at) - 1
    here = np.empty(cost.size)
    for u in range(nodes):
        lo, k = flat.at[u], flat.at[u + 1] - flat.at[u]
        for i in range(k):
            here[i] = cost[lo + i]
        for slot in range(flat.slots[u], flat.slots[u + 1]):
            begin = flat.message[slot]
            for i in range(k):
                here[i] += messages[begin + i]
        least = here[:k].min()
        for slot in range(flat.slots[u], flat.slots[u + 1]):
            if flat.far[slot] > u:
                begin, weight = flat.message[slot], flat.weight[slot]
                for i in range(k):
                    messages[begin + i] -= weight * (here[i] - least)


@njit(cache=True)
def round_off(flat: Flat, cost: np.ndarray, messages: np.ndarray, forward: bool, choice: np.ndarray) -> float:
    """Choose node after node: true cost towards those chosen, messages from the others; return the cost."""
    nodes = len(flat.at) - 1
    total = 0.0
    here = np.empty(cost.size)
    paid = np.empty(cost.size)
    for step in range(nodes):
        u = step if forward else nodes - 1 - step
        lo, k = flat.at[u], flat.at[u + 1] - flat.at[u]
        for i in range(k):
            here[i] = cost[lo + i]
        for slot in range(flat.slots[u], flat.slots[u + 1]):
            v = flat.far[slot]
            if (v < u) == forward:
                row = flat.matrix[flat.back[slot]] + choice[v] * k
                for i in range(k):
                    here[i] += flat.pool[row + i]
        for i in range(k):
            paid[i] = here[i]
        for slot in range(flat.slots[u], flat.slots[u + 1]):
            if (flat.far[slot] > u) == forward:
                begin = flat.message[slot]
                for i in range(k):
                    here[i] += messages[begin + i]
        best = 0
        for i in range(1, k):
            if here[i] < here[best]:
                best = i
        choice[u] = best
        total += paid[best]
    return total


def marginals(flat: Flat, cost: np.ndarray, messages: np.ndarray) -> tuple[float, np.ndarray]:
    """One sweep there and back: the bound, and a bound with each strategy forced."""
    done = np.zeros(len(flat.at) - 1)
    margin = np.zeros(cost.size)
    first = sweep(flat, cost, messages, True, done, margin)
    second = sweep(flat, cost, messages, False, done, margin)
    return max(first, second), margin
