"""Gather and the scatters, in all their dimension numbers.

Four kinds of dims: index batch dims (`n`, a factor of indices and result), operand batching dims (`b`, of all
three), window dims taken whole (`w`), and looked-up dims, one element at a time (`v`). Where `v` is split
each device looks up what is its own: a gather then leaves partial sums, a scatter just skips what is
another's. Where the index batch of a scatter-add is split, each device adds its own updates to a partial
operand; where the updates are compared, each device's result is one of those that are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import GatherScatterMode

from autosharding.graph import Op
from autosharding.rules.base import Dims, Exchange, Rule, Shard, factors_of, rule, sizes_of
from autosharding.rules.joined import collective, gathered, gathering


@dataclass(frozen=True, slots=True)
class Lookup:
    """The dimension numbers of a gather or a scatter, in one vocabulary.

    Attributes:
        operand: the operand's factors.
        indices: the indices' factors; the last dim, the index vector, has none.
        window: the window's side (a gather's result, a scatter's updates): its factors.
        batch: positions of the index batch dims in the window's side.
        looked_up: (position in the index vector, operand dim) of the dims looked up one element at a time.
    """

    operand: Dims
    indices: Dims
    window: Dims
    batch: tuple[int, ...]
    looked_up: tuple[tuple[int, int], ...]


def _lookup(
    shape: Sequence[int],
    index_shape: Sequence[int],
    window_rank: int,
    window_dims: Sequence[int],
    dropped: Sequence[int],
    indexed: Sequence[int],
    batching: Mapping[int, int],
    slice_sizes: Sequence[int],
) -> Lookup:
    """Factors from dimension numbers that gather and scatter share."""
    indices = list(factors_of("n", index_shape[:-1]))
    for operand_dim, index_dim in batching.items():
        indices[index_dim] = (f"b{operand_dim}",) if shape[operand_dim] > 1 else ()
    operand: list[tuple[str, ...]] = []
    looked_up = []
    for d, n in enumerate(shape):
        if n == 1:
            operand.append(())
        elif d in batching:
            operand.append((f"b{d}",))
        elif slice_sizes[d] == n:
            operand.append((f"w{d}",))
        elif slice_sizes[d] == 1 and d in indexed:
            operand.append((f"v{d}",))
            looked_up.append((list(indexed).index(d), d))
        else:
            operand.append(())
    offsets = iter(d for d in range(len(shape)) if d not in dropped and d not in batching)
    batch = tuple(d for d in range(window_rank) if d not in window_dims)
    batch_factors = iter(indices)
    window = []
    for d in range(window_rank):
        if d in batch:
            window.append(next(batch_factors))
        else:
            source = operand[next(offsets)]
            window.append(source if source and source[0].startswith("w") else ())
    return Lookup(tuple(operand), (*indices, ()), tuple(window), batch, tuple(looked_up))


def _gather_lookup(op: Op) -> Lookup:
    a, indices = op.inputs
    d = op.params["dimension_numbers"]
    batching = dict(zip(d.operand_batching_dims, d.start_indices_batching_dims, strict=True))
    return _lookup(
        a.shape,
        indices.shape,
        op.outputs[0].rank,
        d.offset_dims,
        d.collapsed_slice_dims,
        d.start_index_map,
        batching,
        op.params["slice_sizes"],
    )


@rule("gather")
def gather(op: Op) -> Rule:
    """`v w, n 1 -> n w`, `v` summed: an embedding lookup."""
    a, out = op.inputs[0], op.outputs[0]
    at = _gather_lookup(op)
    sizes = sizes_of((at.operand, a.shape), (at.indices, op.inputs[1].shape), (at.window, out.shape))
    passes = _fills_alike(op)
    return Rule(
        operands=(at.operand, at.indices),
        results=(at.window,),
        sizes=sizes,
        reduced={f: "sum" for f in sizes if f.startswith("v")},
        linear=(frozenset({0}),) if passes else (),
        moves_data=passes,
        run=_run_gather,
    )


def _fills_alike(op: Op) -> bool:
    """Whether gathering each term of a sum gives terms of the result: what is filled in must add up."""
    if op.params["mode"] != GatherScatterMode.FILL_OR_DROP:
        return True
    fill = _fill_value(op)
    return bool(fill == 0 or fill != fill)  # nothing, or NaN: many NaNs make one


def _fill_value(op: Op) -> Any:
    """What a gather in fill mode puts where the index is out of bounds, as JAX chooses it."""
    given = op.params["fill_value"]
    if given is not None:
        return given
    dtype = op.outputs[0].aval.dtype
    if jnp.issubdtype(dtype, jnp.inexact):
        return np.nan
    if jnp.issubdtype(dtype, jnp.signedinteger):
        return jnp.iinfo(dtype).min
    return jnp.iinfo(dtype).max if jnp.issubdtype(dtype, jnp.unsignedinteger) else 1


def _run_gather(shard: Shard, operand: Any, indices: Any) -> Sequence[Any]:
    """Local slice sizes; where a looked-up dim is split, only what is this device's own, zeros elsewhere."""
    local = shard.operand_shape(0)
    sizes = tuple(
        local[d] if n == shard.op.inputs[0].shape[d] else n for d, n in enumerate(shard.op.params["slice_sizes"])
    )
    at = _gather_lookup(shard.op)
    split = [(i, d) for i, d in at.looked_up if shard.operands[0].dims[d]]
    starts, limits = _as_signed(indices, shard.op.inputs[0].shape), _limits(shard)
    if not split:
        if shard.op.params["mode"] == GatherScatterMode.CLIP and prod(indices.shape[:-1]) == 1:
            indices = jnp.clip(starts, 0, limits)  # as XLA does, but before: see `pieces._run_dynamic_slice`
        return shard.bind(operand, indices, slice_sizes=sizes)
    inside = jnp.all((starts >= 0) & (starts <= limits), axis=-1)
    starts = jnp.clip(starts, 0, limits)
    starts, mine = _mine(shard, starts, split)
    (found,) = shard.bind(
        operand,
        starts,
        slice_sizes=sizes,
        mode=GatherScatterMode.PROMISE_IN_BOUNDS,
        fill_value=None,
        indices_are_sorted=False,
    )
    zero = jnp.zeros_like(found)
    mine = jax.lax.broadcast_in_dim(mine, found.shape, at.batch)
    result = jnp.where(mine, found, zero)
    if shard.op.params["mode"] == GatherScatterMode.FILL_OR_DROP:
        axes = [a for _, d in split for a in shard.operands[0].dims[d]]
        fill = jnp.full_like(found, _fill_value(shard.op))
        filled = jnp.where(shard.place(axes) == 0, fill, zero)  # counted once
        result = jnp.where(jax.lax.broadcast_in_dim(inside, found.shape, at.batch), result, filled)
    return (result,)


