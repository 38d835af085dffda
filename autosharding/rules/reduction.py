"""Reductions over dims: a sum, a maximum of pieces is partial; what no monoid joins is combined inside the op."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from autosharding import _jax
from autosharding.graph import Op
from autosharding.rules.base import Exchange, Rule, Shard, factors_of, rule, sizes_of
from autosharding.rules.joined import collective, gathered, gathering, taken

_MONOIDS = {
    "reduce_sum": "sum",
    "reduce_max": "max",
    "reduce_min": "min",
    "reduce_and": "and",
    "reduce_or": "or",
}


@rule(*_MONOIDS, "reduce_prod", "reduce_xor")
def reduce(op: Op) -> Rule:
    """`i j -> i`, `j` reduced."""
    a = op.inputs[0]
    dims = factors_of("d", a.shape)
    gone = {f"d{d}" for d in op.params["axes"] if a.shape[d] > 1}
    monoid = collective(_MONOIDS.get(op.name), op.outputs[0].dtype)
    kept = tuple(f for d, f in enumerate(dims) if d not in op.params["axes"])
    return Rule(
        operands=(dims,),
        results=(kept,),
        sizes=sizes_of((dims, a.shape)),
        reduced=dict.fromkeys(sorted(gone), monoid) if monoid else {},
        linear=(frozenset({0}),) if monoid == "sum" else (),
        flops=float(prod(a.shape)),
        exchanges=None if monoid else _exchanges,
        run=None if monoid else _run_reduce,
    )


def _gone(op: Op) -> Sequence[int]:
    return op.params["dimensions"] if op.name == "reduce" else op.params["axes"]


def _split_axes(shard: Shard) -> list[str]:
    """The mesh axes over which reduced dims are split, in the order of the dims."""
    return [a for d in sorted(_gone(shard.op)) for a in shard.operands[0].dims[d]]


def _exchanges(shard: Shard) -> Sequence[Exchange]:
    axes = _split_axes(shard)
    found = enumerate(shard.op.outputs)
    return [gathering(shard, axes, prod(shard.result_shape(i)), v.itemsize) for i, v in found] if axes else []


def _run_reduce(shard: Shard, x: Any) -> Sequence[Any]:
    found = shard.bind(x)
    axes = _split_axes(shard)
    return shard.bind(gathered(found[0], axes), axes=(0,)) if axes else found


@rule("argmax", "argmin")
def arg_reduce(op: Op) -> Rule:
    """`i j -> i`: where `j` is split, the places found in the pieces are compared by their values."""
    a = op.inputs[0]
    dims = factors_of("d", a.shape)
    return Rule(
        operands=(dims,),
        results=(tuple(f for d, f in enumerate(dims) if d not in op.params["axes"]),),
        sizes=sizes_of((dims, a.shape)),
        flops=float(prod(a.shape)),
        exchanges=lambda shard: [
            *(gathering(shard, axes, prod(shard.result_shape()), a.aval.dtype.itemsize) for axes in _some(shard)),
            *_exchanges(shard),
        ],
        run=_run_arg_reduce,
    )


def _some(shard: Shard) -> list[list[str]]:
    axes = _split_axes(shard)
    return [axes] if axes else []


def _run_arg_reduce(shard: Shard, x: Any) -> Sequence[Any]:
    (place,) = shard.bind(x)
    axes = _split_axes(shard)
    if not axes:
        return (place,)
    (dim,) = shard.op.params["axes"]
    value = jnp.squeeze(taken(x, jnp.expand_dims(place, dim), dim), dim)
    offset = shard.dim_offset(shard.operands[0], shard.op.inputs[0].shape, dim)
    places = gathered(place + jnp.asarray(offset).astype(place.dtype), axes)
    (best,) = shard.bind(gathered(value, axes), axes=(0,))
    return (taken(places, best[None], 0)[0],)


@rule("reduce")
def custom_reduce(op: Op) -> Rule:
    """`i j, . -> i`, by the user's own function, which must be associative; initial values are scalars."""
    arrays = op.inputs[: len(op.inputs) // 2]
    shape, gone = arrays[0].shape, op.params["dimensions"]
    dims = factors_of("d", shape)
    kept = tuple(f for d, f in enumerate(dims) if d not in gone)
    return Rule(
        operands=(dims,) * len(arrays) + ((),) * len(arrays),
        results=(kept,) * len(op.outputs),
        sizes=sizes_of((dims, shape)),
        flops=float(prod(shape) * len(arrays)),
        exchanges=_exchanges,
        run=_run_custom_reduce,
    )


def _run_custom_reduce(shard: Shard, *operands: Any) -> Sequence[Any]:
    """Fold the pieces without the initial values, fold what all found, and then put the initial values in once."""
    axes = _split_axes(shard)
    if not axes:
        return shard.bind(*operands)
    n, gone = len(operands) // 2, sorted(_gone(shard.op))
    rows = [jnp.moveaxis(x, gone, range(len(gone))) for x in operands[:n]]
    rows = [x.reshape(-1, *x.shape[len(gone) :]) for x in rows]
    found = _folded(shard.op, [gathered(x, axes) for x in _folded(shard.op, rows)])
    return _combined(shard.op, [jnp.broadcast_to(i, x.shape) for i, x in zip(operands[n:], found, strict=True)], found)


def _folded(op: Op, rows: Sequence[Any]) -> list[Any]:
    """Combine the leading dim away, neighbours first, so that the order is kept."""
    while (n := rows[0].shape[0]) > 1:
        pairs = _combined(op, [x[0 : n - 1 : 2] for x in rows], [x[1::2] for x in rows])
        rows = [jnp.concatenate([p, x[n - 1 :]]) if n % 2 else p for p, x in zip(pairs, rows, strict=True)]
    return [x[0] for x in rows]


def _combined(op: Op, left: Sequence[Any], right: Sequence[Any]) -> list[Any]:
    """The user's function of scalars, element by element."""
    jaxpr, consts = _jax.open_jaxpr(op.params["jaxpr"])

    def scalars(*values: Any) -> list[Any]:
        return _jax.evaluate(jaxpr, [*consts, *op.params.get("consts", ())], *values)

    for _ in range(left[0].ndim):
        scalars = jax.vmap(scalars)
    return list(scalars(*left, *right))


# ---- along a dim, keeping it -----------------------------------------------------------------------------

_JOINS = {
    "cumsum": jax.lax.add,
    "cumprod": jax.lax.mul,
    "cummax": jax.lax.max,
    "cummin": jax.lax.min,
    "cumlogsumexp": jnp.logaddexp,
}


@rule(*_JOINS)
def cumulative(op: Op) -> Rule:
    """`i j -> i j`: where `j` is split, each device adds what the devices before it came to."""
    a = op.inputs[0]
    dims = factors_of("d", a.shape)
    return Rule(
        operands=(dims,),
        results=(dims,),
        sizes=sizes_of((dims, a.shape)),
        linear=(frozenset({0}),) if op.name == "cumsum" else (),
        flops=float(prod(a.shape)),
        exchanges=_totals,
        run=_run_cumulative,
    )


def _totals(shard: Shard) -> Sequence[Exchange]:
    d = shard.op.params["axis"]
    axes, local = shard.operands[0].dims[d], shard.operand_shape(0)
    return [gathering(shard, axes, prod(local) // local[d], shard.op.outputs[0].itemsize)] if axes else []


def _run_cumulative(shard: Shard, x: Any) -> Sequence[Any]:
    (mine,) = shard.bind(x)
    d, reverse = shard.op.params["axis"], shard.op.params["reverse"]
    axes = shard.operands[0].dims[d]
    if not axes:
        return (mine,)
    last = 0 if reverse else mine.shape[d] - 1
    totals = jax.lax.all_gather(jax.lax.slice_in_dim(mine, last, last + 1, axis=d), axes, axis=d, tiled=True)
    (sums,) = shard.bind(totals)
    k, final = shard.index(f"d{d}"), totals.shape[d] - 1
    edge = final if reverse else 0
    before = jax.lax.dynamic_slice_in_dim(sums, jnp.clip(k + 1 if reverse else k - 1, 0, final), 1, axis=d)
    return (jnp.where(k == edge, mine, _JOINS[shard.op.name](jnp.broadcast_to(before, mine.shape), mine)),)
