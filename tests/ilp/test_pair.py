"""Two processes on one problem, and what does not depend on how many there are."""

import importlib
import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
from layered import ONE, TWO, gpt

import ilp
from ilp.cli import main
from ilp.iopddl import write_problem
from ilp.pair import Board, Post

SOLVE = importlib.import_module("ilp.solve")
"""The module; its name in the package is the function's."""


@pytest.fixture(scope="module")
def limited():
    problem = gpt(1, ONE)
    return replace(problem, limit=int(0.95 * ilp.solve(problem).peak))


def test_each_hears_what_the_other_tells():
    context = multiprocessing.get_context("spawn")
    boards = Board(context, 4, 2), Board(context, 4, 2)
    here, there = Post(*boards, nodes=3, moments=2), Post(*boards[::-1], nodes=3, moments=2)
    assert here.hear() is None
    there.tell(5.0, np.array([1, 0, 2]))
    there.tell_bound(4.0, np.array([0.5, 0.0]))
    there.tell_bound(3.0, np.array([0.0, 0.0]))
    assert here.hear().tolist() == [1, 0, 2]
    assert (here.cost, here.bound, here.prices.tolist()) == (5.0, 4.0, [0.5, 0.0])
    there.tell(6.0, np.array([0, 0, 0]))
    assert here.hear() is None


def test_two_processes_agree_with_one(monkeypatch):
    monkeypatch.setattr(SOLVE, "PAIRED", 0)
    problem = gpt(1, TWO)
    problem = replace(problem, limit=int(0.97 * ilp.solve(problem).peak))
    alone = ilp.solve(problem, gap=1e-2)
    got = ilp.solve(problem, seconds=60, gap=1e-2, processes=2, seed=3)
    assert problem.feasible(got.choice)
    assert got.gap <= 1e-2
    assert got.bound <= alone.objective
    assert alone.bound <= got.objective


def test_counted_work_gives_one_answer_however_many_processes(limited, tmp_path, monkeypatch):
    monkeypatch.setattr(SOLVE, "PAIRED", 0)
    write_problem(limited, tmp_path / "limited.json")
    answers = []
    for processes in (1, 2, 2):
        out = tmp_path / "answer.json"
        asked = ["solve", tmp_path / "limited.json", "--deterministic", 3_000_000, "--processes", processes, "-o", out]
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in asked])
        assert not left.value.code
        answers.append(out.read_bytes())
    assert len(set(answers)) == 1
