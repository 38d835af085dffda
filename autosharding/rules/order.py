"""Sorting and ranking: a sorted dim stays whole; the best of a split dim are the best of what the devices found."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from autosharding.graph import Op
from autosharding.rules.base import Exchange, Rule, Shard, factors_of, rule, sizes_of
from autosharding.rules.joined import gathering, taken
from autosharding.rules.pieces import untouched

_DIM = {"sort": "dimension", "approx_top_k": "reduction_dimension"}


def _flops(op: Op, axis: int) -> float:
    a = op.inputs[0]
    return float(prod(a.shape) * max(1, a.shape[axis].bit_length()))


@rule(*_DIM)
def ordered(op: Op) -> Rule:
    """`i j -> i j`, `j` whole; every operand and result alike."""
    a = op.inputs[0]
    axis = op.params[_DIM[op.name]] % a.rank
    dims = untouched("d", a.shape, [d != axis for d in range(a.rank)])
    return Rule(
        operands=(dims,) * len(op.inputs),
        results=(dims,) * len(op.outputs),
        sizes=sizes_of((dims, a.shape)),
        flops=_flops(op, axis),
    )


def _axis(op: Op) -> int:
    return op.params.get("axis", -1) % op.inputs[0].rank


@rule("top_k")
def top_k(op: Op) -> Rule:
    """`i j -> i 1`: where `j` is split, the best of each piece are ranked again."""
    a, axis = op.inputs[0], _axis(op)
    dims = factors_of("d", a.shape)
    kept = tuple(() if d == axis else f for d, f in enumerate(dims))
    return Rule(
        operands=(dims,),
        results=(kept,) * len(op.outputs),
        sizes=sizes_of((dims, a.shape)),
        flops=_flops(op, axis),
        exchanges=_exchanges,
        run=_run_top_k,
    )


def _kept(shard: Shard) -> int:
    """How many of its own a device may have among the best."""
    return min(shard.op.params["k"], shard.operand_shape(0)[_axis(shard.op)])


def _exchanges(shard: Shard) -> Sequence[Exchange]:
    d = _axis(shard.op)
    axes, local = shard.operands[0].dims[d], shard.operand_shape(0)
    found = prod(local) // local[d] * _kept(shard)
    return [gathering(shard, axes, found, v.itemsize) for v in shard.op.outputs] if axes else []


def _run_top_k(shard: Shard, x: Any) -> Sequence[Any]:
    """Of equals the first is taken: pieces stand in order, and so do equals inside a piece."""
    d = _axis(shard.op)
    axes = shard.operands[0].dims[d]
    if not axes:
        return shard.bind(x)
    values, places = shard.bind(x, k=_kept(shard))
    offset = shard.dim_offset(shard.operands[0], shard.op.inputs[0].shape, d)
    places = places + jnp.asarray(offset).astype(places.dtype)
    values, places = (jax.lax.all_gather(v, axes, axis=d, tiled=True) for v in (values, places))
    best, at = shard.bind(values)
    return best, taken(places, at, d)
