import math

import numpy as np
import pytest
from layered import ONE, TWO, gpt
from random_problems import random_problem

import ilp
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


@pytest.mark.parametrize(("layers", "axes"), [(1, TWO), (4, TWO), (24, ONE)])
def test_free_transformers_are_proved(layers, axes):
    problem = gpt(layers, axes)
    got = ilp.solve(problem)
    assert got.gap <= 1e-4
    assert math.isclose(problem.evaluate(got.choice), got.objective)
