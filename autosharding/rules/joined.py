"""Local, then combined: what devices find in their own pieces is gathered, and each combines it for itself."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from autosharding.rules.base import Exchange, Shard

_OF_BOOLEANS = {"max": "or", "min": "and", "or": "or", "and": "and"}


def collective(monoid: str | None, dtype: str) -> str | None:
    """The monoid as collectives have it: the max of booleans is their `or`; None where there is no such collective.

    There is none for the max of complex numbers, nor for bitwise `and`/`or` of integers.
    """
    if dtype == "bool":
        return _OF_BOOLEANS.get(monoid or "")
    known = ("sum",) if dtype.startswith("c") else ("sum", "max", "min")
    return monoid if monoid in known else None


def gathered(x: Any, axes: Sequence[str]) -> Any:
    """What every device found, along a new leading dim."""
    return jax.lax.all_gather(x, tuple(axes), axis=0, tiled=False)


def gathering(shard: Shard, axes: Sequence[str], found: int, itemsize: int) -> Exchange:
    """The all-gather of `found` elements from each device along these axes."""
    total = found * prod(shard.mesh[a] for a in axes)
    return Exchange("all-gather", tuple(axes), total, itemsize, total)


def taken(x: Any, at: Any, dim: int) -> Any:
    """The elements of `x` at positions `at` along `dim`; both have all other dims alike."""
    return jnp.take_along_axis(x, at, axis=dim, mode="promise_in_bounds")
