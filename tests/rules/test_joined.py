"""Local, then combined: reductions, places, ranks and running sums over split dims; slices that fall anywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from autosharding.capture import capture
from autosharding.compare import compare
from autosharding.planner import plan_graph
from autosharding.planner.methods import batch_factors
from autosharding.rules import rules_of
from autosharding.rules.order import rounds
from autosharding.spec import Spec
from tests.conformance.run import execute, placed, topology
from tests.rules.harness import MESH_4, MESH_8, check

_random = np.random.default_rng(0)
REALS = _random.normal(size=(4, 8)).astype(np.float32)
TIES = _random.integers(0, 3, (4, 8)).astype(np.int32)
NANS = np.where(_random.random((4, 8)) < 0.2, np.float32(np.nan), REALS)

CASES: dict[str, tuple[Callable[..., Any], str]] = {
    "argmax": (lambda x: jnp.argmax(x, 1), "argmax"),
    "argmin": (lambda x: jnp.argmin(x, 0), "argmin"),
    "prod": (lambda x: jnp.prod(x, (0, 1)), "reduce_prod"),
    "top_k": (lambda x: lax.top_k(x, 3), "top_k"),
    "top_k of more than a piece": (lambda x: lax.top_k(x, 7), "top_k"),
    "sort": (lambda x: lax.sort(x, dimension=1), "sort"),
    "argsort": (lambda x: jnp.argsort(x, 1), "sort"),
    "cumsum": (lambda x: lax.cumsum(x, 1), "cumsum"),
    "cumsum back": (lambda x: lax.cumsum(x, 1, reverse=True), "cumsum"),
    "cummax": (lambda x: lax.cummax(x, 1), "cummax"),
    "cumprod": (lambda x: lax.cumprod(x, 0), "cumprod"),
}


@pytest.mark.parametrize("x", [REALS, TIES, NANS], ids=["reals", "ties", "nans"])
@pytest.mark.parametrize("name", CASES)
def test_combined(name: str, x: np.ndarray) -> None:
    f, primitive = CASES[name]
    assert check(f, x, mesh=MESH_4, only=[primitive])[primitive] >= 8


def test_combined_on_four_pieces() -> None:
    check(lambda x: (lax.top_k(x, 3), jnp.argmax(x, 1), lax.cumsum(x, 1), jnp.argmin(x, 0)), TIES, mesh=MESH_8)


@pytest.mark.parametrize("n", range(1, 20))
def test_rounds_of_disjoint_pairs_sort(n: int) -> None:
    for _ in range(20):
        x = list(_random.permutation(n))
        for pairs in rounds(n):
            assert len({i for pair in pairs for i in pair}) == 2 * len(pairs)
            for i, j in pairs:
                x[i], x[j] = min(x[i], x[j]), max(x[i], x[j])
        assert x == sorted(x)


@pytest.mark.parametrize("parts", [3, 8])
def test_pairs_are_sorted_in_pieces_by_the_bytes_of_the_plan(parts: int) -> None:
    keys, values = np.repeat(TIES.reshape(-1), 3), np.arange(96, dtype=np.float32)
    graph = capture(lambda x, y: lax.sort((x, y), num_keys=1), [keys, values])
    plan = plan_graph(graph, topology=topology({"x": parts}), specs={0: Spec((("x",),)), 1: Spec((("x",),))})
    assert [c.bytes for c in plan.collectives] == [96 // parts * 4] * 3 * len(list(rounds(parts)))
    run, laid = placed(graph, plan, [keys, values])
    assert compare(plan, run.lower(*laid).compile()).agrees
    order = np.argsort(keys, kind="stable")
    np.testing.assert_array_equal(run(*laid)[0], keys[order])
    np.testing.assert_array_equal(run(*laid)[1], values[order])


def test_a_sort_whose_equals_may_swap_stays_whole() -> None:
    x = TIES.reshape(-1)
    assert check(lambda x: lax.sort((x, -x), num_keys=1, is_stable=False), x, only=["sort"])["sort"] == 0
    assert check(lambda x: lax.sort((x, -x), num_keys=2, is_stable=False), x, only=["sort"])["sort"] >= 3


UPDATES = {"reals": NANS.T, "integers": TIES.T - 1, "booleans": TIES.T > 0}
NO_PRODUCT = ("mul", "booleans")  # in JAX


@pytest.mark.parametrize(
    ("name", "kind"), [(n, k) for n in ("min", "max", "mul") for k in UPDATES if (n, k) != NO_PRODUCT]
)
def test_updates_that_are_split_are_joined(name: str, kind: str) -> None:
    updates = UPDATES[kind]
    at = jnp.array([0, 2, 2, 0, 7, -1, 2, 1])  # one out of bounds, which is dropped
    x = REALS.T[:3].astype(updates.dtype)
    counts = check(lambda x, u: getattr(x.at[at], name)(u), x, updates, only=[f"scatter-{name}"])
    assert counts[f"scatter-{name}"] >= 8


def test_the_largest_of_each_segment_over_split_examples() -> None:
    graph = capture(lambda x, i: [jax.ops.segment_max(x, i, 3)], [jnp.zeros((32, 5)), jnp.zeros(32, jnp.int32)])
    plan = plan_graph(graph, topology=topology(MESH_4))
    (step,) = [s for s in plan.steps if s.op == "scatter-max"]
    assert [axes for _, axes in step.factors] == [("x", "y")]
    assert step.results[0].monoid == "max"
    x, i = REALS.reshape(32, 1).repeat(5, 1), TIES.reshape(32)
    got = execute(graph, plan, [jnp.asarray(a) for a in (x, i, *graph.constants)])
    np.testing.assert_array_equal(got[0], jax.ops.segment_max(x, i, 3))


def test_the_batch_ends_where_examples_are_worked_on_together() -> None:
    def f(x: Any) -> Any:
        return [jnp.tanh(x), jnp.sort(x, 1), jnp.sin(jnp.sort(x, 0)), jnp.cos(jnp.cumsum(x, 0)), x @ x.T]

    graph = capture(f, [REALS])
    found = batch_factors(graph, rules_of(graph), ["batch"])
    assert [graph.ops[i].name for i in found] == ["tanh", "sort", "transpose", "dot_general"]
    assert [graph.ops[i].params["dimension"] for i in found if graph.ops[i].name == "sort"] == [1]


def test_bits() -> None:
    check(lambda x: (lax.reduce_xor_p.bind(x, axes=(1,)), lax.reduce_and_p.bind(x, axes=(0,))), TIES, mesh=MESH_4)


@pytest.mark.parametrize("dims", [(1,), (0, 1), (0, 2)])
def test_custom_reduction_with_a_beginning_that_counts_once(dims: tuple[int, ...]) -> None:
    x = _random.integers(0, 9, (3, 4, 6)).astype(np.int32)
    counts = check(lambda x: lax.reduce(x, np.int32(5), lambda a, b: a + b, dims), x, mesh=MESH_4, only=["reduce"])
    assert counts["reduce"] >= 4


def test_custom_reduction_of_pairs_in_order() -> None:
    def then(a: Any, b: Any) -> Any:
        return a[0] * b[0], a[1] * b[0] + b[1]  # affine maps, one after the other: associative, not commutative

    check(lambda x: lax.reduce((x, -x), (1, 0), then, (1,)), TIES + 1, mesh=MESH_4, only=["reduce"])


@given(
    at=st.tuples(st.integers(-3, 9), st.integers(-3, 9)),
    shape=st.sampled_from([(1, 1), (2, 3), (3, 5), (4, 2), (1, 8), (4, 8)]),
    dtype=st.sampled_from([np.int32, np.uint8]),
)
@settings(max_examples=6, deadline=None)
def test_dynamic_slice_and_update(at: tuple[int, int], shape: tuple[int, int], dtype: Any) -> None:
    start = [np.asarray(i).astype(dtype) for i in at]
    update = _random.normal(size=shape).astype(np.float32)
    only = ["dynamic_slice", "dynamic_update_slice"]
    check(lambda x, i, j: lax.dynamic_slice_p.bind(x, i, j, slice_sizes=shape), REALS, *start, only=only)
    check(lambda x, u, i, j: lax.dynamic_update_slice_p.bind(x, u, i, j), REALS, update, *start, only=only)


def test_concatenate_and_split_along_the_split_dim() -> None:
    counts = check(lambda x: jnp.split(jnp.concatenate([x, x + 1], 1), 2, 1), REALS, mesh=MESH_4)
    assert counts["concatenate"] >= 14
    assert counts["split"] >= 14


DIMENSIONS = lax.ScatterDimensionNumbers((0,), (1,), (1,))


def _scattered(x: Any, u: Any) -> Any:
    return [lax.scatter_min(x, jnp.array([6]), u, DIMENSIONS, unique_indices=True)]


def _sliced(x: Any, u: Any) -> Any:
    return [lax.dynamic_slice(x, (jnp.int32(2), u[0].astype(jnp.int32) + 9), (2, 8))]


@pytest.mark.parametrize("f", [_scattered, _sliced])
def test_an_index_out_of_bounds_of_an_array_that_is_cut_first(f: Callable[..., Any]) -> None:
    """What XLA:CPU merges wrongly: a slice of the array cut for this device, at an index beyond it."""
    args = [REALS, np.zeros(4, np.float32)]
    graph = capture(f, args)
    whole = {i: Spec.replicated(a.ndim) for i, a in enumerate(args)}
    mesh = {"y": 2}
    plan = plan_graph(graph, topology=topology(mesh), specs=whole)
    inputs = [jnp.asarray(a) for a in (*args, *graph.constants)]
    np.testing.assert_array_equal(execute(graph, plan, inputs)[0], jax.jit(f)(*args)[0])


def test_complex_numbers_have_no_largest_by_a_collective() -> None:
    counts = check(lambda x: (x.max(1), x.min(0)), REALS + 1j * TIES, only=["reduce_max", "reduce_min"])
    assert min(counts.values()) >= 8


def test_terms_of_an_integer_operand_do_not_pass_into_a_product_of_floats() -> None:
    x = TIES.astype(np.uint8)
    check(lambda x, y: lax.dot_general(x, y, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32), x, REALS.T)
