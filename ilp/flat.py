"""A problem as a handful of flat arrays, the form in which compiled loops read it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ilp.problem import Problem

__all__ = ["Flat", "Rows", "flatten", "memory_rows", "shares"]


class Flat(NamedTuple):
    """Nodes in the problem's order. Each edge is two slots, one at each end; a slot belongs to its near node.

    The message that comes in at a slot has one entry per strategy of the near node.
    """

    at: np.ndarray
    """int64 [nodes + 1]: where a node's strategies begin in a flat vector of all strategies."""
    slots: np.ndarray
    """int64 [nodes + 1]: where a node's slots begin; within a node sorted by the far node."""
    far: np.ndarray
    """int64 [slots]: the node at the other end."""
    back: np.ndarray
    """int64 [slots]: the same edge's slot at the other end."""
    matrix: np.ndarray
    """int64 [slots]: where the matrix [k_near, k_far] begins in ``pool``."""
    message: np.ndarray
    """int64 [slots + 1]: where the slot's message begins in a flat vector of all messages."""
    pool: np.ndarray
    """float64: all distinct matrices, each in both orientations."""
    weight: np.ndarray
    """float64 [slots]: the share of the near node's cost that a sweep towards the far node takes along."""


class Rows(NamedTuple):
    """The memory rows: row r adds usage[at[r]:at[r] + k] of ``node[r]`` to the moments lo[r] <= t < hi[r]."""

    node: np.ndarray
    lo: np.ndarray
    hi: np.ndarray
    at: np.ndarray
    usage: np.ndarray
    """int64: distinct usage vectors, one after another."""
    starts: np.ndarray
    """int64 [nodes + 1]: the rows of a node are starts[u] <= r < starts[u + 1]."""


def flatten(problem: Problem, big: float) -> tuple[Flat, np.ndarray]:
    """The graph and the costs of ``problem``; parallel edges summed, forbidden entries priced ``big``."""
    nodes = len(problem.costs)
    sizes = np.array([len(cost) for cost in problem.costs], dtype=np.int64)
    at = np.concatenate(([0], np.cumsum(sizes)))
    cost = np.minimum(np.concatenate(problem.costs), big) if nodes else np.zeros(0)
    pairs = _simple(problem)
    near = np.array([w for u, v in pairs for w in (u, v)], dtype=np.int64)
    far = np.array([w for u, v in pairs for w in (v, u)], dtype=np.int64)
    order = np.lexsort((far, near))
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    back = place[np.arange(len(order)) ^ 1][order]
    slots = np.searchsorted(near[order], np.arange(nodes + 1))
    pool, begins = _pool(pairs, big)
    message = np.concatenate(([0], np.cumsum(sizes[near[order]])))
    weight = shares(slots, near[order], far[order], np.ones(len(order)))
    flat = Flat(at, slots.astype(np.int64), far[order], back, begins[order], message, pool, weight)
    return flat, cost


def shares(slots: np.ndarray, near: np.ndarray, far: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The weights of slots that stand for so many edges each: of all on one side of a node they are at most 1."""
    n = len(slots) - 1
    earlier = np.bincount(near, counts * (far < near), n)
    later = np.bincount(near, counts * (far > near), n)
    return counts / np.maximum(earlier, later)[near]


def _simple(problem: Problem) -> dict[tuple[int, int], np.ndarray]:
    """One matrix per pair of neighbours u < v."""
    pairs: dict[tuple[int, int], np.ndarray] = {}
    turned: dict[int, np.ndarray] = {}
    for edge in problem.edges:
        key, cost = (edge.u, edge.v), edge.cost
        if edge.u > edge.v:
            key, cost = (edge.v, edge.u), turned.setdefault(id(edge.cost), np.ascontiguousarray(edge.cost.T))
        pairs[key] = cost if key not in pairs else pairs[key] + cost
    return pairs


def _pool(pairs: dict[tuple[int, int], np.ndarray], big: float) -> tuple[np.ndarray, np.ndarray]:
    """The distinct matrices in both orientations, and where each slot's begins (u's slot, then v's, per pair)."""
    parts: list[np.ndarray] = []
    seen: dict[int, tuple[int, int]] = {}
    begins: list[int] = []
    end = 0
    for matrix in pairs.values():
        if id(matrix) not in seen:
            capped = np.minimum(matrix, big)
            parts += [capped.ravel(), capped.T.ravel()]
            seen[id(matrix)] = (end, end + matrix.size)
            end += 2 * matrix.size
        begins += seen[id(matrix)]
    pool = np.concatenate(parts) if parts else np.zeros(0)
    return pool, np.array(begins, dtype=np.int64)


def memory_rows(problem: Problem) -> Rows:
    """The memory rows of ``problem``, over positions in ``problem.times``; empty without a limit."""
    kept = [
        (m.node, int(lo), int(hi), m.usage)
        for m, lo, hi in zip(problem.memory, *problem.spans, strict=True)
        if lo < hi and problem.limit is not None
    ]
    kept.sort(key=lambda row: row[0])
    begins: dict[int, int] = {}
    parts: list[np.ndarray] = []
    end = 0
    for *_, usage in kept:
        if id(usage) not in begins:
            begins[id(usage)] = end
            parts.append(usage)
            end += len(usage)
    node = np.array([row[0] for row in kept], dtype=np.int64)
    return Rows(
        node,
        np.array([row[1] for row in kept], dtype=np.int64),
        np.array([row[2] for row in kept], dtype=np.int64),
        np.array([begins[id(row[3])] for row in kept], dtype=np.int64),
        np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64),
        np.searchsorted(node, np.arange(len(problem.costs) + 1)).astype(np.int64),
    )
