"""Contractions: `dot_general` and its ragged form."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from autosharding.graph import Op
from autosharding.rules.base import Rule, Shard, adds_up, rule, sizes_of
from autosharding.rules.notation import Dim, Dims


@rule("dot_general")
def dot_general(op: Op) -> Rule:
    """Batch dims `b`, contracted dims `k` (summed), free dims `i` of the left and `j` of the right side."""
    lhs, rhs = op.inputs
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = op.params["dimension_numbers"]
    left = [""] * lhs.rank
    right = [""] * rhs.rank
    for n, (i, j) in enumerate(zip(lhs_batch, rhs_batch, strict=True)):
        left[i] = right[j] = f"b{n}"
    for n, (i, j) in enumerate(zip(lhs_contract, rhs_contract, strict=True)):
        left[i] = right[j] = f"k{n}"
    free_left = [d for d in range(lhs.rank) if not left[d]]
    free_right = [d for d in range(rhs.rank) if not right[d]]
    for n, d in enumerate(free_left):
        left[d] = f"i{n}"
    for n, d in enumerate(free_right):
        right[d] = f"j{n}"
    out = [left[d] for d in lhs_batch] + [left[d] for d in free_left] + [right[d] for d in free_right]
    sizes = dict(zip(left, lhs.shape, strict=True)) | dict(zip(right, rhs.shape, strict=True))
    return Rule(
        operands=(tuple((f,) for f in left), tuple((f,) for f in right)),
        results=(tuple((f,) for f in out),),
        sizes=sizes,
        reduced={f: "sum" for f in sizes if f.startswith("k")},
        linear=tuple(frozenset({i}) for i in (0, 1) if adds_up(op, i)),
        flops=2.0 * prod(sizes.values()),
    )


@rule("ragged_dot_general")
def ragged_dot_general(op: Op) -> Rule:
    """As `dot_general`; a piece of the ragged dim has its own group sizes, a piece of the groups its own rows.

    The result is `g? b i j`: a group dim in front where the ragged dim is contracted. Groups of each batch element are
    not split, for their rows begin elsewhere in each; nor is a ragged batch dim.
    """
    lhs, rhs, groups = op.inputs[:3]
    numbers = op.params["ragged_dot_dimension_numbers"]
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = numbers.dot_dimension_numbers
    left: list[Dim] = [(f"i{d}",) for d in range(lhs.rank)]
    right: list[Dim] = [(f"j{d}",) for d in range(rhs.rank)]
    for d in numbers.rhs_group_dimensions:
        right[d] = (_GROUP,)
    for kind, pairs in (
        ("b", zip(lhs_batch, rhs_batch, strict=True)),
        ("k", zip(lhs_contract, rhs_contract, strict=True)),
    ):
        for n, (i, j) in enumerate(pairs):
            left[i] = right[j] = (f"{kind}{n}",)
    ragged = numbers.lhs_ragged_dimensions[0]
    free_left = [left[d] for d in range(lhs.rank) if d not in (*lhs_contract, *lhs_batch)]
    skipped = (*rhs_contract, *rhs_batch, *numbers.rhs_group_dimensions)
    free_right = [right[d] for d in range(rhs.rank) if d not in skipped]
    front: list[Dim] = [(_GROUP,)] if ragged in lhs_contract else []
    sizes = sizes_of((tuple(left), lhs.shape), (tuple(right), rhs.shape)) | {_GROUP: groups.shape[-1]}
    # group sizes per batch element come with the batch dims in front
    batch = [left[d] for d in lhs_batch]
    sized: Dims = (*(batch + free_left)[: groups.rank - 1], ()) if groups.rank > 1 else ((),) * groups.rank
    held = {_GROUP} if groups.rank > 1 else set()
    held |= set(left[ragged]) if ragged in lhs_batch else set()
    reduced = {f for f in sizes if f.startswith("k")} | (set() if front else {_GROUP})
    return Rule(
        operands=(tuple(left), tuple(right), sized, *(((),) * a.rank for a in op.inputs[3:])),
        results=((*front, *batch, *free_left, *free_right),),
        sizes=sizes,
        reduced={f: "sum" for f in sizes if f in reduced - held},
        whole=frozenset(held),
        linear=tuple(frozenset({i}) for i in (0, 1) if adds_up(op, i)),
        flops=2.0 * prod(n for f, n in sizes.items() if f != _GROUP),  # a row is of one group
        run=_run_ragged,
    )


_GROUP = "g"


def _run_ragged(shard: Shard, lhs: Any, rhs: Any, sizes: Any, *rest: Any) -> Sequence[Any]:
    """The rows of this device's groups are brought to the front, and what comes of them back to their place."""
    numbers = shard.op.params["ragged_dot_dimension_numbers"]
    (lhs_contract, rhs_contract), _ = numbers.dot_dimension_numbers
    dim = numbers.lhs_ragged_dimensions[0]
    (ragged,) = shard.rule.operands[0][dim]
    if shard.axes(ragged):
        sizes = _sizes_inside(sizes, shard.index(ragged), shard.local_size(ragged))
    if not shard.axes(_GROUP):
        return shard.bind(lhs, rhs, sizes, *rest)
    n = shard.local_size(_GROUP)
    first = shard.index(_GROUP) * n
    start = jnp.sum(jnp.where(jnp.arange(sizes.shape[0]) < first, sizes, 0))
    own = jax.lax.dynamic_slice_in_dim(sizes, first, n)
    lhs = jnp.roll(lhs, -start, dim)
    if dim in lhs_contract:
        return shard.bind(lhs, jnp.roll(rhs, -start, rhs_contract[lhs_contract.index(dim)]), own, *rest)
    (out,) = shard.bind(lhs, rhs, own, *rest)
    at = shard.rule.results[0].index((ragged,))
    rows = jax.lax.broadcasted_iota(sizes.dtype, out.shape, at)
    return (jnp.roll(jnp.where(rows < jnp.sum(own), out, 0), start, at),)


def _sizes_inside(sizes: Any, piece: Any, length: int) -> Any:
    """How much of each group lies in one of the pieces, of this length, of the ragged dim."""
    ends = jnp.cumsum(sizes.astype(jnp.int32), axis=-1) - piece * length
    return jnp.diff(jnp.clip(ends, 0, length), axis=-1, prepend=0).astype(sizes.dtype)
