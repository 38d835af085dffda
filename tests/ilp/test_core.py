"""Cores: what they offer fits, their prices belong to the whole, and weights and lending keep bounds true."""

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
from layered import ONE, gpt
from random_problems import random_problem

import ilp
from ilp.clock import Clock
from ilp.core import Cores
from ilp.flat import shares
from ilp.incumbent import Incumbent
from ilp.mip import entries
from ilp.presolve import presolve
from ilp.primal import first
from ilp.relaxation import relax
from ilp.search import search


def unlimited():
    return Clock(None, None, 1e-9)


def inner(core, clock):
    found = search(core, clock, None)
    return found.choice, found.prices


def cores_of(problem, most):
    """Cores of so many pairs, after a first answer."""
    cores = Cores(relax(problem), Incumbent(), Clock(None, None, 1e-3), inner, most)
    assert first(cores.relaxation, cores.incumbent, cores.clock, np.random.default_rng(0))
    return cores


@pytest.fixture(scope="module")
def limited():
    """A presolved transformer of 12 layers under 90% of its free peak."""
    problem = gpt(12, ONE)
    peak = ilp.solve(problem).peak
    return presolve(replace(problem, limit=int(0.9 * peak))).small


def test_cores_find_what_the_whole_search_does(limited):
    cores = cores_of(limited, entries(limited) // 4)
    early = cores.incumbent.cost
    cores.alternate(1.0)
    assert limited.feasible(cores.incumbent.choice)
    found = ilp.solve(limited, gap=1e-3)
    assert found.bound * (1 - 1e-9) <= cores.incumbent.cost <= found.objective * 1.01 < early
    assert cores.relaxation.bound <= found.objective


def test_prices_of_a_core_lie_at_moments_of_the_whole(limited):
    """Priced so, the whole is bounded better than at no price."""
    free = relax(limited).ascend(200, unlimited())
    cores = cores_of(limited, entries(limited) // 2)
    cores.alternate(1.0)
    priced = relax(limited)
    priced.set_prices(cores.relaxation.best_prices)
    assert priced.ascend(200, unlimited()) > free * (1 + 5e-3)


def test_a_core_grows_only_where_it_leads_to_nothing(limited):
    cores = cores_of(limited, entries(limited) // 4)
    cores.relaxation.ascend(30, cores.clock)
    most, better = [cores.most], []
    for _ in range(4):
        better.append(cores.improve())
        most.append(cores.most)
    assert better[0]
    assert not all(better)
    assert [b == a for a, b in itertools.pairwise(most)] == better


def test_the_search_by_cores_keeps_its_word(limited, monkeypatch):
    """The answer fits, the bound is true, and both come again."""
    monkeypatch.setattr("ilp.search.is_large", lambda problem: entries(problem) > 20_000)
    monkeypatch.setattr("ilp.search.Cores", functools.partial(Cores, most=8_000))
    first, again = (search(limited, Clock(None, 300_000_000, 1e-2), None) for _ in range(2))
    best = ilp.solve(limited, gap=1e-3)
    assert limited.feasible(first.choice)
    assert first.bound <= best.objective
    assert best.bound <= limited.evaluate(first.choice) <= first.bound * 1.02
    assert (first.choice, first.bound) == (again.choice, again.bound)


def test_sweeps_of_any_weights_bound_the_optimum():
    rng = np.random.default_rng(5)
    for _ in range(200):
        problem = replace(random_problem(rng), limit=None, memory=())
        truth = ilp.brute_force(problem)
        if not truth.choice:
            continue
        relaxation = relax(problem)
        flat = relaxation.flat
        near = np.repeat(np.arange(len(problem.costs)), np.diff(flat.slots))
        counts = rng.integers(1, 9, len(near)).astype(float)
        counts = np.minimum(counts, counts[flat.back])
        relaxation.flat = flat._replace(weight=shares(flat.slots, near, flat.far, counts))
        bounds = [relaxation.ascend(1, unlimited()) for _ in range(10)]
        assert max(bounds) <= truth.objective + 1e-9 * abs(truth.objective)
        assert (np.diff(bounds) >= -1e-9 * abs(truth.objective)).all()
        taken = flat.at[:-1] + np.array(truth.choice)
        assert (relaxation.margin[taken] <= truth.objective + 1e-9 * abs(truth.objective)).all()


def parts(relaxation):
    """The least of each node and of each edge, messages in, summed."""
    flat, messages = relaxation.flat, relaxation.messages
    here = relaxation.priced.copy()
    total = 0.0
    for u in range(len(flat.at) - 1):
        for slot in range(flat.slots[u], flat.slots[u + 1]):
            here[flat.at[u] : flat.at[u + 1]] += messages[flat.message[slot] : flat.message[slot + 1]]
            if u < flat.far[slot]:
                back = flat.back[slot]
                a = messages[flat.message[slot] : flat.message[slot + 1]]
                b = messages[flat.message[back] : flat.message[back + 1]]
                matrix = flat.pool[flat.matrix[slot] : flat.matrix[slot] + len(a) * len(b)].reshape(len(a), len(b))
                total += (matrix - a[:, None] - b[None, :]).min()
    return total + np.minimum.reduceat(here, flat.at[:-1]).sum()


def test_lent_costs_come_to_rest_at_the_bound():
    problem = gpt(2, ONE)
    relaxation = relax(problem)
    bound = relaxation.ascend(20, unlimited())
    relaxation.lend()
    assert bound * (1 - 1e-9) <= parts(relaxation) <= ilp.solve(problem, gap=1e-3).objective
    assert relaxation.ascend(1, unlimited()) >= bound * (1 - 1e-9)
