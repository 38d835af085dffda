"""The classic list of tensor operators (TVM's TOPI), each as its JAX expression: planned, sharded, the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax, nn

from autosharding.capture import capture
from autosharding.planner import plan_graph
from tests.conformance.run import execute, topology
from tests.rules.harness import MESH_4
from tests.rules.shards import compare

Operators = Mapping[str, Callable[..., Any]]

TOLERANCE = 2e-6

SMALL = 16
"""Elements below which an op may well be repeated by every device."""


def reals(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def whole(*shape: int, low: int = 1, high: int = 9, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.int32)


def operators(text: str, room: Any = jnp) -> dict[str, Callable[..., Any]]:
    return {name: getattr(room, name) for name in text.split()}


# ---- broadcast -------------------------------------------------------------------------------------------

ARITHMETIC = operators("add subtract multiply divide floor_divide mod fmod maximum minimum power")
COMPARISON = operators("greater less equal not_equal greater_equal less_equal")
LOGIC = operators("logical_and logical_or logical_xor") | {"logical_not": lambda x, y: jnp.logical_not(x)}
BITS = operators("bitwise_and bitwise_or bitwise_xor left_shift right_shift") | {
    "bitwise_not": lambda x, y: jnp.bitwise_not(x)
}

# ---- element by element ----------------------------------------------------------------------------------


def fast_exp(x: Any) -> Any:
    """exp by a polynomial of the fraction and the bits of the exponent, as TOPI has it."""
    x = jnp.clip(x, -88.3762626647949, 88.3762626647950)
    whole_part = jnp.floor(x * 1.44269504088896341 + 0.5)
    f = x - whole_part * 0.6931471805599453
    y = jnp.full_like(f, 1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        y = y * f + c
    power = lax.bitcast_convert_type((whole_part.astype(jnp.int32) + 127) << 23, jnp.float32)
    return jnp.maximum((y * f * f + f + 1.0) * power, x)


ELEMENTWISE = operators("negative exp tanh cos sin tan floor ceil trunc abs sign rint isnan isfinite isinf arctan") | {
    "log": lambda x: jnp.log(jnp.abs(x)),
    "sqrt": lambda x: jnp.sqrt(jnp.abs(x)),
    "rsqrt": lambda x: lax.rsqrt(jnp.abs(x)),
    "fast_exp": fast_exp,
    "fast_tanh": nn.tanh,
    "erf": lax.erf,
    "sigmoid": nn.sigmoid,
    "identity": lambda x: lax.copy_p.bind(x),
    "clip": lambda x: jnp.clip(x, -0.5, 0.5),
    "cast": lambda x: x.astype(jnp.int32),
    "reinterpret": lambda x: lax.bitcast_convert_type(x, jnp.int32),
    "elemwise_sum": lambda x: sum([x, x * 2, x * 3]),
    "full_like": lambda x: x + jnp.full_like(x, 7),
    "full": lambda x: x * jnp.full((8, 4), 3.0, jnp.float32),
}

# ---- nn --------------------------------------------------------------------------------------------------

NCHW = reals(2, 4, 8, 8)
NHWC = reals(2, 8, 8, 4)


def prelu(x: Any, slope: Any) -> Any:
    return jnp.where(x > 0, x, x * slope[:, None, None])


def space_to_batch_nd(x: Any, block: int = 2) -> Any:
    """[N, H, W, C] -> [block^2 N, H / block, W / block, C], padded by a block's worth of zeros in front."""
    x = jnp.pad(x, ((0, 0), (block, 0), (0, block), (0, 0)))
    n, h, w, c = x.shape
    x = x.reshape(n, h // block, block, w // block, block, c)
    return x.transpose(2, 4, 0, 1, 3, 5).reshape(-1, h // block, w // block, c)


def batch_to_space_nd(x: Any, block: int = 2) -> Any:
    """Its inverse, but for what is cropped."""
    n, h, w, c = x.shape
    x = x.reshape(block, block, n // block**2, h, w, c).transpose(2, 3, 0, 4, 1, 5)
    return x.reshape(n // block**2, h * block, w * block, c)[:, 2:, :-2]


def nll_loss(scores: Any, targets: Any, weights: Any) -> Any:
    picked = jnp.take_along_axis(scores, targets[:, None], 1)[:, 0]
    return -(picked * weights[targets]).sum() / weights[targets].sum()


def pool(x: Any, kind: str, dims: int, size: int = 2, stride: int = 2, padding: int = 0) -> Any:
    """Pooling over the last `dims` dims."""
    window = (1,) * (x.ndim - dims) + (size,) * dims
    strides = (1,) * (x.ndim - dims) + (stride,) * dims
    pad = ((0, 0),) * (x.ndim - dims) + ((padding, padding),) * dims
    if kind == "max":
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, pad)
    return lax.reduce_window(x, 0.0, lax.add, window, strides, pad) / size**dims


def pool_grad(x: Any, kind: str, dims: int, size: int, stride: int, padding: int) -> Any:
    y, back = jax.vjp(lambda x: pool(x, kind, dims, size, stride, padding), x)
    return back(jnp.sin(y))[0]


def adaptive_pool(x: Any, kind: str, to: int = 4) -> Any:
    n, c, h, w = x.shape
    cells = x.reshape(n, c, to, h // to, to, w // to)
    return cells.max((3, 5)) if kind == "max" else cells.mean((3, 5))


def lrn(x: Any, size: int = 3, bias: float = 2.0, alpha: float = 1e-4, beta: float = 0.75) -> Any:
    """Local response normalisation over the channels of [N, C, H, W]."""
    window = lax.reduce_window(x * x, 0.0, lax.add, (1, size, 1, 1), (1, 1, 1, 1), "SAME")
    return x / (bias + alpha * window / size) ** beta


def binarize_pack(x: Any) -> Any:
    """Signs of [N, K] packed 32 to a word, the first in the highest bit."""
    bits = (x >= 0).astype(jnp.uint32).reshape(x.shape[0], -1, 32)
    return (bits << (31 - lax.broadcasted_iota(jnp.uint32, bits.shape, 2))).sum(2, dtype=jnp.uint32)


def binary_dense(x: Any, w: Any) -> Any:
    """Products of signs, packed: agreeing less differing."""
    x, w = binarize_pack(x), binarize_pack(w)
    differing = lax.population_count(x[:, None] ^ w[None]).astype(jnp.int32).sum(2)
    return 32 * x.shape[1] - 2 * differing


Neural = dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]

NEURAL: Neural = {
    "relu": (nn.relu, (NCHW,)),
    "leaky_relu": (partial(nn.leaky_relu, negative_slope=0.1), (NCHW,)),
    "prelu": (prelu, (NCHW, reals(4))),
    "pad": (lambda x: jnp.pad(x, ((0, 0), (0, 0), (1, 1), (2, 0)), constant_values=3), (NCHW,)),
    "space_to_batch_nd": (space_to_batch_nd, (NHWC,)),
    "batch_to_space_nd": (batch_to_space_nd, (reals(8, 4, 4, 2),)),
    "nll_loss": (nll_loss, (nn.log_softmax(reals(8, 4)), whole(8, low=0, high=4), np.abs(reals(4)))),
    "dense": (lambda x, w, b: x @ w.T + b, (reals(8, 16), reals(4, 16), reals(4))),
    "bias_add": (lambda x, b: x + b[:, None, None], (NCHW, reals(4))),
    "dilate": (lambda x: lax.pad(x, 0.0, ((0, 0, 0), (0, 0, 0), (0, 1, 1), (0, 2, 2))), (NCHW,)),
    "flatten": (lambda x: x.reshape(x.shape[0], -1), (NCHW,)),
    "scale_shift_nchw": (lambda x, a, b: x * a[:, None, None] + b[:, None, None], (NCHW, reals(4), reals(4, seed=1))),
    "scale_shift_nhwc": (lambda x, a, b: x * a + b, (NHWC, reals(4), reals(4, seed=1))),
    "pool1d max": (lambda x: pool(x, "max", 1, 3, 2, 1), (reals(2, 4, 16),)),
    "pool1d avg": (lambda x: pool(x, "avg", 1, 3, 2, 1), (reals(2, 4, 16),)),
    "pool2d max": (lambda x: pool(x, "max", 2, 3, 2, 1), (NCHW,)),
    "pool2d avg": (lambda x: pool(x, "avg", 2, 3, 2, 1), (NCHW,)),
    "pool3d max": (lambda x: pool(x, "max", 3), (reals(1, 2, 8, 4, 4),)),
    "pool3d avg": (lambda x: pool(x, "avg", 3), (reals(1, 2, 8, 4, 4),)),
    "pool1d_grad max": (lambda x: pool_grad(x, "max", 1, 3, 2, 1), (reals(2, 4, 16),)),
    "pool1d_grad avg": (lambda x: pool_grad(x, "avg", 1, 3, 2, 1), (reals(2, 4, 16),)),
    "pool2d_grad max": (lambda x: pool_grad(x, "max", 2, 3, 2, 1), (NCHW,)),
    "pool2d_grad avg": (lambda x: pool_grad(x, "avg", 2, 3, 2, 1), (NCHW,)),
    "pool3d_grad max": (lambda x: pool_grad(x, "max", 3, 2, 2, 0), (reals(1, 2, 8, 4, 4),)),
    "pool3d_grad avg": (lambda x: pool_grad(x, "avg", 3, 2, 2, 0), (reals(1, 2, 8, 4, 4),)),
    "global_pool max": (lambda x: x.max((2, 3), keepdims=True), (NCHW,)),
    "global_pool avg": (lambda x: x.mean((2, 3), keepdims=True), (NCHW,)),
    "adaptive_pool max": (lambda x: adaptive_pool(x, "max"), (NCHW,)),
    "adaptive_pool avg": (lambda x: adaptive_pool(x, "avg"), (NCHW,)),
    "softmax": (nn.softmax, (reals(8, 16),)),
    "log_softmax": (nn.log_softmax, (reals(8, 16),)),
    "lrn": (lrn, (NCHW,)),
    "binarize_pack": (binarize_pack, (reals(8, 64),)),
    "binary_dense": (binary_dense, (reals(8, 64), reals(4, 64, seed=1))),
}

# ---- reductions ------------------------------------------------------------------------------------------

REDUCTIONS = operators("sum min max argmin argmax prod")
OF_BOOLEANS = operators("all any")


def over(f: Callable[..., Any], *axes: int | None) -> Callable[..., Any]:
    return lambda x: [f(x, axis=a) for a in axes]


SECTIONS: dict[str, tuple[Operators, tuple[Any, ...]]] = {
    "arithmetic": (ARITHMETIC, (1 + np.abs(reals(8, 4)), 1 + np.abs(reals(1, 4, seed=1)))),
    "integer arithmetic": (ARITHMETIC, (whole(8, 4), whole(8, 1, seed=1, high=4))),
    "comparison": (COMPARISON, (whole(8, 4, high=4), whole(4, high=4))),
    "logic": (LOGIC, (whole(8, 4) > 4, whole(4, seed=1) > 4)),
    "bits and shifts": (BITS, (whole(8, 4), whole(8, 1, seed=1))),
    "elementwise": (ELEMENTWISE, (reals(8, 4),)),
    "reductions": ({n: over(f, 0, 1, None) for n, f in REDUCTIONS.items()}, (reals(8, 4),)),
    "integer reductions": ({n: over(f, 0, 1, None) for n, f in REDUCTIONS.items()}, (whole(8, 4, high=4),)),
    "boolean reductions": ({n: over(f, 0, 1, None) for n, f in OF_BOOLEANS.items()}, (reals(8, 4) > -1,)),
}


def run_sharded(f: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """The cheapest plan on 2 x 2 devices gives the numbers of one device, and every op but the smallest is split."""
    graph = capture(lambda *a: jax.tree.leaves(f(*a)), [jnp.asarray(a) for a in args])
    plan = plan_graph(graph, topology=topology(MESH_4))
    inputs = [jnp.asarray(a) for a in (*args, *graph.constants)]
    for got, want in zip(execute(graph, plan, inputs), jax.tree.leaves(jax.jit(f)(*args)), strict=True):
        compare(np.asarray(got), np.asarray(want), TOLERANCE, str(plan))
    whole = [
        op.name
        for op, step in zip(graph.ops, plan.steps, strict=True)
        if max((a.size for a in op.values if not graph.is_free(a)), default=0) >= SMALL and not step.factors
    ]
    assert whole == [], f"{whole} are not split\n{plan}"
    assert plan.unresolved == ()


@pytest.mark.parametrize("section", SECTIONS)
def test_section(section: str) -> None:
    table, args = SECTIONS[section]
    run_sharded(lambda *a: [f(*a) for f in table.values()], args)


@pytest.mark.parametrize("name", NEURAL)
def test_neural(name: str) -> None:
    f, args = NEURAL[name]
    run_sharded(f, args)
