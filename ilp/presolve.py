"""Exact presolve: reductions that keep the optimum, until none applies.

Arc consistency on forbidden pairs, strategies that do not fit, settled nodes, edges that are a sum of two vectors,
nodes that follow another,
nodes of low degree without memory, and dominated strategies (Goldstein's criterion, R. F. Goldstein, "Efficient
rotamer elimination applied to protein side-chains", Biophysical Journal 66, 1994, with memory compared row by row).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ilp.collector import collector_paused
from ilp.dominance import in_order, undominated
from ilp.graph import Graph, NothingLeft
from ilp.problem import Problem

__all__ = ["Reduced", "presolve"]

Undo = Callable[[tuple[int, ...]], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Reduced:
    """The small problem, and the way back for its choices; ``small`` is None where nothing is feasible."""

    small: Problem | None
    undo: Undo
    left: tuple[int, ...] = ()
    """Which node of the original each node of ``small`` is (but its last, which stands for what is settled)."""
    moments: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Which time of the original each time of ``small`` is."""


@collector_paused()
def presolve(problem: Problem, *, for_larger: bool = False) -> Reduced:
    """Reduce ``problem`` as far as the reductions go; ``for_larger``: such that it holds under a larger limit too."""
    graph = Graph(problem)
    try:
        reduce(graph, for_larger)
    except NothingLeft:
        return Reduced(None, lambda choice: choice)
    small, left = graph.small()
    return Reduced(small, lambda choice: graph.undo(left, choice), left, graph.moments)


def reduce(graph: Graph, for_larger: bool = False) -> None:
    """Apply the cheap reductions first, dominance where they rest, and then what the limit says."""
    waiting: dict[int, None] = {}
    limit(graph, for_larger)
    while True:
        while graph.changed_edges or graph.changed_nodes:
            while graph.changed_edges:
                u, v = graph.changed_edges.popitem()[0]
                if v in graph.near[u]:
                    reduce_edge(graph, u, v)
            if graph.changed_nodes:
                u = graph.changed_nodes.popitem()[0]
                if graph.cost[u] is not None and not reduce_node(graph, u):
                    waiting[u] = None
        for u in list(waiting):
            del waiting[u]
            if graph.cost[u] is not None:
                dominate(graph, u)
            if graph.changed_edges:
                break
        if not (waiting or graph.changed_edges or graph.changed_nodes):
            limit(graph, for_larger)
        if not (waiting or graph.changed_edges or graph.changed_nodes):
            return


def limit(graph: Graph, for_larger: bool) -> None:
    """Drop the moments that cannot bind, and the strategies that do not fit: those may under a larger limit."""
    graph.drop_slack_moments()
    if not for_larger:
        graph.drop_unfit()


def reduce_edge(graph: Graph, u: int, v: int) -> None:
    """Arc consistency, separable edges, and followers."""
    tables = graph.tables
    for a, b in ((u, v), (v, u)):
        mask = tables.alive(graph.near[a][b])
        if mask is not None:
            graph.keep(a, mask)
            return
    split = tables.split(graph.near[u][v])
    if split is not None:
        graph.cut(u, v)
        graph.charge(u, split[0])
        graph.charge(v, split[1])
        return
    f, g = tables.function(graph.near[u][v]), tables.function(graph.near[v][u])
    if f is not None and (g is None or len(graph.near[v]) <= len(graph.near[u])):
        graph.merge(v, u, f)
    elif g is not None:
        graph.merge(u, v, g)


def reduce_node(graph: Graph, u: int) -> bool:
    """Forbidden strategies, settled nodes, and elimination; True if u changed or went."""
    cost = graph.costs(u)
    mask = graph.tables.alive(cost)
    if mask is not None:
        graph.keep(u, mask)
        return True
    if len(cost) == 1:
        graph.settle(u)
        return True
    if not graph.held[u] and worth_eliminating(graph, u):
        graph.eliminate(u)
        return True
    return False


def worth_eliminating(graph: Graph, u: int) -> bool:
    """At most two neighbours, and the table between them no larger than twice those that go."""
    if len(graph.near[u]) < 2:
        return True
    if len(graph.near[u]) > 2:
        return False
    v, w = graph.near[u]
    k, kv, kw = len(graph.costs(u)), len(graph.costs(v)), len(graph.costs(w))
    return w in graph.near[v] or kv * kw <= 2 * k * (kv + kw) or kv * kw <= 4096


def dominate(graph: Graph, u: int) -> None:
    """Drop the strategies of u that another one beats whatever its neighbours do."""
    cost = graph.costs(u)
    if len(cost) == 1:
        return
    around = tuple(sorted(graph.near[u].values(), key=lambda table: table.serial))
    held = in_order(graph.held[u])
    key = ("undominated", cost, around, held)
    mask = graph.tables.remember(key, lambda: undominated(graph.tables, cost, around, held))
    if not mask.all():
        graph.keep(u, np.asarray(mask))
