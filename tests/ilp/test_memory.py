"""Under a memory limit: gaps, prices, tied layers, and answers that repeat."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from layered import ONE, TWO, gpt
from random_problems import random_problem

import ilp
from ilp.clock import Clock
from ilp.relaxation import relax
from ilp.ties import alike, copied, counted, tied, untied


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
    assert got.bound >= free.bound * (1 - 1e-4)  # it stops at the gap asked for, not at the tightest bound


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
    classes = alike(problem, 6)
    small = tied(problem, classes)
    assert len(small.costs) < len(problem.costs) / 2
    rng = np.random.default_rng(0)
    for _ in range(20):
        choice = np.array([rng.integers(len(cost)) for cost in small.costs])
        whole, part = problem.evaluate(choice[classes]), small.evaluate(choice)
        assert math.isinf(whole) == math.isinf(part)
        assert math.isinf(whole) or math.isclose(whole, part, rel_tol=1e-12)
        assert (problem.profile(choice[classes]) == small.profile(choice)).all()


def test_messages_of_tied_layers_bound_the_whole():
    """Better than sweeps of its own as many again, and no more than the best choice known costs."""
    problem = gpt(8, ONE)
    classes = alike(problem, 6)
    small, whole = relax(tied(problem, classes)), relax(problem)
    clock = Clock(None, None, 1e-9)
    alone = relax(problem).ascend(10, clock)
    source = copied(whole.flat, small.flat, classes)
    small.flat = counted(whole.flat, small.flat, classes, source)
    small.ascend(50, clock)
    small.lend()
    whole.messages[:] = untied(whole.flat, small.flat, source, small.messages)
    lent = whole.ascend(1, clock)
    assert alone < lent <= ilp.solve(problem, gap=1e-3).objective


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


def test_asking_again_agrees_with_asking_anew():
    problem, free = limited(1, ONE, 1.0)
    resolver = ilp.Resolver(problem)
    limits = [int(share * free.peak) for share in (0.95, 0.97, 0.96, 0.99)]
    found = [resolver.solve(limit=limit, gap=5e-3) for limit in limits]
    for limit, got in zip(limits, found, strict=True):
        anew = ilp.solve(replace(problem, limit=limit), gap=5e-3)
        assert replace(problem, limit=limit).feasible(got.choice)
        assert got.gap <= 5e-3
        assert got.bound <= anew.objective * (1 + 1e-9)
        assert anew.bound <= got.objective * (1 + 1e-9)
    by_limit = sorted(zip(limits, found, strict=True), key=lambda pair: pair[0])
    assert found[1].objective <= found[0].objective
    assert found[3].objective <= min(got.objective for _, got in by_limit[:-1])


def test_asking_again_with_pins_is_exact_on_small_problems():
    rng = np.random.default_rng(23)
    for _ in range(40):
        problem = random_problem(rng, nodes=5)
        resolver = ilp.Resolver(problem)
        for _ in range(4):
            limit = int(rng.integers(0, 50)) if rng.random() < 0.8 else None
            node = int(rng.integers(len(problem.costs)))
            pins = {node: int(rng.integers(len(problem.costs[node])))} if rng.random() < 0.4 else {}
            got = resolver.solve(limit=limit, fixed=pins, gap=0.0)
            anew = ilp.solve(replace(problem, limit=limit), fixed=pins, gap=0.0)
            assert got.status == anew.status
            assert got.objective == pytest.approx(anew.objective, abs=1e-12)


def test_the_limit_that_would_do_does():
    rng = np.random.default_rng(29)
    found = 0
    for _ in range(200):
        problem = random_problem(rng, nodes=5)
        got = ilp.solve(problem)
        if got.status != "infeasible" or got.infeasibility.smallest_limit is None:
            continue
        found += 1
        assert got.infeasibility.smallest_limit > problem.limit
        again = ilp.solve(replace(problem, limit=got.infeasibility.smallest_limit))
        assert again.choice
    assert found >= 8
