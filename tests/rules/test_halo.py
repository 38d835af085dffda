"""Halo exchange: the numbers of the whole, and not a byte more than the halo, as planned and as compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import Mesh, NamedSharding

from autosharding.capture import capture
from autosharding.compare import compare
from autosharding.executor import executable
from autosharding.partition import partition_spec
from autosharding.plan import Plan
from autosharding.planner import plan_graph
from autosharding.rules.halo import Slide, window_slide
from autosharding.spec import Spec
from tests.conformance.run import topology
from tests.rules.harness import MESH_4, check

ROWS, COLUMNS, CHANNELS, FLOAT = 256, 256, 8, 4


def planned(f: Callable[..., Any], shapes: Sequence[tuple[int, ...]], split: int, parts: int) -> tuple[Plan, Any]:
    """The plan with the first argument's dim `split` cut into `parts`, and its compiled program."""
    avals = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    graph = capture(lambda *a: jax.tree.leaves(f(*a)), avals)
    spec = Spec(tuple(("x",) if d == split else () for d in range(len(shapes[0]))))
    plan = plan_graph(graph, topology=topology({"x": parts}), specs={0: spec})
    mesh = Mesh(np.array(jax.devices()[:parts]), ("x",))
    laid = [
        jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, partition_spec(i.spec)))
        for a, i in zip(avals, plan.inputs, strict=True)
    ]
    return plan, jax.jit(executable(graph, plan, mesh)).lower(*laid).compile()


def conv(**options: Any) -> Callable[..., Any]:
    settings = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    return lambda x, w: lax.conv_general_dilated(x, w, **settings | options)


IMAGE, KERNEL = (1, ROWS, COLUMNS, CHANNELS), (3, 3, CHANNELS, CHANNELS)
ROW = COLUMNS * CHANNELS * FLOAT


@pytest.mark.parametrize("parts", [2, 8])
def test_a_3x3_convolution_moves_one_row_each_way(parts: int) -> None:
    plan, compiled = planned(conv(), [IMAGE, KERNEL], 1, parts)
    assert [(c.kind, c.bytes) for c in plan.collectives] == [("collective-permute", ROW)] * 2
    found = compare(plan, compiled)
    assert [line.compiled.bytes for line in found.lines] == [2 * ROW]
    assert found.agrees
    assert found.memory_ratio == pytest.approx(1, abs=0.03)


def test_its_gradients_move_the_same_rows() -> None:
    def gradients(x: Any, w: Any) -> Any:
        return jax.grad(lambda x, w: (conv()(x, w) ** 2).sum(), (0, 1))(x, w)

    plan, compiled = planned(gradients, [IMAGE, KERNEL], 1, 8)
    permuted = sum(c.bytes for c in plan.collectives if c.kind == "collective-permute")
    assert permuted <= 3 * 2 * ROW  # forward, and each of two gradients
    assert all(c.bytes <= 9 * CHANNELS * CHANNELS * FLOAT for c in plan.collectives if c.kind != "collective-permute")
    assert compare(plan, compiled).agrees


def test_pooling_with_windows_that_do_not_overlap_moves_nothing() -> None:
    def pool(x: Any) -> Any:
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    plan, compiled = planned(lambda x: jax.grad(lambda x: (pool(x) ** 2).sum())(x), [IMAGE], 1, 8)
    assert plan.collectives == ()
    assert compare(plan, compiled).agrees


# ---- which elements: against numpy's own list ------------------------------------------------------------


@given(
    parts=st.integers(2, 4),
    results=st.integers(1, 6),
    window=st.integers(1, 5),
    stride=st.integers(1, 3),
    low=st.integers(-3, 5),
    holes=st.integers(1, 3),
    dilation=st.integers(1, 3),
    piece=st.integers(1, 8),
)
@settings(max_examples=300, deadline=None)
def test_a_stretch_holds_what_the_windows_read(
    parts: int, results: int, piece: int, dilation: int, **window: int
) -> None:
    size, count = piece * parts, results * parts
    slide = window_slide(size, count, parts, dilation=dilation, **window)
    if not slide.fits:
        return
    for k in range(parts):
        read = {
            (o * window["stride"] + w * window["holes"] - window["low"]) / dilation
            for o in range(k * results, (k + 1) * results)
            for w in range(window["window"])
        }
        read = {int(i) for i in read if i == int(i)}
        stretch = range(slide.start(k), slide.start(k) + slide.length)
        assert read <= set(stretch)
        mine = range(k * piece - slide.left, (k + 1) * piece + slide.right)
        assert {i for i in read if 0 <= i < size} <= set(mine)
    assert min(slide.padding) >= 0


def test_a_stretch_beyond_the_neighbours_does_not_fit() -> None:
    assert not Slide(8, 4, 2, 8, 3).fits
    assert Slide(8, 4, 2, 4, 1).fits


# ---- the numbers, under every strategy -------------------------------------------------------------------


def array(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


CONVOLUTIONS = {
    "plain": {},
    "strided": {"window_strides": (2, 2), "padding": ((1, 1), (0, 1))},
    "dilated": {"rhs_dilation": (2, 1), "padding": ((2, 2), (1, 1))},
    "transposed": {"lhs_dilation": (2, 2), "padding": ((1, 2), (2, 1))},
    "valid": {"padding": "VALID"},
    "cut": {"padding": ((-1, 1), (3, -1))},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_and_gradients(name: str) -> None:
    def f(x: Any, w: Any) -> Any:
        y, back = jax.vjp(conv(**CONVOLUTIONS[name]), x, w)
        return y, back(jnp.cos(y))

    counts = check(f, array(1, 12, 4, 1), array(3, 3, 1, 1), mesh=MESH_4, only=["conv_general_dilated"])
    assert counts["conv_general_dilated"] >= 3 * 4


POOLS = {
    "apart": ((2, 2), (2, 2), "VALID"),
    "resnet": ((3, 3), (2, 2), "SAME"),
    "dense": ((3, 2), (1, 1), "SAME"),
    "wide": ((5, 2), (2, 2), ((2, 1), (0, 0))),
    "skips": ((1, 2), (2, 2), "VALID"),
}


@pytest.mark.parametrize("select", [lax.max, lax.min], ids=["max", "min"])
@pytest.mark.parametrize("name", POOLS)
def test_pooling_and_gradients(name: str, select: Any) -> None:
    window, strides, padding = POOLS[name]
    begin = -jnp.inf if select is lax.max else jnp.inf

    def f(x: Any) -> Any:
        y, back = jax.vjp(lambda x: lax.reduce_window(x, begin, select, window, strides, padding), x)
        return y, back(jnp.cos(y))

    only = [f"reduce_window_{select.__name__}", "select_and_scatter_add"]
    counts = check(f, array(16, 8), mesh=MESH_4, only=only)
    assert min(counts[o] for o in only) > 4


@given(
    low=st.integers(-3, 4), high=st.integers(-3, 4), holes=st.integers(0, 2), start=st.integers(0, 5),
    stop=st.integers(6, 12), stride=st.integers(1, 3),
)  # fmt: skip
@settings(max_examples=10, deadline=None)
def test_pad_and_slice(low: int, high: int, holes: int, start: int, stop: int, stride: int) -> None:
    x = np.arange(24, dtype=np.int32).reshape(2, 12)
    check(lambda x: (lax.pad(x, 7, ((0, 0, 0), (low, high, holes))), x[:, start:stop:stride]), x, mesh={"x": 2, "y": 3})


def test_reversed() -> None:
    assert check(lambda x: lax.rev(x, (0, 1)), array(4, 8))["rev"] == 15
