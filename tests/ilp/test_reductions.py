"""Each reduction alone: the optimum stays, and its undo costs on the whole problem what it cost on the small one."""

import math

import numpy as np
import pytest
from random_problems import random_problem

import ilp
from ilp.graph import Graph, NothingLeft, least_between
from ilp.presolve import dominate, reduce_edge


def everywhere(change):
    """A reduction that looks at one node, at each node that is still there."""

    def apply(graph):
        for u in range(len(graph.cost)):
            if graph.cost[u] is not None:
                change(graph, u)

    return apply


def consistent(graph, u):
    mask = graph.tables.alive(graph.costs(u))
    if mask is not None:
        graph.keep(u, mask)


def settle(graph, u):
    if len(graph.costs(u)) == 1:
        graph.settle(u)


def eliminate(graph, u):
    if not graph.held[u] and len(graph.near[u]) <= 2:
        graph.eliminate(u)


def follow(graph, u):
    for v in list(graph.near[u]):
        f = graph.tables.function(graph.near[u][v])
        if f is not None:
            graph.merge(v, u, f)
            return


def dominated(graph, u):
    """Where what is forbidden is gone already, as presolve sees to."""
    around = [graph.costs(u), *graph.near[u].values(), *(graph.near[v][u] for v in graph.near[u])]
    if all(graph.tables.alive(table) is None for table in around):
        dominate(graph, u)


def moments(graph):
    """They cease to bind when strategies go."""
    everywhere(consistent)(graph)
    graph.drop_slack_moments()


def edges(graph):
    for u in range(len(graph.near)):
        for v in list(graph.near[u]):
            if v in graph.near[u]:
                reduce_edge(graph, u, v)


def unfit(graph):
    """Beside the fewest bytes of the others, at moments that bind."""
    graph.drop_slack_moments()
    graph.drop_unfit()


REDUCTIONS = {
    "forbidden strategies": everywhere(consistent),
    "settled nodes": everywhere(settle),
    "elimination": everywhere(eliminate),
    "followers": everywhere(follow),
    "dominance": everywhere(dominated),
    "edges": edges,
    "moments that cannot bind": moments,
    "strategies that do not fit": unfit,
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_the_optimum_stays_and_the_undo_costs_the_same(name):
    rng = np.random.default_rng(17)
    done = 0
    for _ in range(200):
        problem = random_problem(rng, nodes=5)
        truth = ilp.brute_force(problem)
        graph = Graph(problem)
        try:
            REDUCTIONS[name](graph)
        except NothingLeft:
            assert truth.status == "infeasible"
            continue
        if (graph.room < 0).any():
            assert truth.status == "infeasible"
            continue
        fewer = len(graph.moments) < len(Graph(problem).moments)
        done += fewer if name.startswith("moments") else bool(graph.steps)
        small, left = graph.small()
        small.verify()
        got = ilp.brute_force(small)
        assert got.status == truth.status
        if got.choice:
            choice = graph.undo(left, got.choice)
            assert problem.feasible(choice)
            assert math.isclose(problem.evaluate(choice), got.objective, abs_tol=1e-12)
            assert math.isclose(got.objective, truth.objective, abs_tol=1e-12)
    assert done >= 5


def test_the_least_of_many_spans():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 1000, 37)
    spans = [(lo, hi) for lo in range(37) for hi in range(lo + 1, 38)]
    found = least_between(values, [lo for lo, _ in spans], [hi for _, hi in spans])
    assert found.tolist() == [values[lo:hi].min() for lo, hi in spans]


def test_an_edge_that_is_a_sum_of_two_vectors_goes():
    cost = np.array([[1.0, 2.0], [3.0, 4.0]])
    graph = Graph(ilp.Problem("sum", (np.zeros(2), np.zeros(2)), (ilp.Edge(0, 1, cost),)))
    reduce_edge(graph, 0, 1)
    assert not graph.near[0]
    small, left = graph.small()
    assert ilp.brute_force(small).objective == 1.0
    assert graph.undo(left, ilp.brute_force(small).choice) == (0, 0)
