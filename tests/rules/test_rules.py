"""Every rule under every strategy, against the op run whole; a case names the primitives that must split."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.lax import GatherDimensionNumbers, GatherScatterMode, ScatterDimensionNumbers

from autosharding.capture import capture
from autosharding.rules import rules_of
from tests.rules.harness import MESH_2, MESH_4, MESH_8, check


def arr(*shape: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=shape) * 3
    return x.astype(dtype)


def idx(n: int, *shape: int, low: int = 0, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, n, shape).astype(np.int32)


Case = tuple[Callable[..., Any], tuple[Any, ...], str, dict[str, int]]

CASES: dict[str, Case] = {}


def case(name: str, f: Callable[..., Any], *args: Any, splits: str = "", mesh: dict[str, int] = MESH_4) -> None:
    """`splits`: the primitives that must have strategies; only they are checked (all, where it is empty)."""
    assert name not in CASES, name
    CASES[name] = (f, args, splits, mesh)


def words(text: str) -> list[str]:
    return text.split()


narrow = partial(case, mesh=MESH_2)  # many ops in one case: one axis is proof enough


# --- movers -----------------------------------------------------------------------------------------------
case("transpose", lambda x: x.transpose(2, 0, 1), arr(4, 8, 2), splits="transpose")
case("broadcast", lambda x: jnp.broadcast_to(x[:, None], (4, 8, 4)), arr(4, 4), splits="broadcast_in_dim")
case("squeeze", lambda x: lax.squeeze(x, (1,)), arr(4, 1, 8), splits="squeeze")
case("expand_dims", lambda x: x[:, None], arr(4, 8), splits="broadcast_in_dim")
case("rev", lambda x: lax.rev(x, (1,)), arr(4, 8), splits="rev")
case("reshape merge", lambda x: x.reshape(32, 2), arr(4, 8, 2), splits="reshape")
case("reshape split", lambda x: x.reshape(4, 2, 4), arr(8, 4), splits="reshape")
case("reshape odd", lambda x: x.reshape(6, 4), arr(4, 6), splits="reshape")
case("reshape permuted", lambda x: lax.reshape(x, (4, 2, 4), (1, 0)), arr(4, 8), splits="reshape")
case("reshape unit", lambda x: x.reshape(1, 8, 1, 4), arr(8, 4), splits="reshape")
case(
    "reshape int max",
    lambda x: jnp.max(x, 0).reshape(4, 2),
    arr(4, 8, dtype=np.int32),
    splits="reshape reduce_max",
)
case("iota", lambda x: x + lax.broadcasted_iota(jnp.int32, (4, 8), 1), idx(9, 4, 8), splits="iota")
case("iota float", lambda x: x + lax.broadcasted_iota(jnp.float32, (4, 8), 0), arr(4, 8), splits="iota")

# --- cut and paste ----------------------------------------------------------------------------------------
case("pad zero", lambda x: lax.pad(x, 0.0, ((1, 2, 0), (0, 0, 0))), arr(4, 8), splits="pad")
case("pad value", lambda x, v: lax.pad(x, v, ((1, -1, 2), (0, 0, 0))), arr(4, 8), arr(), splits="pad")
case("pad one", lambda x: lax.pad(x, 1.0, ((0, 0, 1), (0, 0, 0))), arr(4, 8), splits="pad")
case("slice", lambda x: x[:, 1:7:2], arr(4, 8), splits="slice")
case("slice 3", lambda x: x[1:3], arr(4, 8, 4), splits="slice")
case("concatenate", lambda x, y: jnp.concatenate([x, y], 1), arr(4, 8), arr(4, 2, seed=1), splits="concatenate")
case("split", lambda x: jnp.split(x, [2, 6], 1), arr(4, 8), splits="split")
case("stack", lambda x, y: jnp.stack([x, y], 1), arr(4, 8), arr(4, 8, seed=1), splits="stack")
case("unstack", lambda x: jnp.unstack(x, axis=1), arr(4, 2, 8))
case("tile", lambda x: jnp.tile(x, (4, 1)), arr(2, 8), splits="tile")
case("tile both", lambda x: jnp.tile(x, (2, 4)), arr(4, 8), splits="tile")
case(
    "dynamic_slice",
    lambda x, i: lax.dynamic_slice(x, (i, 0), (2, 8)),
    arr(4, 8),
    np.int32(3),
    splits="dynamic_slice",
)
case(
    "dynamic_slice literal",
    lambda x, i: lax.dynamic_slice(x, (i, 5), (2, 8)),
    arr(4, 8),
    np.int32(1),
    splits="dynamic_slice",
)
case(
    "dynamic_update_slice",
    lambda x, u, i: lax.dynamic_update_slice(x, u, (i, 0)),
    arr(4, 8),
    arr(1, 8, seed=1),
    np.int32(2),
    splits="dynamic_update_slice",
)
case(
    "copy",
    lambda x: lax.optimization_barrier(x) if False else jnp.array(x, copy=True),
    arr(4, 8),
    splits="copy",
)

# --- gather -----------------------------------------------------------------------------------------------
for _mode in ("clip", "fill", "promise_in_bounds"):
    for _dtype in (np.float32, np.int32, np.uint8):
        narrow(
            f"take {_mode} {np.dtype(_dtype).name}",
            lambda t, i, mode=_mode: t.at[i].get(mode=mode, wrap_negative_indices=False),
            np.abs(arr(8, 4)).astype(_dtype),
            idx(11, 4, 2, low=-3),
            splits="gather",
        )
    case(
        f"take_along_axis {_mode}",
        lambda t, i, mode=_mode: jnp.take_along_axis(t, i, 1, mode=mode),
        arr(4, 8),
        idx(8, 4, 2),
        splits="gather",
    )
case("index", lambda t, i: t[i], arr(8, 4), idx(8, 4), splits="gather")
case("index middle", lambda t, i: t[:, i], arr(2, 8, 4), idx(8, 4), splits="gather")
case("index pairs", lambda t, i, j: t[i, j], arr(8, 4), idx(8, 4), idx(4, 4, seed=2), splits="gather")
case("index apart", lambda t, i, j: t[i, :, j], arr(4, 2, 8), idx(4, 4), idx(8, 4, seed=2), splits="gather")
case(
    "index uint8",
    lambda t, i: t.at[i].get(mode="fill"),
    arr(8, 4),
    idx(12, 4).astype(np.uint8),
    splits="gather",
)
case(
    "index int8",
    lambda t, i: t.at[i].get(mode="clip"),
    arr(8, 4),
    idx(12, 4, low=-4).astype(np.int8),
    splits="gather",
)
case("index scalar", lambda t, i: t[i], arr(8, 4), np.int32(5), splits="dynamic_slice")
case("index bool", lambda t, i: t[i], arr(8, 4) > 0, idx(8, 4), splits="gather")
case(
    "fill value",
    lambda t, i: t.at[i].get(mode="fill", fill_value=-7),
    arr(8, 4),
    idx(12, 4),
    splits="gather",
)
case(
    "vmapped take",
    lambda t, i: jax.vmap(lambda t, i: t[i])(t, i),
    arr(4, 8, 2),
    idx(8, 4, 2),
    splits="gather",
)
case(
    "gather windows",
    lambda t, i: lax.gather(
        t,
        i,
        GatherDimensionNumbers(offset_dims=(1, 2), collapsed_slice_dims=(), start_index_map=(0, 1)),
        (1, 4),
        mode=GatherScatterMode.FILL_OR_DROP,
    ),
    arr(8, 4),
    np.array([[0, 0], [3, 0], [5, 1], [9, 0]], np.int32),
    splits="gather",
)
case(
    "gather part windows",
    lambda t, i: lax.gather(
        t,
        i,
        GatherDimensionNumbers(offset_dims=(0, 2), collapsed_slice_dims=(), start_index_map=(1,)),
        (4, 3),
        mode=GatherScatterMode.CLIP,
    ),
    arr(4, 8),
    idx(8, 4, 1),
    splits="gather",
)

# --- scatter ----------------------------------------------------------------------------------------------
for _mode in ("clip", "drop", "promise_in_bounds"):
    for _name in ("add", "set", "mul", "min", "max"):
        narrow(
            f"scatter {_name} {_mode}",
            lambda t, i, u, mode=_mode, name=_name: getattr(t.at[i], name)(u, mode=mode),
            arr(8, 4),
            idx(11, 4, low=-2),
            arr(4, 4, seed=3),
            splits="scatter" if _name == "set" else f"scatter-{_name}",
        )
case(
    "scatter-add int",
    lambda t, i, u: t.at[i].add(u),
    idx(99, 8, 4),
    idx(8, 4, 2),
    idx(99, 4, 2, 4, seed=3),
    splits="scatter-add",
)
case(
    "scatter-sub",
    lambda t, i, u: t.at[i].subtract(u),
    arr(8, 4),
    idx(8, 4),
    arr(4, 4, seed=3),
    splits="scatter-sub",
)
case(
    "scatter-add pairs",
    lambda t, i, j, u: t.at[i, j].add(u),
    arr(8, 4),
    idx(8, 4),
    idx(4, 4, seed=2),
    arr(4, seed=3),
    splits="scatter-add",
)
case(
    "take_along grad",
    lambda t, i, u: jax.vjp(lambda t: jnp.take_along_axis(t, i, 1), t)[1](u),
    arr(4, 8),
    idx(8, 4, 2),
    arr(4, 2),
    splits="scatter-add",
)
case(
    "embedding grad",
    lambda t, i, u: jax.vjp(lambda t: jnp.take(t, i, 0), t)[1](u),
    arr(8, 4),
    idx(8, 4, 2),
    arr(4, 2, 4),
    splits="scatter-add",
    mesh=MESH_8,
)
case(
    "scatter windows",
    lambda t, i, u: lax.scatter_add(
        t,
        i,
        u,
        ScatterDimensionNumbers(
            update_window_dims=(1, 2), inserted_window_dims=(), scatter_dims_to_operand_dims=(0, 1)
        ),
        mode=GatherScatterMode.CLIP,
    ),
    arr(8, 4),
    np.array([[0, 0], [3, 0], [5, 1], [9, 0]], np.int32),
    arr(4, 1, 4),
    splits="scatter-add",
)
case(
    "scatter part windows",
    lambda t, i, u: lax.scatter_add(
        t,
        i,
        u,
        ScatterDimensionNumbers(update_window_dims=(0, 2), inserted_window_dims=(), scatter_dims_to_operand_dims=(1,)),
    ),
    arr(4, 8),
    idx(8, 4, 1),
    arr(4, 4, 3),
    splits="scatter-add",
)


# --- contractions and convolutions ------------------------------------------------------------------------
case("dot", lambda x, y: x @ y, arr(8, 8), arr(8, 8, seed=1), splits="dot_general", mesh=MESH_8)
case(
    "dot batched",
    lambda x, y: jnp.einsum("bij,bkj->bik", x, y),
    arr(2, 4, 8),
    arr(2, 4, 8),
    splits="dot_general",
)
case("dot int", lambda x, y: x @ y, idx(9, 4, 8), idx(9, 8, 4), splits="dot_general")
case(
    "dot bf16",
    lambda x, y: x @ y,
    arr(4, 8, dtype=jnp.bfloat16),
    arr(8, 4, dtype=jnp.bfloat16),
    splits="dot_general",
)
case(
    "ragged",
    lax.ragged_dot,
    arr(8, 4),
    arr(4, 4, 6, seed=1),
    np.array([3, 0, 4, 0], np.int32),
    splits="ragged_dot_general",
)
case(
    "ragged grads",
    lambda x, w, g, t: jax.vjp(lambda x, w: lax.ragged_dot(x, w, g), x, w)[1](t),
    arr(8, 4),
    arr(4, 4, 6, seed=1),
    np.array([0, 2, 1, 4], np.int32),
    arr(8, 6),
    splits="ragged_dot_general",
)
case(
    "ragged batched",
    lambda x, w, g: jax.vmap(lax.ragged_dot)(x, w, g),
    arr(2, 8, 4),
    arr(2, 2, 4, 6, seed=1),
    np.array([[3, 5], [8, 0]], np.int32),
    splits="ragged_dot_general",
)


def conv(numbers: tuple[str, str, str], **options: Any) -> Callable[..., Any]:
    def f(x: Any, w: Any) -> Any:
        return lax.conv_general_dilated(
            x, w, dimension_numbers=numbers, **{"window_strides": (1, 1), "padding": "SAME"} | options
        )

    return f


def conv_grads(f: Callable[..., Any]) -> Callable[..., Any]:
    def g(x: Any, w: Any) -> Any:
        y, back = jax.vjp(f, x, w)
        return back(jnp.cos(y))

    return g


NHWC, NCHW = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")
_x, _w = arr(4, 5, 5, 4), arr(3, 3, 4, 8, seed=1)
case("conv nhwc", conv(NHWC), _x, _w, splits="conv_general_dilated")
case("conv nchw", conv(NCHW, padding="VALID"), arr(4, 4, 5, 5), arr(8, 4, 3, 3), splits="conv_general_dilated")
case(
    "conv mixed",
    conv(("CHNW", "IOHW", "HWNC")),
    arr(4, 5, 4, 5),
    arr(4, 8, 3, 3),
    splits="conv_general_dilated",
)
case("conv grads", conv_grads(conv(NHWC, window_strides=(2, 2))), _x, _w, splits="conv_general_dilated")
case("conv dilated", conv_grads(conv(NHWC, rhs_dilation=(2, 1))), _x, _w, splits="conv_general_dilated")
case("conv groups", conv(NHWC, feature_group_count=2), arr(4, 5, 5, 8), _w, splits="conv_general_dilated")
case(
    "conv groups grads",
    conv_grads(conv(NHWC, feature_group_count=4)),
    arr(4, 5, 5, 8),
    arr(3, 3, 2, 8),
    splits="conv_general_dilated",
)
case(
    "conv depthwise",
    conv_grads(conv(NHWC, feature_group_count=4)),
    _x,
    arr(3, 3, 1, 8),
    splits="conv_general_dilated",
)
case("conv batch groups", conv(NHWC, batch_group_count=2), _x, arr(3, 3, 4, 4), splits="conv_general_dilated")
case(
    "conv batch groups 4",
    conv(NHWC, batch_group_count=4),
    arr(8, 5, 5, 4),
    arr(3, 3, 4, 8),
    splits="conv_general_dilated",
)
case(
    "conv 1d",
    lambda x, w: lax.conv_general_dilated(x, w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")),
    arr(4, 6, 4),
    arr(3, 4, 4),
    splits="conv_general_dilated",
)

# --- windows ----------------------------------------------------------------------------------------------


def pool(monoid: Any, init: Any) -> Callable[..., Any]:
    return lambda x: lax.reduce_window(x, init, monoid, (1, 2, 2, 1), (1, 2, 1, 1), "SAME")


case("max pool", pool(lax.max, -jnp.inf), _x, splits="reduce_window_max")
case("min pool", pool(lax.min, jnp.inf), _x, splits="reduce_window_min")
case("sum pool", pool(lax.add, 0.0), _x, splits="reduce_window_sum")
case("mul pool", pool(lax.mul, 1.0), _x, splits="reduce_window")
case(
    "pair pool",
    lambda x: lax.reduce_window(
        (x, -x), (0.0, 0.0), lambda a, b: (a[0] + b[0], a[1] * b[0]), (1, 2, 2, 1), (1, 1, 1, 1), "SAME"
    ),
    _x,
    splits="reduce_window",
)
case(
    "max pool grad",
    jax.grad(lambda x: (pool(lax.max, -jnp.inf)(x) ** 2).sum()),
    _x,
    splits="select_and_scatter_add",
)
case("max pool jvp", lambda x: jax.jvp(pool(lax.max, -jnp.inf), (x,), (jnp.sin(x),))[1], _x)
case("sum pool grad", jax.grad(lambda x: (pool(lax.add, 0.0)(x) ** 2).sum()), _x, splits="reduce_window_sum")

# --- reductions and order ---------------------------------------------------------------------------------
for _name in ("sum", "prod", "max", "min"):
    case(
        f"reduce {_name}",
        lambda x, name=_name: getattr(jnp, name)(x, (0, 2)),
        arr(4, 8, 2),
        splits=f"reduce_{_name}",
    )
for _name in ("all", "any", "max", "min"):
    _primitive = {"all": "reduce_and", "any": "reduce_or"}.get(_name, f"reduce_{_name}")
    case(
        f"reduce bool {_name}",
        lambda x, name=_name: getattr(jnp, name)(x, 0),
        arr(4, 8) > -2,
        splits=_primitive,
    )
case("reduce bits", lambda x: lax.reduce_and_p.bind(x, axes=(0,)), idx(99, 4, 8), splits="reduce_and")
case("reduce xor", lambda x: lax.reduce_xor_p.bind(x, axes=(0,)), idx(99, 4, 8), splits="reduce_xor")
case(
    "reduce custom",
    lambda x: lax.reduce((x, -x), (0.0, 1.0), lambda a, b: (a[0] + b[0], a[1] * b[1]), (1,)),
    arr(4, 8),
    splits="reduce",
)
case("argmax", lambda x: (jnp.argmax(x, 1), jnp.argmin(x, 0)), arr(4, 8), splits="argmax argmin")
for _name in ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"):
    case(_name, lambda x, name=_name: getattr(lax, name)(x, 1, reverse=True), arr(4, 8), splits=_name)
case("sort", lambda x: lax.sort(x, dimension=0), arr(4, 8), splits="sort")
case(
    "sort pairs",
    lambda x, y: lax.sort((x, y, -x), dimension=1, num_keys=2),
    idx(3, 4, 8),
    idx(3, 4, 8, seed=5),
    splits="sort",
)
case("top_k", lambda x: lax.top_k(x, 3), arr(4, 8), splits="top_k")
case("approx_max_k", lambda x: lax.approx_max_k(x, 3), arr(4, 8), splits="approx_top_k")

# --- element by element -----------------------------------------------------------------------------------
UNARY = words(
    "abs ceil floor round sign neg exp exp2 expm1 log1p tanh sin cos tan sinh cosh asinh atan logistic erf "
    "erfc square is_finite cbrt digamma lgamma bessel_i0e bessel_i1e"
)
narrow("unary", lambda x: [getattr(lax, n)(x) for n in UNARY], arr(4, 2))
narrow(
    "unary positive",
    lambda x: [f(x) for f in (lax.sqrt, lax.rsqrt, lax.log, lax.acosh)],
    1 + np.abs(arr(4, 2)),
)
narrow("unary small", lambda x: [f(x) for f in (lax.asin, lax.acos, lax.atanh, lax.erf_inv)], arr(4, 2) / 99)
narrow("unary int", lambda x: [lax.clz(x), lax.population_count(x), ~x, x**3], idx(99, 4, 2))
narrow(
    "casts",
    lambda x: [x.astype(d) for d in (jnp.bfloat16, jnp.int32, jnp.float16)] + [lax.reduce_precision(x, 5, 7)],
    arr(4, 2),
)
case("widen", lambda x: x.astype(jnp.float32), arr(4, 2, dtype=jnp.bfloat16), splits="convert_element_type")
narrow(
    "binary",
    lambda x, y: [
        x + y,
        x - y,
        x * y,
        x / y,
        jnp.arctan2(x, y),
        lax.max(x, y),
        lax.min(x, y),
        lax.nextafter(x, y),
        lax.rem(x, y),
    ],
    arr(4, 2),
    arr(4, 2, seed=1),
)
narrow(
    "powers",
    lambda x, y: [
        x**y,
        lax.igamma(x, y),
        lax.igammac(x, y),
        lax.zeta(1 + x, y),
        lax.polygamma(jnp.round(x), y),
        jax.scipy.special.betainc(x, y, x / (1 + x)),
    ],
    1 + np.abs(arr(4, 2)),
    1 + np.abs(arr(4, 2, seed=1)),
)
narrow("compare", lambda x, y: [x < y, x <= y, x > y, x >= y, x == y, x != y], idx(3, 4, 2), idx(3, 4, 2, seed=4))
narrow(
    "bits",
    lambda x, y: [x & y, x | y, x ^ y, x << y, x >> y, lax.shift_right_logical(x, y)],
    idx(9, 4, 2),
    idx(9, 4, 2, seed=4),
)
case("row", lambda x, y: lax.add_p.bind(x, y), arr(4, 8), arr(1, 8))
case("scalars", lambda x: 2.0 * x + 1.0 / x, arr(4, 8), splits="mul add div")
case(
    "clamp",
    lambda x, lo: (lax.clamp(lo, x, 2.0), lax.clamp(-x, x, x)),
    arr(4, 8),
    np.float32(-1),
    splits="clamp",
)
case(
    "select",
    lambda p, x, y: jnp.where(p, x, y),
    arr(4, 8) > 0,
    arr(4, 8),
    arr(4, 8, seed=2),
    splits="select_n",
)
case(
    "select scalar",
    lambda p, x, y: lax.select_n(p, x, y),
    np.array(True),
    arr(4, 8),
    arr(4, 8, seed=2),
    splits="select_n",
)
case(
    "select many",
    lambda p, x, y, z: lax.select_n(p, x, y, z),
    idx(3, 4, 8),
    arr(4, 8),
    arr(4, 8, seed=2),
    arr(4, 8, seed=3),
    splits="select_n",
)
case(
    "complex",
    lambda x, y: [f(lax.complex(x, y)) for f in (lax.real, lax.imag, lax.conj, lax.abs)],
    arr(4, 8),
    arr(4, 8, seed=2),
    splits="complex real imag conj abs",
)
case("bitcast", lambda x: lax.bitcast_convert_type(x, jnp.int32), arr(4, 8), splits="bitcast_convert_type")
case(
    "bitcast narrow",
    lambda x: lax.bitcast_convert_type(x, jnp.uint8),
    arr(4, 8),
    splits="bitcast_convert_type",
)
case(
    "bitcast wide",
    lambda x: lax.bitcast_convert_type(x, jnp.float32),
    idx(200, 4, 8, 4).astype(np.uint8),
    splits="bitcast_convert_type",
)

# --- random -----------------------------------------------------------------------------------------------
for _width in (8, 16, 32):
    narrow(
        f"random bits {_width}",
        lambda k, w=_width: jax.random.bits(k, (4, 3, 8), f"uint{w}"),
        jax.random.key(3),
        splits="random_bits",
    )
narrow(
    "random raw key",
    lambda k: jax.random.normal(k, (4, 8)),
    np.array([1, 2], np.uint32),
    splits="random_bits",
)
narrow("random odd", lambda k: jax.random.bits(k, (4, 1, 6, 2)), jax.random.key(3), splits="random_bits")
narrow(
    "random many keys",
    lambda k: jax.vmap(lambda k: jax.random.bits(k, (3, 4)))(jax.random.split(k, 4)),
    jax.random.key(3),
    splits="random_bits",
)
case(
    "random key grid",
    lambda k: jax.vmap(jax.vmap(lambda k: jax.random.bits(k, (4,))))(jax.random.split(k, (4, 2))),
    jax.random.key(3),
    splits="random_bits",
)
narrow("random rbg", lambda k: jax.random.bits(k, (4, 8)), jax.random.key(3, impl="rbg"))
narrow(
    "random keys",
    lambda k, i: [jax.random.split(jax.random.fold_in(k, i), 4)[1], jax.random.key_data(jax.random.key(i))],
    jax.random.key(3),
    np.uint32(5),
)
narrow(
    "keys moved",
    lambda k: [jnp.where(jnp.arange(4) > 1, k, k[::-1]), k.reshape(2, 2), jnp.concatenate([k, k])],
    jax.random.split(jax.random.key(0), 4),
)
narrow(
    "dropout",
    lambda k, x: jnp.where(jax.random.bernoulli(k, 0.5, x.shape), x, 0),
    jax.random.key(3),
    arr(4, 8),
    splits="random_bits",
)
narrow(
    "threefry",
    lambda a, b, x, y: jax.extend.random.threefry2x32_p.bind(a, b, x, y),
    np.uint32(1),
    np.uint32(2),
    idx(9, 4, 8).astype(np.uint32),
    idx(9, 4, 8).astype(np.uint32),
    splits="threefry2x32",
)

# --- algebra ----------------------------------------------------------------------------------------------
_m = arr(4, 3, 3) + 9 * np.eye(3, dtype=np.float32)
_s = _m + _m.transpose(0, 2, 1)
case("cholesky", lambda a: lax.linalg.cholesky(a), _s, splits="cholesky")
case("lu", lambda a: lax.linalg.lu(a), _m, splits="lu")
case("qr", lambda a: jnp.linalg.qr(a), arr(4, 4, 3), splits="qr")
case(
    "pivots",
    lambda p: lax.linalg.lu_pivots_to_permutation(p, 4),
    idx(4, 4, 4, low=1),
    splits="lu_pivots_to_permutation",
)
case(
    "householder",
    lambda a, t: lax.linalg.householder_product(a, t),
    arr(4, 4, 3),
    arr(4, 3),
    splits="householder_product",
)
case("eigh", lambda a: jnp.linalg.eigh(a)[0], _s, splits="eigh")
case("svd", lambda a: jnp.linalg.svd(a, compute_uv=False), _m, splits="svd")
case(
    "solve",
    lambda a, b: lax.linalg.triangular_solve(a, b, left_side=True, lower=True),
    _m,
    arr(4, 3, 8),
    splits="triangular_solve",
)
case("solve right", lambda a, b: lax.linalg.triangular_solve(a, b), _m, arr(4, 8, 3), splits="triangular_solve")
case(
    "tridiagonal",
    lambda d, b: lax.linalg.tridiagonal_solve(d, d + 9, d, b),
    arr(4, 3),
    arr(4, 3, 2),
    splits="tridiagonal_solve",
)
case("fft", lambda x: jnp.fft.fft(x), arr(4, 8), splits="fft")
case("rfft2", lambda x: jnp.fft.irfft2(jnp.fft.rfft2(x)), arr(4, 6, 8), splits="fft")


SLOW = {
    "powers",
    "unary small",
    "take clip int32",
    "take promise_in_bounds int32",
    "take promise_in_bounds uint8",
}
SLOW |= {f"scatter {n} {m}" for n in ("mul", "min", "max") for m in ("clip", "promise_in_bounds")}
SLOW |= {"random bits 16", "random raw key", "index apart", "random odd"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CASES])
def test_rule(name: str) -> None:
    f, args, splits, mesh = CASES[name]
    counts = check(f, *args, mesh=mesh, only=splits.split())
    for primitive in splits.split():
        assert counts.get(primitive), f"{primitive} has no strategy but the replicated one: {counts}"


def test_a_row_of_a_ragged_dot_is_multiplied_once() -> None:
    f, args, _, _ = CASES["ragged grads"]
    graph = capture(lambda *a: jax.tree.leaves(f(*a)), [jnp.asarray(a) for a in args])
    found = [r for op, r in zip(graph.ops, rules_of(graph), strict=True) if op.name == "ragged_dot_general" and r]
    assert [r.flops for r in found] == [2 * 8 * 4 * 6] * 2
    assert not any(r.whole for r in found)


# --- effects and placement --------------------------------------------------------------------------------


def test_placement_passes() -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("a",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("a"))
    counts = check(lambda x: jax.device_put(lax.with_sharding_constraint(x, sharding)) + 1, arr(4, 8))
    assert counts["sharding_constraint"] >= 8
    assert counts["device_put"] >= 8


def test_prints_once(capfd: pytest.CaptureFixture[str]) -> None:
    def f(x: Any) -> Any:
        jax.debug.print("sum {s}", s=x.sum())
        return x

    check(f, np.ones((4, 8), np.float32), only=["debug_print"])
    jax.effects_barrier()
    assert capfd.readouterr().out.count("sum 32.0") == 2  # the run as a whole, and one of four devices


def test_calls_back_once() -> None:
    seen: list[float] = []

    def f(x: Any) -> Any:
        jax.debug.callback(lambda v: seen.append(float(v)), x.sum())
        return x

    check(f, np.ones((4, 8), np.float32), only=["debug_callback"], mesh=MESH_8)
    jax.effects_barrier()
    assert seen == [32.0, 32.0]
