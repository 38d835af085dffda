import math

import numpy as np
from random_problems import random_problem

import ilp
from ilp.presolve import presolve


def test_presolve_keeps_the_optimum_and_its_undo_keeps_the_cost():
    rng = np.random.default_rng(5)
    for _ in range(400):
        problem = random_problem(rng, nodes=6)
        brute = ilp.brute_force(problem)
        reduced = presolve(problem)
        if reduced.small is None:
            assert brute.status == "infeasible"
            continue
        reduced.small.verify()
        small = ilp.brute_force(reduced.small)
        assert small.status == brute.status
        if small.choice:
            choice = reduced.undo(small.choice)
            assert problem.feasible(choice)
            assert math.isclose(problem.evaluate(choice), small.objective, abs_tol=1e-12)
            assert math.isclose(brute.objective, small.objective, abs_tol=1e-12)
