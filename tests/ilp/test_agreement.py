"""All ways to solve one small problem give one optimum."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_problems import random_problem

import ilp
import ilp.search
from ilp.presolve import presolve

SEEDS = st.integers(0, 2**32 - 1)


def agree(seed):
    problem = random_problem(np.random.default_rng(seed), nodes=7, most=3)
    truth = ilp.brute_force(problem)
    found = {
        "solve": ilp.solve(problem, gap=0.0),
        "search": searched(problem),
        "highs": ilp.solve_textbook(problem, "highs"),
        "highs, edges binary": ilp.solve_textbook(problem, "highs", edges="binary"),
        "cpsat": ilp.solve_textbook(problem, "cpsat"),
        "cbc": ilp.solve_textbook(problem, "cbc"),
    }
    for way, got in found.items():
        assert got.status == truth.status, way
        if truth.choice:
            assert problem.feasible(got.choice), way
            assert math.isclose(got.objective, truth.objective, rel_tol=1e-7, abs_tol=1e-9), way
            assert got.bound <= truth.objective * (1 + 1e-9) + 1e-12, way
    relaxed = ilp.solve_textbook(problem, "highs", relax=True)
    assert relaxed.bound <= truth.objective * (1 + 1e-7) + 1e-9
    reduced = presolve(problem)
    if reduced.small is not None and truth.choice:
        small = ilp.brute_force(reduced.small)
        assert math.isclose(problem.evaluate(reduced.undo(small.choice)), truth.objective, abs_tol=1e-12)


def searched(problem):
    """By prices, messages and kernels alone, however small the problem."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ilp.search, "TINY", 0)
        return ilp.solve(problem, gap=0.0)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(SEEDS)
def test_all_ways_agree(seed):
    agree(seed)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(SEEDS)
def test_all_ways_agree_on_a_thousand(seed):
    agree(seed)
