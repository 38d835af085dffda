"""Sorting and ranking over a split dim: what the devices find in their pieces is merged, or ranked again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from autosharding.graph import Op
from autosharding.rules.base import Exchange, Rule, Shard, factors_of, rule, sizes_of
from autosharding.rules.joined import gathering, taken
from autosharding.rules.pieces import untouched


def _flops(op: Op, axis: int) -> float:
    a = op.inputs[0]
    return float(prod(a.shape) * max(1, a.shape[axis].bit_length()))


@rule("approx_top_k")
def approximate(op: Op) -> Rule:
    """`i j -> i 1`, `j` whole."""
    a = op.inputs[0]
    axis = op.params["reduction_dimension"] % a.rank
    dims = untouched("d", a.shape, [d != axis for d in range(a.rank)])
    return Rule(
        operands=(dims,),
        results=(dims,) * len(op.outputs),
        sizes=sizes_of((dims, a.shape)),
        flops=_flops(op, axis),
    )


# ---- sorting ---------------------------------------------------------------------------------------------


@rule("sort")
def sort(op: Op) -> Rule:
    """`i j -> i j`, all operands alike: pieces of a split `j` are merged pair by pair; whole where equals may swap."""
    a, axis = op.inputs[0], op.params["dimension"]
    unique = op.params["is_stable"] or op.params["num_keys"] == len(op.inputs)
    dims = untouched("d", a.shape, [unique or d != axis for d in range(a.rank)])
    return Rule(
        operands=(dims,) * len(op.inputs),
        results=(dims,) * len(op.outputs),
        sizes=sizes_of((dims, a.shape)),
        flops=_flops(op, axis),
        exchanges=_swaps,
        run=_run_sort,
    )


def rounds(n: int) -> Iterator[list[tuple[int, int]]]:
    """Disjoint pairs (i, j), i < j, round by round: merging each in turn sorts n places (Knuth 5.2.2, algorithm M)."""
    top = 1 << max(0, (n - 1).bit_length() - 1)
    p = top
    while p and n > 1:
        q, r, d = top, 0, p
        while d:
            yield [(i, i + d) for i in range(n - d) if i & p == r]
            q, r, d = q // 2, p, q - p
        p //= 2


def _swaps(shard: Shard) -> Sequence[Exchange]:
    """A whole piece of each operand in each round, and of the places that make equals different."""
    axes, piece = shard.operands[0].dims[shard.op.params["dimension"]], prod(shard.operand_shape(0))
    widths = [np.dtype(a.aval.dtype).itemsize for a in shard.op.inputs]
    widths += [np.dtype(np.int32).itemsize] if _has_values(shard.op) else []
    parts = prod(shard.mesh[a] for a in axes)
    return [Exchange("collective-permute", axes, piece, w, 3 * piece) for _ in rounds(parts) for w in widths]


def _has_values(op: Op) -> bool:
    """Whether something is sorted besides the keys: then equal keys are different."""
    return op.params["num_keys"] < len(op.inputs)


def _run_sort(shard: Shard, *operands: Any) -> Sequence[Any]:
    """Each device sorts its piece; in each round one of a pair keeps the lower half of both, the other the upper."""
    dim, keys = shard.op.params["dimension"], shard.op.params["num_keys"]
    axes = shard.operands[0].dims[dim]
    if not axes:
        return shard.bind(*operands)
    pieces = list(operands)
    if _has_values(shard.op):
        places = shard.positions(shard.operands[0], shard.op.inputs[0].shape, dim, np.int32)
        pieces.insert(keys, jax.lax.broadcast_in_dim(places, pieces[0].shape, (dim,)))
    n_keys = keys + _has_values(shard.op)
    k, parts, size = shard.place(axes), prod(shard.mesh[a] for a in axes), pieces[0].shape[dim]
    pieces = shard.bind(*pieces, num_keys=n_keys)
    for pairs in rounds(parts):
        paired, upper = np.zeros((2, parts), bool)
        paired[np.ravel(pairs)] = True
        upper[[j for _, j in pairs]] = True
        others = [jax.lax.ppermute(x, axes, [*pairs, *((j, i) for i, j in pairs)]) for x in pieces]
        both = [jax.lax.concatenate(xy, dim) for xy in zip(pieces, others, strict=True)]
        begin = jnp.where(jnp.asarray(upper)[k], size, 0)
        halves = [jax.lax.dynamic_slice_in_dim(x, begin, size, dim) for x in shard.bind(*both, num_keys=n_keys)]
        pieces = [jnp.where(jnp.asarray(paired)[k], half, x) for half, x in zip(halves, pieces, strict=True)]
    return [x for i, x in enumerate(pieces) if i != keys or not _has_values(shard.op)]


# ---- ranking ---------------------------------------------------------------------------------------------


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
