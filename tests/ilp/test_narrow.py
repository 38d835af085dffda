"""Probing and narrowing against brute force: margins never exceed what they bound, nothing better is lost."""

import math
import time

import numpy as np
import pytest
from random_problems import random_problem

import ilp
from ilp.clock import Clock
from ilp.incumbent import Incumbent
from ilp.narrow import Narrowing
from ilp.primal import restart
from ilp.probe import probe
from ilp.relaxation import relax
from ilp.solve import with_fixed


def feasible_problems(count, seed):
    """Random problems that have an answer, and that answer."""
    rng = np.random.default_rng(seed)
    while count:
        problem = random_problem(rng)
        truth = ilp.brute_force(problem)
        if truth.choice:
            count -= 1
            yield problem, truth


def priced(problem):
    """Its relaxation at prices that are not the best."""
    relaxation = relax(problem)
    relaxation.set_prices(np.full(len(relaxation.prices), 1e-3))
    relaxation.ascend(2, unlimited())
    return relaxation


def unlimited():
    return Clock(None, None, 1e-9)


def test_margins_stay_below_the_optimum_with_the_strategy_forced():
    raised = 0
    for problem, truth in feasible_problems(100, seed=3):
        relaxation = priced(problem)
        before = relaxation.margin.copy()
        ceiling = truth.objective * 1.1
        probe(relaxation, ceiling, unlimited())
        raised += (relaxation.margin > before + 1e-9).any()
        assert relaxation.bound <= truth.objective + 1e-9
        for u, cost in enumerate(problem.costs):
            for k in range(len(cost)):
                forced = ilp.brute_force(with_fixed(problem, {u: k}))
                least = forced.objective if forced.choice else math.inf
                assert min(relaxation.margin[relaxation.flat.at[u] + k], ceiling) <= least + 1e-9
    assert raised >= 8


@pytest.mark.parametrize("above", [0.0, 0.3])
def test_narrowing_finds_or_proves_the_optimum(above):
    """From the optimum itself, or from a dearer choice that fits."""
    proved = 0
    for problem, truth in feasible_problems(60, seed=4):
        relaxation, incumbent, clock = priced(problem), Incumbent(), unlimited()
        fitting = [np.array(choice) for choice in all_choices(problem) if problem.feasible(choice)]
        dearer = [choice for choice in fitting if problem.evaluate(choice) <= truth.objective * (1 + above) + 1e-12]
        incumbent.offer(relaxation, dearer[-1], clock)
        proof, bound = Narrowing(relaxation, incumbent, clock, np.random.default_rng(0), "all").prove()
        assert bound <= truth.objective + 1e-9
        assert incumbent.cost >= truth.objective - 1e-9
        if proof or bound >= incumbent.cost - 1e-9:
            proved += 1
            assert math.isclose(incumbent.cost, truth.objective, abs_tol=1e-9)
    assert proved >= 50


def all_choices(problem):
    return np.ndindex(*map(len, problem.costs))


def test_a_restart_is_kept_only_where_it_is_better():
    for problem, truth in feasible_problems(20, seed=6):
        relaxation, incumbent = priced(problem), Incumbent()
        clock = Clock(60.0, None, 1e-9, timer=time.process_time)
        incumbent.offer(relaxation, np.array(truth.choice), clock)
        messages, prices = relaxation.messages.copy(), relaxation.best_prices.copy()
        assert not restart(relaxation, incumbent, clock, np.random.default_rng(0))
        assert math.isclose(incumbent.cost, truth.objective, abs_tol=1e-12)
        assert (relaxation.messages == messages).all()
        assert (relaxation.prices == prices).all()
