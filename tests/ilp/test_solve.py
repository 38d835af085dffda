import math

import numpy as np
import pytest
from layered import ONE, TWO, gpt
from random_problems import random_problem

import ilp
import ilp.close
import ilp.outright
import ilp.search


@pytest.mark.parametrize("tiny", [4_000, 0])
def test_solve_agrees_with_brute_force(tiny, monkeypatch):
    monkeypatch.setattr(ilp.search, "TINY", tiny)
    rng = np.random.default_rng(11)
    for _ in range(150):
        problem = random_problem(rng, nodes=7)
        brute = ilp.brute_force(problem)
        got = ilp.solve(problem, gap=0.0)
        assert got.status == brute.status
        if got.choice:
            assert problem.feasible(got.choice)
            assert math.isclose(got.objective, brute.objective, rel_tol=1e-9, abs_tol=1e-12)
            assert got.bound <= brute.objective * (1 + 1e-9)


def test_a_search_that_leads_nowhere_ends_before_its_work_is_spent(monkeypatch):
    """Six that should all differ in three strategies: messages do not see the cost, and kernels are left out here."""
    monkeypatch.setattr(ilp.search, "TINY", 0)
    monkeypatch.setattr(ilp.close, "SMALL", 0)
    monkeypatch.setattr(ilp.outright, "UNTIMED_EXACT", 0)
    pairs = [(u, v) for u in range(6) for v in range(u)]
    problem = ilp.Problem("differ", (np.zeros(3),) * 6, tuple(ilp.Edge(u, v, np.eye(3)) for u, v in pairs))
    got = ilp.solve(problem, work=3 * 10**7)
    assert got.objective == 3.0
    assert got.bound < 1.0
    assert got.work < 10**7


@pytest.mark.parametrize("factor", [0.5, 0.999, 1.0, 1.001, 1.2])
@pytest.mark.parametrize("tiny", [4_000, 0])
def test_a_cutoff_hides_nothing_cheaper_and_proves_no_more_than_it_says(tiny, factor, monkeypatch):
    monkeypatch.setattr(ilp.search, "TINY", tiny)
    rng = np.random.default_rng(5)
    for _ in range(60):
        problem = random_problem(rng, nodes=7)
        best = ilp.brute_force(problem).objective
        if best == math.inf:
            assert ilp.solve(problem, cutoff=factor).choice == ()
            continue
        if best == 0:
            continue
        got = ilp.solve(problem, gap=1e-6, cutoff=factor * best)
        assert got.bound <= best * (1 + 1e-9)
        if factor > 1:
            assert math.isclose(got.objective, best, rel_tol=2e-6, abs_tol=1e-12)
        else:
            assert got.bound >= factor * best * (1 - 2e-6)


@pytest.mark.parametrize("factor", [0.9, 1.02])
def test_a_cutoff_on_a_transformer(factor):
    problem = gpt(4, TWO)
    best = ilp.solve(problem)
    got = ilp.solve(problem, cutoff=factor * best.objective)
    assert got.bound <= best.objective
    if factor > 1:
        assert got.objective <= best.objective * (1 + 1e-4)
    else:
        assert got.bound >= factor * best.objective * (1 - 1e-4)
        assert got.work < best.work


@pytest.mark.parametrize(("layers", "axes"), [(1, TWO), (4, TWO), (24, ONE)])
def test_free_transformers_are_proved(layers, axes):
    problem = gpt(layers, axes)
    got = ilp.solve(problem)
    assert got.gap <= 1e-4
    assert math.isclose(problem.evaluate(got.choice), got.objective)
