"""JAX's harnesses: which there are, what they are called with, why JAX itself cannot run some."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

DEVICE = "cpu"


@cache
def harnesses() -> tuple[Any, ...]:
    """Every harness, in JAX's order; their module defines absl flags when it is imported, hence here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from jax._src.internal_test_util import test_harnesses  # noqa: PLC0415

    return tuple(test_harnesses.all_harnesses)


def groups() -> dict[str, list[Any]]:
    """Group name -> its harnesses, both in JAX's order."""
    found: dict[str, list[Any]] = {}
    for h in harnesses():
        found.setdefault(h.group_name, []).append(h)
    return found


def spread(count: int) -> list[Any]:
    """At least `count` harnesses, the same ones every time: of each group as many, evenly spaced in it."""
    by_group = groups()
    each = next(n for n in range(1, len(harnesses()) + 1) if sum(min(n, len(g)) for g in by_group.values()) >= count)
    return [h for g in by_group.values() for h in evenly_spaced(g, each)]


def evenly_spaced(items: Sequence[Any], count: int) -> list[Any]:
    """`count` items from the first to the last, or all."""
    if count >= len(items):
        return list(items)
    return [items[round(i * (len(items) - 1) / max(1, count - 1))] for i in range(count)]


def unsupported(harness: Any) -> str | None:
    """JAX's own reason why the harness does not run on this device; None where it does."""
    if harness.filter(DEVICE):
        return None
    limits = [x for x in harness.jax_unimplemented if x.filter(device=DEVICE, dtype=harness.dtype)]
    return "; ".join(x.description for x in limits)


def arguments(harness: Any, seed: int) -> list[Any]:
    """The arrays and numbers that the harness is called with."""
    return list(harness.dyn_args_maker(np.random.RandomState(seed)))