def _as_signed(indices: Any, shape: Sequence[int]) -> Any:
    """Indices in a signed type that holds every position; too large ones stay too large."""
    unsigned = jnp.issubdtype(indices.dtype, jnp.unsignedinteger)
    if unsigned:
        indices = jnp.minimum(indices, min(max(shape), int(jnp.iinfo(indices.dtype).max)))
    return indices.astype(jnp.int32) if unsigned or indices.dtype.itemsize < 4 else indices


def _limits(shard: Shard) -> np.ndarray:
    """The largest start of each component of a gather's index vector."""
    d, sizes, shape = (
        shard.op.params["dimension_numbers"],
        shard.op.params["slice_sizes"],
        shard.op.inputs[0].shape,
    )
    return np.array([shape[k] - sizes[k] for k in d.start_index_map], np.int32)


def _mine(shard: Shard, starts: Any, split: Sequence[tuple[int, int]]) -> tuple[Any, Any]:
    """(local starts, whether the element is this device's) for the split looked-up dims."""
    spec, shape, local = shard.operands[0], shard.op.inputs[0].shape, shard.operand_shape(0)
    held = dict(split)
    everything = jnp.iinfo(starts.dtype)
    offsets, low, high = [], [], []
    for i in range(starts.shape[-1]):
        d = held.get(i)
        offsets.append(0 if d is None else shard.dim_offset(spec, shape, d))
        low.append(everything.min if d is None else 0)
        high.append(everything.max if d is None else local[d] - 1)
    starts = starts - jnp.stack([jnp.asarray(o, starts.dtype) for o in offsets])
    mine = (starts >= np.array(low, starts.dtype)) & (starts <= np.array(high, starts.dtype))
    return starts, jnp.all(mine, axis=-1)


def _scatter_lookup(op: Op) -> Lookup:
    a, indices, updates = op.inputs
    d = op.params["dimension_numbers"]
    batching = dict(zip(d.operand_batching_dims, d.scatter_indices_batching_dims, strict=True))
    return _lookup(
        a.shape,
        indices.shape,
        updates.rank,
        d.update_window_dims,
        d.inserted_window_dims,
        d.scatter_dims_to_operand_dims,
        batching,
        _scatter_windows(op, updates.shape),
    )


_MONOIDS = {"scatter-add": "sum", "scatter-sub": "sum", "scatter-min": "min", "scatter-max": "max"}


@rule("scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max")
def scatter(op: Op) -> Rule:
    """`v w, n 1, n w -> v w`, `n` reduced: for sums on top of a partial operand; whole where the last update counts."""
    a, indices, updates = op.inputs
    at = _scatter_lookup(op)
    sizes = sizes_of((at.operand, a.shape), (at.indices, indices.shape), (at.window, updates.shape))
    batch = [f for f in sizes if f.startswith("n")]
    monoid = collective(_MONOIDS.get(op.name), op.outputs[0].dtype)
    sums = monoid == "sum"
    return Rule(
        operands=(at.operand, at.indices, at.window),
        results=(at.operand,),
        sizes=sizes,
        reduced=dict.fromkeys(batch, monoid) if monoid else {},
        whole=frozenset() if monoid or op.name == "scatter-mul" else frozenset(batch),
        linear=(frozenset({0, 2}),) if sums or op.name == "scatter" else (),
        added=frozenset({0}) if sums else frozenset(),
        flops=float(prod(updates.shape)),
        exchanges=_products if op.name == "scatter-mul" else None,
        run=_run_scatter,
    )


