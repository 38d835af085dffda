"""Every rule under every strategy, against the op run whole; each case names the primitives that must split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harness import MESH_8, check
from jax import lax
from jax.lax import GatherDimensionNumbers, GatherScatterMode, ScatterDimensionNumbers


def arr(*shape: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=shape) * 3
    return x.astype(dtype)


def idx(n: int, *shape: int, low: int = 0, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, n, shape).astype(np.int32)


Case = tuple[Callable[..., Any], tuple[Any, ...], str]

CASES: dict[str, Case] = {}


def case(name: str, f: Callable[..., Any], *args: Any, splits: str = "") -> None:
    """`splits`: the primitives that must have strategies; only they are checked (all ops where it is empty)."""
    assert name not in CASES
    CASES[name] = (f, args, splits)


# --- movers ------------------------------------------------------------------------------------------------------
case("transpose", lambda x: x.transpose(2, 0, 1), arr(4, 8, 2), splits="transpose")
case("broadcast", lambda x: jnp.broadcast_to(x[:, None], (4, 8, 4)), arr(4, 4), splits="broadcast_in_dim")
case("squeeze", lambda x: lax.squeeze(x, (1,)), arr(4, 1, 8), splits="squeeze")
case("expand_dims", lambda x: x[:, None], arr(4, 8), splits="broadcast_in_dim")
case("rev", lambda x: lax.rev(x, (1,)), arr(4, 8), splits="rev")
case("reshape merge", lambda x: x.reshape(32, 2), arr(4, 8, 2), splits="reshape")
case("reshape split", lambda x: x.reshape(4, 2, 4), arr(8, 4), splits="reshape")
case("reshape odd", lambda x: x.reshape(6, 4), arr(4, 6))
case("reshape unit", lambda x: x.reshape(1, 8, 1, 4), arr(8, 4), splits="reshape")
case(
    "reshape int max",
    lambda x: jnp.max(x, 0).reshape(4, 2),
    arr(4, 8, dtype=np.int32),
    splits="reshape reduce_max",
)
case("iota", lambda x: x + lax.broadcasted_iota(jnp.int32, (4, 8), 1), idx(9, 4, 8), splits="iota")
case("iota float", lambda x: x + lax.broadcasted_iota(jnp.float32, (4, 8), 0), arr(4, 8), splits="iota")

# --- cut and paste -------------------------------------------------------------------------------------------------
case("pad zero", lambda x: lax.pad(x, 0.0, ((1, 2, 0), (0, 0, 0))), arr(4, 8), splits="pad")
case("pad value", lambda x, v: lax.pad(x, v, ((1, -1, 2), (0, 0, 0))), arr(4, 8), arr(), splits="pad")
case("pad one", lambda x: lax.pad(x, 1.0, ((0, 0, 1), (0, 0, 0))), arr(4, 8), splits="pad")
case("slice", lambda x: x[:, 1:7:2], arr(4, 8), splits="slice")
case("slice 3", lambda x: x[1:3], arr(4, 8, 4), splits="slice")
case(
    "concatenate", lambda x, y: jnp.concatenate([x, y], 1), arr(4, 8), arr(4, 2, seed=1), splits="concatenate"
)
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

# --- gather --------------------------------------------------------------------------------------------------------
for _mode in ("clip", "fill", "promise_in_bounds"):
    for _dtype in (np.float32, np.int32, np.uint8):
        case(
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

# --- scatter -------------------------------------------------------------------------------------------------------
for _mode in ("clip", "drop", "promise_in_bounds"):
    for _name in ("add", "set", "mul", "min", "max"):
        case(
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
        ScatterDimensionNumbers(
            update_window_dims=(0, 2), inserted_window_dims=(), scatter_dims_to_operand_dims=(1,)
        ),
    ),
    arr(4, 8),
    idx(8, 4, 1),
    arr(4, 4, 3),
    splits="scatter-add",
)


@pytest.mark.parametrize("name", CASES)
def test_rule(name: str) -> None:
    f, args, splits = CASES[name]
    counts = check(f, *args, only=splits.split())
    for primitive in splits.split():
        assert counts.get(primitive), f"{primitive} has no strategy but the replicated one: {counts}"
