"""Identical layers, tied: nodes that look alike as far as a few steps around them take one strategy together.

A transformer of 24 layers becomes one of a handful. What is lost is that layers could differ; what is found is the
price of memory, choices of the whole problem and messages to start from, in the time that the handful takes. Nodes
are told apart by colour refinement (B. Weisfeiler, A. Leman, "The reduction of a graph to canonical form", 1968),
stopped early: each further round would tell one more layer from its neighbours, from both ends inwards.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ilp.flat import Flat
from ilp.problem import Edge, Memory, Problem

__all__ = ["alike", "copied", "counted", "tied", "untied"]


def alike(problem: Problem, rounds: int) -> np.ndarray:
    """Each node's class, int64 [nodes]: the same tables, and the same around it for ``rounds`` steps.

    Tables are the same if they are one array.
    """
    held: list[list[int]] = [[] for _ in problem.costs]
    for row in problem.memory:
        held[row.node].append(id(row.usage))
    around: list[list[tuple[int, int]]] = [[] for _ in problem.costs]
    for edge in problem.edges:
        around[edge.u].append((id(edge.cost), edge.v))
        around[edge.v].append((-id(edge.cost), edge.u))
    names: dict[tuple, int] = {}

    def name(key: tuple) -> int:
        return names.setdefault(key, len(names))

    colour = [name((id(cost), *sorted(rows))) for cost, rows in zip(problem.costs, held, strict=True)]
    for _ in range(rounds):
        colour = [
            name((own, *sorted((side, colour[v]) for side, v in near)))
            for own, near in zip(colour, around, strict=True)
        ]
    return np.unique(np.array(colour, dtype=np.int64), return_inverse=True)[1]


def tied(problem: Problem, classes: np.ndarray) -> Problem:
    """The problem in which all nodes of a class take the same strategy; ``choice[classes]`` is the whole choice."""
    counts = np.bincount(classes)
    first = np.unique(classes, return_index=True)[1]
    costs = [problem.costs[at] * count for at, count in zip(first, counts, strict=True)]
    alike: dict[tuple[int, int, int], tuple[np.ndarray, int]] = {}
    for edge in problem.edges:
        key = int(classes[edge.u]), int(classes[edge.v]), id(edge.cost)
        alike[key] = (edge.cost, alike.get(key, (edge.cost, 0))[1] + 1)
    scaled: dict[tuple[int, int], np.ndarray] = {}
    edges = []
    for (u, v, same), (cost, count) in alike.items():
        if u == v:
            costs[u] = costs[u] + count * np.diagonal(cost)
        else:
            edges.append(Edge(u, v, scaled.setdefault((same, count), cost * count)))
    memory = tuple(Memory(int(classes[row.node]), row.lo, row.hi, row.usage) for row in problem.memory)
    return replace(problem, costs=tuple(costs), edges=tuple(edges), memory=memory)


def copied(whole: Flat, small: Flat, classes: np.ndarray) -> np.ndarray:
    """Of each slot of the whole problem, the slot of the tied one that it is a copy of; -1 within a class."""
    n = len(small.at) - 1
    there = np.repeat(np.arange(n), np.diff(small.slots)) * n + small.far
    near = np.repeat(classes, np.diff(whole.slots))
    source = np.searchsorted(there, near * n + classes[whole.far])
    return np.where(near == classes[whole.far], -1, source)


def counted(whole: Flat, small: Flat, classes: np.ndarray, source: np.ndarray) -> Flat:
    """The tied problem with the weights of its copies (``source``: `copied`).

    Each copy of an edge takes along the same share of its node; the node of a class that has most edges on one side
    spends all of itself there.
    """
    n = len(small.at) - 1
    node = np.repeat(np.arange(len(classes)), np.diff(whole.slots))
    earlier = classes[whole.far] < classes[node]
    later = classes[whole.far] > classes[node]
    sides = np.maximum(np.bincount(node, earlier, len(classes)), np.bincount(node, later, len(classes)))
    most = np.ones(n)
    np.maximum.at(most, classes, sides)
    near = np.repeat(np.arange(n), np.diff(small.slots))
    counts = np.bincount(source[source >= 0], minlength=len(small.far))
    return small._replace(weight=counts / (np.bincount(classes, minlength=n) * most)[near])


def untied(whole: Flat, small: Flat, source: np.ndarray, messages: np.ndarray) -> np.ndarray:
    """Messages of the whole problem that those of the tied one say: each edge takes its share of what it stood in.

    Edges within a class get none. Any messages give a bound; these are near the best where layers are many.
    """
    out = np.zeros(int(whole.message[-1]))
    slots = np.flatnonzero(source >= 0)
    source = source[slots]
    copies = np.bincount(source, minlength=len(small.far))[source]
    sizes = np.diff(whole.message)[slots]
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    taken = messages[np.repeat(small.message[source], sizes) + within]
    out[np.repeat(whole.message[slots], sizes) + within] = taken / np.repeat(copies, sizes)
    return out
