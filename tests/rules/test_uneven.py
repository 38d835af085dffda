"""Dims that the mesh does not divide: the plan says which, and what it splits instead; the numbers stay."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from autosharding.capture import capture
from autosharding.plan import Plan
from autosharding.planner import plan_graph
from tests.conformance.run import execute, topology
from tests.rules.shards import compare


def product(x: Any, w: Any) -> list[Any]:
    return [jnp.tanh(x @ w)]


def planned(rows: int, columns: int) -> Plan:
    args = [np.ones((rows, 16), np.float32), np.full((16, columns), 0.01, np.float32)]
    graph = capture(product, [jnp.asarray(a) for a in args], input_names=["x", "w"])
    plan = plan_graph(graph, topology=topology({"a": 2, "b": 2}))
    got = execute(graph, plan, [jnp.asarray(a) for a in args])
    compare(np.asarray(got[0]), np.asarray(jax.jit(product)(*args)[0]), 1e-6, str(plan))
    return plan


def test_what_divides_is_not_worth_a_note() -> None:
    assert planned(8, 12).notes == ()


def test_another_dim_is_split_and_the_plan_says_so() -> None:
    notes = planned(8, 9).notes
    assert len(notes) == 2
    for note, axis in zip(sorted(notes), "ab", strict=True):
        assert note.startswith(f"{axis}=2 does not divide 9 (of w): of 2 ops with a dim of 9, the first of them dot_ge")
        assert f"a dim of 8 over {axis} instead" in note
        assert "alike" not in note


def test_what_nothing_can_be_split_of_runs_alike() -> None:
    notes = planned(7, 9).notes
    said = {f"{a}=2 does not divide {n} (of {name})" for a in "ab" for n, name in ((7, "x"), (9, "w"))}
    assert {note.partition(":")[0] for note in notes} == said
    assert all("1 splits a dim of 16" in note and "1 runs alike on all devices of" in note for note in notes)


def test_a_dim_shorter_than_the_axis_is_not_called_uneven() -> None:
    graph = capture(lambda x: [x * 2], [jnp.ones((8, 3))])
    assert plan_graph(graph, topology=topology({"a": 4})).notes == ()
    assert str(plan_graph(graph, topology=topology({"a": 3}))).count("a=3 does not divide 8") == 1
