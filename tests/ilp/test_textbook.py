import math

import numpy as np
import pytest
from random_problems import random_problem

import ilp


@pytest.mark.parametrize("solver", ["highs", "cpsat", "cbc"])
@pytest.mark.parametrize("edges", ["continuous", "binary"])
def test_every_form_finds_the_optimum(solver, edges):
    rng = np.random.default_rng(3)
    for _ in range(8 if solver == "cbc" else 25):
        problem = random_problem(rng, nodes=5)
        brute = ilp.brute_force(problem)
        got = ilp.solve_textbook(problem, solver, edges=edges)
        assert got.status == brute.status
        if got.status == "optimal":
            assert math.isclose(got.objective, brute.objective, abs_tol=1e-12)
            assert problem.feasible(got.choice)
            relaxed = ilp.solve_textbook(problem, "highs", relax=True)
            assert relaxed.bound <= brute.objective + 1e-9
