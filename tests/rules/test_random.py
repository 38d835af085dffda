"""Counters beyond 32 bits, 64-bit draws, and the generators that cannot be cut."""

from __future__ import annotations

from math import prod

import jax
import numpy as np
import pytest

from autosharding.capture import capture
from autosharding.rules import rule_for
from autosharding.rules.random import _counters
from tests.rules.harness import check

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
