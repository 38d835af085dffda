"""Compound factors of a reshape against numpy, for random pairs of shapes, under every strategy."""

from __future__ import annotations

from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from autosharding.capture import capture
from autosharding.rules import rule_for
from autosharding.rules.shape import compound_factors
from autosharding.strategies import monoids
from tests.rules.harness import every_strategy
from tests.rules.shards import cut, join

MESH = {"x": 2, "y": 3, "z": 2}


@st.composite
def shape_pairs(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes over the same primes, in the same order or not, with ones thrown in."""
    primes = draw(st.lists(st.sampled_from([2, 2, 3, 2, 5, 1]), min_size=1, max_size=6))

    def grouped(numbers: list[int]) -> tuple[int, ...]:
        found = [1]
        for n in numbers:
            if draw(st.booleans()):
                found.append(n)
            else:
                found[-1] *= n
        return tuple(found)

    return grouped(primes), grouped(draw(st.permutations(primes)) if draw(st.booleans()) else primes)


@given(shape_pairs())
@settings(max_examples=150, deadline=None)
def test_every_strategy_of_a_reshape(pair: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    before, after = pair
    graph = capture(lambda x: [jnp.reshape(x, after) + 0], [jax.ShapeDtypeStruct(before, jnp.int32)])
    op = next((op for op in graph.ops if op.name == "reshape"), None)
    if op is None:
        return
    rule = rule_for(op)
    x = np.arange(prod(before), dtype=np.int32).reshape(before)
    for s in every_strategy(op, rule, MESH, monoids(graph, [rule_for(o) for o in graph.ops])):
        pieces = cut(x, s.operands[0], MESH)
        local = s.results[0].local_shape(after, MESH)
        got = [p.reshape(local) for p in pieces]
        np.testing.assert_array_equal(join(got, s.results[0], after, MESH), x.reshape(after), err_msg=f"{rule} {s}")


@given(shape_pairs())
@settings(max_examples=300, deadline=None)
def test_factors_fill_their_dims(pair: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    left, right, sizes = compound_factors(*pair)
    for dims, shape in zip((left, right), pair, strict=True):
        for factors, n in zip(dims, shape, strict=True):
            assert not factors or prod(sizes[f] for f in factors) == n
    shared = [{f for d in side for f in d if not f.startswith("rest")} for side in (left, right)]
    assert shared[0] == shared[1]