def _batch_axes(shard: Shard) -> list[str]:
    """The mesh axes over which the index batch of a scatter is split."""
    return [a for f, axes in shard.factors.items() if f.startswith("n") for a in axes]


def _products(shard: Shard) -> Sequence[Exchange]:
    axes = _batch_axes(shard)
    return [gathering(shard, axes, prod(shard.result_shape()), shard.op.outputs[0].itemsize)] if axes else []


def _run_scatter(shard: Shard, operand: Any, indices: Any, updates: Any) -> Sequence[Any]:
    """Products of a split index batch are made on top of ones, gathered and multiplied with the operand."""
    axes = _batch_axes(shard) if shard.op.name == "scatter-mul" else []
    if not axes:
        return _scattered(shard, operand, indices, updates)
    (found,) = _scattered(shard, jnp.ones_like(operand), indices, updates)
    return (reduce(jax.lax.mul, [operand, *gathered(found, axes)]),)


def _scattered(shard: Shard, operand: Any, indices: Any, updates: Any) -> Sequence[Any]:
    """Where a looked-up dim is split, what is another device's is sent out of bounds, where it is dropped."""
    at = _scatter_lookup(shard.op)
    split = [(i, d) for i, d in at.looked_up if shard.operands[0].dims[d]]
    if not split:
        return shard.bind(operand, indices, updates)
    shape = shard.op.inputs[0].shape
    starts = _as_signed(indices, shape)
    mode = shard.op.params["mode"]
    if mode == GatherScatterMode.CLIP:
        starts = jnp.clip(starts, 0, _scatter_limits(shard))
    starts, mine = _mine(shard, starts, split)
    if prod(indices.shape[:-1]) == 1:
        starts, updates = _nowhere_else(shard, operand, starts, updates, mine.reshape(()))
    else:
        starts = jnp.where(mine[..., None], starts, max(shape))
    return shard.bind(operand, starts, updates, mode=GatherScatterMode.FILL_OR_DROP, indices_are_sorted=False)


def _nowhere_else(shard: Shard, operand: Any, starts: Any, updates: Any, mine: Any) -> tuple[Any, Any]:
    """A single update that is another device's: in bounds, and changing nothing.

    XLA:CPU turns a scatter of one index into a dynamic slice and its update; out of bounds, on an operand that is
    itself a dynamic slice (a replicated array cut for this op), it reads the old values elsewhere (jaxlib 0.10.2).
    """
    d, name = shard.op.params["dimension_numbers"], shard.op.name
    starts = jnp.where(mine, starts, jnp.where(_in_window(shard), starts, 0))
    if name in ("scatter-add", "scatter-sub", "scatter-mul"):
        unchanged = jnp.full_like(updates, 1 if name == "scatter-mul" else 0)
    else:
        numbers = jax.lax.GatherDimensionNumbers(
            offset_dims=d.update_window_dims,
            collapsed_slice_dims=d.inserted_window_dims,
            start_index_map=d.scatter_dims_to_operand_dims,
            operand_batching_dims=d.operand_batching_dims,
            start_indices_batching_dims=d.scatter_indices_batching_dims,
        )
        sizes = _scatter_windows(shard.op, updates.shape)
        unchanged = jax.lax.gather(operand, starts, numbers, sizes, mode=GatherScatterMode.CLIP)
    return starts, jnp.where(mine, updates, unchanged)


def _in_window(shard: Shard) -> np.ndarray:
    """For each component of the index vector whether its dim is whole on every device."""
    indexed = shard.op.params["dimension_numbers"].scatter_dims_to_operand_dims
    return np.array([not shard.operands[0].dims[k] for k in indexed])


def _scatter_windows(op: Op, updates: Sequence[int]) -> tuple[int, ...]:
    """Elements of a window along each dim of the operand, given the shape of the updates."""
    d, a = op.params["dimension_numbers"], op.inputs[0]
    windows = iter(updates[k] for k in d.update_window_dims)
    single = {*d.inserted_window_dims, *d.operand_batching_dims}
    return tuple(1 if k in single else next(windows) for k in range(a.rank))


def _scatter_limits(shard: Shard) -> np.ndarray:
    d, (a, _, updates) = shard.op.params["dimension_numbers"], shard.op.inputs
    skipped = (*d.inserted_window_dims, *d.operand_batching_dims)
    kept = [k for k in range(a.rank) if k not in skipped]
    sizes = dict(zip(kept, (updates.shape[u] for u in d.update_window_dims), strict=True))
    return np.array([a.shape[k] - sizes.get(k, 1) for k in d.scatter_dims_to_operand_dims], np.int32)
