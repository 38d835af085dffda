"""Under a memory limit: gaps, prices, tied layers, and answers that repeat."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from layered import ONE, TWO, gpt

import ilp
from ilp.ties import alike, tied


def limited(layers, axes, share):
    problem = gpt(layers, axes)
    free = ilp.solve(problem)
    return replace(problem, limit=int(share * free.peak)), free


@pytest.mark.parametrize(("layers", "axes", "share"), [(2, ONE, 0.95), (12, ONE, 0.97), (1, TWO, 0.95)])
def test_limited_transformers_are_proved_to_one_percent(layers, axes, share):
    problem, free = limited(layers, axes, share)
    got = ilp.solve(problem, gap=1e-2)
    assert problem.feasible(got.choice)
    assert got.gap <= 1e-2
    assert free.bound <= got.objective
    assert got.bound >= free.bound * (1 - 1e-9)


def test_more_memory_never_costs_more_than_the_gap():
    problem, free = limited(2, ONE, 1.0)
    gap = 5e-3
    costs = [
        ilp.solve(replace(problem, limit=int(share * free.peak)), gap=gap).objective
        for share in (0.92, 0.95, 0.98, 1.0)
    ]
    for less, more in itertools.pairwise(costs):
        assert more <= less * (1 + gap)


def test_the_bound_is_below_the_optimum_of_the_exact_program():
    problem, _ = limited(1, ONE, 0.95)
    exact = ilp.solve_textbook(problem, "highs")
    assert exact.status == "optimal"
    got = ilp.solve(problem, gap=1e-3)
    assert got.bound <= exact.objective * (1 + 1e-7)
    assert exact.objective * (1 - 1e-7) <= got.objective <= exact.objective * 1.0015


def test_tied_layers_cost_and_hold_what_the_whole_does():
    problem, _ = limited(8, ONE, 0.95)
    classes = alike(problem)
    small = tied(problem, classes)
    assert len(small.costs) < len(problem.costs) / 2
    rng = np.random.default_rng(0)
    for _ in range(20):
        choice = np.array([rng.integers(len(cost)) for cost in small.costs])
        whole, part = problem.evaluate(choice[classes]), small.evaluate(choice)
        assert math.isinf(whole) == math.isinf(part)
        assert math.isinf(whole) or math.isclose(whole, part, rel_tol=1e-12)
        assert (problem.profile(choice[classes]) == small.profile(choice)).all()


def test_counted_work_gives_one_answer():
    problem, _ = limited(1, ONE, 0.96)
    first, *others = (ilp.solve(problem, gap=0.0, work=3_000_000) for _ in range(3))
    for other in others:
        assert (other.choice, other.objective, other.bound, other.work) == (
            first.choice,
            first.objective,
            first.bound,
            first.work,
        )
    assert first.choice


def test_infeasible_limits_name_the_moment_and_what_would_do():
    problem, free = limited(1, ONE, 0.2)
    got = ilp.solve(problem)
    assert got.status == "infeasible"
    why = got.infeasibility
    assert why.smallest_peak > problem.limit
    assert why.smallest_peak <= sum(held for _, held in why.alive) <= free.peak
    assert str(problem.limit) in why.reason


def test_a_start_is_never_made_worse_and_pins_are_kept():
    problem, free = limited(1, ONE, 1.0)
    again = ilp.solve(problem, start=free.choice, work=1)
    assert again.objective <= free.objective
    node = max(range(len(problem.costs)), key=lambda u: len(problem.costs[u]))
    other = (free.choice[node] + 1) % len(problem.costs[node])
    pinned = ilp.solve(problem, fixed={node: other}, work=200_000_000)
    assert pinned.choice[node] == other
    assert pinned.objective >= free.bound
