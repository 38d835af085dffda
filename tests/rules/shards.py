"""Numpy's own idea of a sharded array: cut as a spec says, joined again. Shares no code with executor or reshard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from autosharding.spec import Spec

Places = list[dict[str, int]]


def is_key(x: Any) -> bool:
    """Whether an array holds typed PRNG keys."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def wire(x: Any) -> Any:
    """Typed keys as their words, which numpy can hold."""
    return jax.random.key_data(x) if is_key(x) else x


def unwire(x: Any, like: Any) -> Any:
    """The inverse of `wire`; `like` is an array or abstract value of the type wanted."""
    return jax.random.wrap_key_data(x, impl=jax.random.key_impl(like)) if is_key(like) else x


def places(mesh: Mapping[str, int]) -> Places:
    """Every device's position, the last axis fastest."""
    return [dict(zip(mesh, place, strict=True)) for place in product(*map(range, mesh.values()))]


def _index(axes: Sequence[str], at: Mapping[str, int], mesh: Mapping[str, int]) -> int:
    index = 0
    for a in axes:
        index = index * mesh[a] + at[a]
    return index


def piece(spec: Spec, shape: Sequence[int], at: Mapping[str, int], mesh: Mapping[str, int]) -> tuple[slice, ...]:
    """Which part of the whole array the device at `at` holds."""
    sizes = [n // prod(mesh[a] for a in axes) for axes, n in zip(spec.dims, shape, strict=False)]
    starts = [_index(axes, at, mesh) * n for axes, n in zip(spec.dims, sizes, strict=True)]
    return tuple(slice(s, s + n) for s, n in zip(starts, sizes, strict=True))


def cut(x: Any, spec: Spec, mesh: Mapping[str, int]) -> list[np.ndarray]:
    """What each device holds, by place."""
    whole = np.asarray(wire(x))
    held = terms(whole, prod(mesh[a] for a in spec.partial), spec.monoid)
    return [held[_index(spec.partial, at, mesh)][piece(spec, x.shape, at, mesh)] for at in places(mesh)]


AMPLIFIED = 3
"""How much larger the terms of `terms` are, in all, than their sum: so much more may be lost in rounding."""


def terms(x: np.ndarray, n: int, monoid: str) -> list[np.ndarray]:
    """`n` arrays whose sum (max, ...) is `x`, without rounding: doubles and negatives dealt out at random."""
    if n == 1:
        return [x]
    rng = np.random.default_rng(0)
    owner = rng.integers(0, n, x.shape)
    if monoid == "sum":
        with np.errstate(all="ignore"):
            double, negative = (x + x).astype(x.dtype), (-x).astype(x.dtype)
            other = (owner + rng.integers(1, n, x.shape)) % n
            zero = np.zeros_like(x)
            found = [np.where(owner == i, double, np.where(other == i, negative, zero)) for i in range(n)]
        return [np.where(_unsplittable(x), x if i == 0 else zero, f) for i, f in enumerate(found)]
    rest = {"max": _below, "min": _above, "or": np.zeros_like, "and": np.ones_like}[monoid](x)
    return [np.where(owner == i, x, rest) for i in range(n)]


def _unsplittable(x: np.ndarray) -> np.ndarray:
    """Elements whose double less themselves is something else: infinities, NaN, the largest numbers."""
    if x.dtype.kind in "iub":
        return np.zeros(x.shape, bool)
    with np.errstate(all="ignore"):
        return ~np.isfinite(x + x)


def _below(x: np.ndarray) -> np.ndarray:
    if x.dtype == bool:
        return np.zeros_like(x)
    if x.dtype.kind in "iu":
        return np.where(x > np.iinfo(x.dtype).min, x - np.ones_like(x), x)
    return x - np.ones_like(x)


def _above(x: np.ndarray) -> np.ndarray:
    if x.dtype == bool:
        return np.ones_like(x)
    if x.dtype.kind in "iu":
        return np.where(x < np.iinfo(x.dtype).max, x + np.ones_like(x), x)
    return x + np.ones_like(x)


_JOIN = {"sum": np.add, "max": np.maximum, "min": np.minimum, "or": np.logical_or, "and": np.logical_and}


def join(pieces: Sequence[np.ndarray], spec: Spec, shape: Sequence[int], mesh: Mapping[str, int]) -> np.ndarray:
    """The whole value of the devices' pieces; devices that should hold the same must hold the same."""
    whole = np.zeros((*shape, *pieces[0].shape[len(shape) :]), pieces[0].dtype)
    held: dict[tuple[Any, ...], np.ndarray] = {}
    for p, at in zip(pieces, places(mesh), strict=True):
        where, term = piece(spec, shape, at, mesh), _index(spec.partial, at, mesh)
        key = (str(where), term)
        if key in held:
            assert held[key].tobytes() == p.tobytes(), f"replicas differ under {spec}: {held[key]} and {p}"
            continue
        with np.errstate(all="ignore"):
            whole[where] = p if term == 0 else _JOIN[spec.monoid](whole[where], p)
        held[key] = p
    return whole


def compare(got: np.ndarray, want: np.ndarray, tolerance: float, what: str, *, of_sums: bool = False) -> None:
    """Exact for integers and booleans, else within `tolerance`, absolute in units of the largest element.

    `of_sums`: the result of partial sums, among which an infinity may meet its opposite: then NaN is as good as it.
    """
    assert got.shape == want.shape, f"{got.shape} is not {want.shape} for {what}"
    assert got.dtype == want.dtype, f"{got.dtype} is not {want.dtype} for {what}"
    if want.dtype.kind in "iub":
        np.testing.assert_array_equal(got, want, err_msg=what)
        return
    if want.dtype.kind not in "fc" or want.dtype.itemsize == 2:
        got, want = got.astype(np.float32), want.astype(np.float32)
    with np.errstate(all="ignore"):
        finite = np.abs(want[np.isfinite(want)])
        scale = max(1.0, float(finite.max())) if finite.size else 1.0
        if of_sums:
            got = np.where(np.isfinite(want) | np.isfinite(got), got, want)
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * scale, err_msg=what)
