"""Counters beyond 32 bits, 64-bit draws, and the generators that cannot be cut."""

from __future__ import annotations

import importlib
from math import prod
from typing import Any

import jax
import numpy as np
import pytest

from autosharding.capture import capture
from autosharding.planner import plan_graph
from autosharding.rules import rule_for
from autosharding.rules.random import _counters
from tests.conformance.run import execute, topology
from tests.rules.harness import check

WORDS = jax.ShapeDtypeStruct((4, 6), np.uint32)
ARITY = {"threefry2x32": 4, "threefry4x32": 8, "philox2x32": 3, "philox4x32": 6}


def hash_primitive(name: str) -> Any:
    """The primitive behind a generator's draws; it has no public name."""
    return getattr(importlib.import_module(f"jax._src.random.{name}"), f"{name}_p")


BIG = (7, 3, 2**20 + 1, 2**17 + 3)


@pytest.mark.parametrize("offsets", [(0, 0, 0, 0), (6, 2, 2**20 - 1, 2**17), (3, 1, 99, 12345)])
def test_counters_are_the_positions(offsets: tuple[int, ...]) -> None:
    local = (1, 1, 2, 3)
    along = [np.arange(n, dtype=np.uint32) + np.uint32(o) for n, o in zip(local, offsets, strict=True)]
    high, low = (np.asarray(x).astype(np.uint64) for x in _counters(BIG, along))
    places = np.indices(local).astype(object) + np.array(offsets, object).reshape(4, 1, 1, 1, 1)
    want = sum(places[d] * prod(BIG[d + 1 :]) for d in range(4))
    np.testing.assert_array_equal((high << np.uint64(32)) | low, want.astype(np.uint64))


def test_64_bits() -> None:
    with jax.enable_x64(True):
        counts = check(lambda k: jax.random.bits(k, (4, 6), "uint64"), jax.random.key(1), mesh={"x": 2})
    assert counts["random_bits"] == 2


def test_not_partitionable_stays_whole() -> None:
    with jax.threefry_partitionable(False):
        graph = capture(lambda k: [jax.random.bits(k, (4, 8))], [jax.random.key(0)])
        rule = rule_for(graph.ops[0])
    assert not rule.sizes
    assert rule.known


@pytest.mark.parametrize("name", ["threefry2x32", "threefry4x32", "philox2x32", "philox4x32"])
def test_hashes_are_split_with_what_they_hash(name: str) -> None:
    primitive = hash_primitive(name)
    rule = rule_for(capture(lambda *words: primitive.bind(*words), [WORDS] * ARITY[name]).ops[0])
    assert set(rule.sizes) == {"d0", "d1"}
    words = [np.arange(24, dtype=np.uint32).reshape(4, 6) + i for i in range(ARITY[name])]
    assert check(lambda *words: primitive.bind(*words), *words)[name] == 7


def test_hashes_of_words_that_are_spread() -> None:
    hashed = hash_primitive("philox2x32").bind
    x, y, key = (np.arange(24, dtype=np.uint32).reshape(4, 6) + i for i in range(3))
    assert check(lambda *words: hashed(*words), x[:1], y[:, :1], key)["philox2x32"] == 7


def test_a_program_written_for_several_platforms() -> None:
    def f(x: jax.Array) -> list[jax.Array]:
        return [jax.lax.platform_dependent(x, cpu=lambda x: x + 1, cuda=lambda x: x - 1)]

    graph = capture(f, [np.ones((4, 8), np.float32)])
    plan = plan_graph(graph, topology=topology({"x": 4}))
    assert plan.unresolved == ()
    np.testing.assert_array_equal(execute(graph, plan, [np.ones((4, 8), np.float32)])[0], 2)
