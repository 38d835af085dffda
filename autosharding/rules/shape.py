"""Operators that move data without computing: broadcast, reshape, transpose, squeeze, expand, reverse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd, prod
from typing import Any

import jax

from autosharding.graph import Op
from autosharding.rules.base import Dims, Exchange, Rule, Shard, factors_of, rule, sizes_of


@rule("broadcast_in_dim")
def broadcast_in_dim(op: Op) -> Rule:
    """Dims that the operand lacks, or has with size 1, are factors of the result alone."""
    a, out = op.inputs[0], op.outputs[0]
    result = factors_of("d", out.shape)
    operand = tuple(result[d] if n > 1 else () for n, d in zip(a.shape, op.params["broadcast_dimensions"], strict=True))
    return Rule(
        operands=(operand, *((),) * (len(op.inputs) - 1)),
        results=(result,),
        sizes=sizes_of((result, out.shape)),
        linear=(frozenset({0}),),
        moves_data=True,
        localise=lambda s: {"shape": s.result_shape()},
    )


@rule("iota")
def iota(op: Op) -> Rule:
    """`-> i j`: each device counts from where its own piece begins."""
    out = op.outputs[0]
    dims = factors_of("d", out.shape)
    return Rule(
        operands=tuple(((),) * a.rank for a in op.inputs),
        results=(dims,),
        sizes=sizes_of((dims, out.shape)),
        flops=float(out.size),
        run=_local_iota,
    )


def _local_iota(shard: Shard, *sizes: Any) -> Sequence[Any]:
    spec, out, dim = shard.results[0], shard.op.outputs[0], shard.op.params["dimension"]
    places = shard.positions(spec, out.shape, dim, out.aval.dtype)
    return (jax.lax.broadcast_in_dim(places, shard.result_shape(), (dim,)),)


@rule("transpose")
def transpose(op: Op) -> Rule:
    """`i j -> j i`."""
    a = op.inputs[0]
    dims = factors_of("d", a.shape)
    return Rule(
        operands=(dims,),
        results=(tuple(dims[d] for d in op.params["permutation"]),),
        sizes=sizes_of((dims, a.shape)),
        linear=(frozenset({0}),),
        moves_data=True,
    )


@rule("squeeze")
def squeeze(op: Op) -> Rule:
    """`i 1 j -> i j`."""
    a = op.inputs[0]
    dims = factors_of("d", a.shape)
    gone = {d % a.rank for d in op.params["dimensions"]}
    return Rule(
        operands=(dims,),
        results=(tuple(f for d, f in enumerate(dims) if d not in gone),),
        sizes=sizes_of((dims, a.shape)),
        linear=(frozenset({0}),),
        moves_data=True,
    )


@rule("rev")
def rev(op: Op) -> Rule:
    """`i j -> i j`: where a reversed dim is split, the devices' pieces are reversed too."""
    a = op.inputs[0]
    dims = factors_of("d", a.shape)
    return Rule(
        operands=(dims,),
        results=(dims,),
        sizes=sizes_of((dims, a.shape)),
        linear=(frozenset({0}),),
        moves_data=True,
        exchanges=_reversed_pieces,
        run=_run_rev,
    )


def _reversed_axes(shard: Shard) -> list[tuple[str, ...]]:
    """The mesh axes of each reversed dim that is split."""
    return [axes for d in shard.op.params["dimensions"] if (axes := shard.operands[0].dims[d])]


def _reversed_pieces(shard: Shard) -> Sequence[Exchange]:
    n = prod(shard.operand_shape(0))
    itemsize = shard.op.outputs[0].itemsize
    return [Exchange("collective-permute", axes, n, itemsize, n) for axes in _reversed_axes(shard)]


def _run_rev(shard: Shard, x: Any) -> Sequence[Any]:
    (x,) = shard.bind(x)
    for axes in _reversed_axes(shard):
        parts = prod(shard.mesh[a] for a in axes)
        x = jax.lax.ppermute(x, axes, [(i, parts - 1 - i) for i in range(parts)])
    return (x,)


@rule("reshape")
def reshape(op: Op) -> Rule:
    """`(a b) -> a b`: dims that split or merge share compound factors, major to minor."""
    a, out = op.inputs[0], op.outputs[0]
    order = op.params["dimensions"] or range(a.rank)
    read, result, sizes = compound_factors([a.shape[d] for d in order], out.shape)
    operand = tuple(read[list(order).index(d)] for d in range(a.rank))
    return Rule(
        operands=(operand, *((),) * (len(op.inputs) - 1)),
        results=(result,),
        sizes=sizes,
        whole=frozenset(f for f in sizes if f.startswith(_REST)),
        linear=(frozenset({0}),),
        moves_data=True,
        localise=_local_reshape,
    )


def _local_reshape(shard: Shard) -> Mapping[str, Any]:
    return {"new_sizes": shard.result_shape()}


def compound_factors(before: Sequence[int], after: Sequence[int]) -> tuple[Dims, Dims, dict[str, int]]:
    """The common refinement of two shapes of equal size: each dim of either is a run of factors.

    Both shapes are cut where their prefix products meet; inside such a block the dims are refined as long as
    their sizes have a common divisor; what is left then has no factors, or one that must stay whole.
    """
    left: list[list[str]] = [[] for _ in before]
    right: list[list[str]] = [[] for _ in after]
    sizes: dict[str, int] = {}
    for block_left, block_right in _blocks(before, after):
        _refine(block_left, block_right, before, after, left, right, sizes)
    return tuple(map(tuple, left)), tuple(map(tuple, right)), sizes


def _blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    if 0 in before or 0 in after:
        return blocks
    while i < len(before) or j < len(after):
        rows, cols = [], []
        p = q = 1
        while True:
            if p <= q and i < len(before):
                p *= before[i]
                rows.append(i)
                i += 1
            elif j < len(after):
                q *= after[j]
                cols.append(j)
                j += 1
            else:
                break
            if p == q and rows and cols:
                break
        blocks.append((rows, cols))
    return blocks


def _refine(
    rows: list[int],
    cols: list[int],
    before: Sequence[int],
    after: Sequence[int],
    left: list[list[str]],
    right: list[list[str]],
    sizes: dict[str, int],
) -> None:
    """Cut the dims of one block into common factors, major first, until they have no common divisor."""
    todo_left = [[d, before[d]] for d in rows if before[d] > 1]
    todo_right = [[d, after[d]] for d in cols if after[d] > 1]
    while todo_left and todo_right:
        (d, n), (e, m) = todo_left[0], todo_right[0]
        size = gcd(n, m)
        if size == 1:
            break
        name = f"f{len(sizes)}"
        sizes[name] = size
        left[d].append(name)
        right[e].append(name)
        todo_left[0][1] //= size
        todo_right[0][1] //= size
        todo_left = [t for t in todo_left if t[1] > 1]
        todo_right = [t for t in todo_right if t[1] > 1]
    for side, todo in ((left, todo_left), (right, todo_right)):
        for d, n in todo:
            if side[d]:  # the rest of a dim whose major part is shared
                name = f"{_REST}{len(sizes)}"
                sizes[name] = n
                side[d].append(name)


_REST = "rest"
