"""Random small programs on random meshes under random strategies: sharded equals unsharded, to the last bit.

Programs are of 32-bit integers, whose sums and products wrap alike in any order. A random plan is the cheapest one
under random prices: the 0-1 program sees to it that it is a plan, and the dice to it that it is an unlikely one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import lax

import ilp
from autosharding.capture import capture
from autosharding.graph import Graph
from autosharding.plan import Memory, Plan
from autosharding.planner.decode import Decoder
from autosharding.planner.formulate import Restrictions, formulate
from autosharding.planner.liveness import liveness
from autosharding.planner.tables import Tables
from autosharding.rules import rule_for
from autosharding.strategies import monoids
from tests.conformance.run import execute, topology

MESHES = ({"x": 2}, {"x": 2, "y": 2}, {"x": 4, "y": 2}, {"x": 2, "y": 3}, {"x": 2, "y": 2, "z": 2})
SIZES = (2, 4, 6, 8, 1, 3)
LARGEST = 1024
"""Elements beyond which an array is not worked on further."""

Draw = Callable[[st.SearchStrategy[Any]], Any]
Shape = tuple[int, ...]
Step = Callable[..., Any]
"""One or two arrays in, one out."""


def axis_of(draw: Draw, shape: Shape) -> int:
    return draw(st.integers(0, len(shape) - 1))


# ---- one op each: draws its parameters, given the shape it works on --------------------------------------


def elementwise(draw: Draw, shape: Shape) -> Step:
    return draw(st.sampled_from([lambda x: x * 3 + 1, lambda x: jnp.maximum(x, 5), lambda x: x ^ 9, lambda x: -x]))


def reduction(draw: Draw, shape: Shape) -> Step:
    axis, f = axis_of(draw, shape), draw(st.sampled_from([jnp.sum, jnp.max, jnp.min, jnp.prod, jnp.argmax]))
    return lambda x: f(x, axis=axis, keepdims=True).astype(jnp.int32)


def dropped(draw: Draw, shape: Shape) -> Step:
    return lambda x: x.sum(0) if x.ndim > 1 else x


def running(draw: Draw, shape: Shape) -> Step:
    f, reverse = draw(st.sampled_from([lax.cumsum, lax.cummax, lax.cumprod])), draw(st.booleans())
    axis = axis_of(draw, shape)
    return lambda x: f(x, axis, reverse=reverse)


def ordered(draw: Draw, shape: Shape) -> Step:
    axis = axis_of(draw, shape)
    k = draw(st.integers(1, shape[-1]))
    return draw(st.sampled_from([lambda x: lax.sort(x, dimension=axis), lambda x: lax.top_k(x, k)[1]]))


def turned(draw: Draw, shape: Shape) -> Step:
    order, axis = draw(st.permutations(range(len(shape)))), axis_of(draw, shape)
    flat = (shape[0] * prod(shape[1:]),) if len(shape) > 1 else (1, *shape)
    return draw(st.sampled_from([lambda x: x.transpose(order), lambda x: jnp.flip(x, axis), lambda x: x.reshape(flat)]))


def sliced(draw: Draw, shape: Shape) -> Step:
    axis = axis_of(draw, shape)
    start, stride = draw(st.integers(0, shape[axis] - 1)), draw(st.integers(1, 2))
    return lambda x: lax.slice_in_dim(x, start, None, stride, axis)


def padded(draw: Draw, shape: Shape) -> Step:
    axis = axis_of(draw, shape)
    low, high, holes = (draw(st.integers(0, 2)) for _ in range(3))
    value = draw(st.sampled_from([0, 7]))
    config = [(low, high, holes) if d == axis else (0, 0, 0) for d in range(len(shape))]
    return lambda x: lax.pad(x, np.int32(value), config)


def windowed(draw: Draw, shape: Shape) -> Step:
    axis = axis_of(draw, shape)
    size, stride = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    window = [size if d == axis else 1 for d in range(len(shape))]
    strides = [stride if d == axis else 1 for d in range(len(shape))]
    return draw(
        st.sampled_from(
            [
                lambda x: lax.reduce_window(x, 0, lax.add, window, strides, "SAME"),
                lambda x: lax.reduce_window(x, np.iinfo(np.int32).min, lax.max, window, strides, "SAME"),
            ]
        )
    )


def looked_up(draw: Draw, shape: Shape) -> Step:
    index = np.array(draw(st.lists(st.integers(-shape[0], shape[0] + 1), min_size=1, max_size=6)), np.int32)
    mode = draw(st.sampled_from(["clip", "fill"]))
    return lambda x: x.at[index].get(mode=mode)


def scattered(draw: Draw, shape: Shape) -> Step:
    index = np.array(draw(st.lists(st.integers(0, shape[0] + 1), min_size=1, max_size=6)), np.int32)
    how = draw(st.sampled_from(["add", "max", "mul"]))
    return lambda x: getattr(x.at[index], how)(x[0] + 1)


def moved(draw: Draw, shape: Shape) -> Step:
    axis = axis_of(draw, shape)
    size = draw(st.integers(1, shape[axis]))
    take = lambda x: lax.dynamic_slice_in_dim(x, x.max() % 5, size, axis)  # noqa: E731
    return draw(st.sampled_from([take, lambda x: lax.dynamic_update_slice_in_dim(x, take(x) + 1, x.min() % 3, axis)]))


def pair(draw: Draw, shape: Shape) -> Step:
    f = draw(st.sampled_from([jnp.add, jnp.subtract, jnp.multiply, jnp.minimum]))
    return lambda x, y: f(x, y[tuple(slice(0, 1) for _ in y.shape)].reshape(-1)[0] if y.shape != x.shape else y)


def product(draw: Draw, shape: Shape) -> Step:
    return lambda x, y: jnp.tensordot(x, y, 1) if x.shape[-1] == y.shape[0] else jnp.tensordot(x, x, (-1, -1))


def joined(draw: Draw, shape: Shape) -> Step:
    axis = axis_of(draw, shape)
    return lambda x, y: jnp.concatenate([x, y if y.shape == x.shape else x * 2], axis)


OPS = (
    elementwise, reduction, dropped, running, ordered, turned, sliced, padded, windowed, looked_up, scattered, moved,
    pair, product, joined,
)  # fmt: skip
OF_TWO = (pair, product, joined)


@dataclass(frozen=True)
class Program:
    """Steps over a growing list of arrays: (what is done, to which)."""

    inputs: tuple[Shape, ...]
    steps: tuple[tuple[str, Step, tuple[int, ...]], ...]

    def __call__(self, *arrays: Any) -> list[Any]:
        values = list(arrays)
        for _, step, reads in self.steps:
            values.append(step(*(values[i] for i in reads)))
        return values[len(arrays) :]

    def __repr__(self) -> str:
        return f"{self.inputs} " + "; ".join(f"{name} {reads}" for name, _, reads in self.steps)


@st.composite
def programs(draw: Draw) -> Program:
    inputs = tuple(draw(st.lists(st.sampled_from(SIZES), min_size=1, max_size=3).map(tuple)) for _ in range(2))
    program = Program(inputs, ())
    avals = [jax.ShapeDtypeStruct(s, jnp.int32) for s in inputs]
    for _ in range(draw(st.integers(1, 6))):
        known = [*avals, *jax.eval_shape(program, *avals)]
        fit = [i for i, a in enumerate(known) if a.ndim and 0 < a.size <= LARGEST and a.ndim <= 4]
        op = draw(st.sampled_from(OPS))
        reads = tuple(draw(st.sampled_from(fit)) for _ in range(2 if op in OF_TWO else 1))
        step = op(draw, known[reads[0]].shape)
        program = replace(program, steps=(*program.steps, (op.__name__, step, reads)))
    return program


def random_plan(graph: Graph, mesh: Mapping[str, int], seed: int) -> Plan:
    """A plan chosen by dice."""
    rules = [rule_for(op) for op in graph.ops]
    found, life, prices = monoids(graph, rules), liveness(graph), topology(mesh)
    tables = Tables(graph, prices, found, life)
    built = formulate(
        graph, list(rules), tables, life, state={}, donated=frozenset(), restrictions=Restrictions(), limit=None
    )
    dice = np.random.default_rng(seed)
    costs = tuple(np.where(np.isfinite(c), dice.random(c.shape), c) for c in built.problem.costs)
    solution = ilp.solve(replace(built.problem, costs=costs), gap=1.0)
    decoder = Decoder(graph, rules, tables, built, solution.choice, {})
    steps, outputs = decoder.steps(), decoder.outputs()
    memory = Memory(None, 0, 0, 0, (), ())
    inputs = decoder.inputs(["batch"] * len(graph.inputs))
    copies, left = tuple(decoder.copies), decoder.unresolved()
    return Plan("random", graph.fingerprint, "auto", prices, inputs, steps, copies, outputs, memory, 0.0, 0.0, left)


def check(program: Program, mesh: Mapping[str, int], seed: int) -> None:
    dice = np.random.default_rng(seed)
    args = [dice.integers(-9, 9, s).astype(np.int32) for s in program.inputs]
    want = jax.jit(program)(*args)
    graph = capture(program, args)
    plan = random_plan(graph, mesh, seed).verify()
    got = execute(graph, plan, [jnp.asarray(a) for a in (*args, *graph.constants)])
    for g, w in zip(got, want, strict=True):
        np.testing.assert_array_equal(g, w, err_msg=f"{program} on {mesh} with the dice at {seed}\n{graph}\n{plan}")


@given(programs(), st.sampled_from(MESHES), st.integers(0, 2**16))
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_programs(program: Program, mesh: Mapping[str, int], seed: int) -> None:
    check(program, mesh, seed)


@pytest.mark.slow
@given(programs(), st.sampled_from(MESHES), st.integers(0, 2**16))
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_many_programs(program: Program, mesh: Mapping[str, int], seed: int) -> None:
    check(program, mesh, seed)


_WINDOW = lax.GatherDimensionNumbers(offset_dims=(0,), collapsed_slice_dims=(), start_index_map=(0,))


@pytest.mark.parametrize(
    "step",
    [
        lambda x: lax.dynamic_slice(x, (x.max() + 9,), (4,)),
        lambda x: lax.gather(x, x.max()[None] + 9, _WINDOW, (4,), mode="clip"),
    ],
    ids=["slice", "gather"],
)
def test_a_start_out_of_bounds_of_what_is_cut_afterwards(step: Step) -> None:
    """What XLA:CPU merges wrongly: a device's piece of a slice."""
    for seed in range(8):
        check(Program(((7,),), (("step", step, (0,)),)), {"x": 2, "y": 2}, seed)
