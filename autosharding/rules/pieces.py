"""Operators that cut and paste: pad, slice, concatenate, split, stack, tile, dynamic slices.

A dim that is taken or pasted whole is a factor; a dim that is touched stays whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from autosharding.graph import Atom, Literal, Op
from autosharding.rules.base import Dims, Rule, Shard, factors_of, rule, sizes_of

_LINEAR = (frozenset({0}),)


def untouched(prefix: str, shape: Sequence[int], free: Sequence[bool]) -> Dims:
    """A factor of its own for every dim longer than 1 that is free, none for the others."""
    dims = factors_of(prefix, shape)
    return tuple(f if ok else () for f, ok in zip(dims, free, strict=True))


def scalars(n: int) -> tuple[Dims, ...]:
    """The dims of `n` scalar operands."""
    return ((),) * n


def is_zero(atom: Atom) -> bool:
    """Whether an operand is a literal 0."""
    return isinstance(atom, Literal) and not np.any(atom.value)


@rule("pad")
def pad(op: Op) -> Rule:
    """Padded dims stay whole. With literal zeros partial sums pass; other monoids pass any literal."""
    a, value = op.inputs
    dims = untouched("d", a.shape, [c == (0, 0, 0) for c in op.params["padding_config"]])
    return Rule(
        operands=(dims, ()),
        results=(dims,),
        sizes=sizes_of((dims, a.shape)),
        linear=_LINEAR if is_zero(value) else (frozenset({0, 1}),),
        moves_data=is_zero(value),
        flops=float(op.outputs[0].size),
    )


@rule("slice")
def slice_(op: Op) -> Rule:
    """Dims taken whole are factors."""
    a, p = op.inputs[0], op.params
    strides = p["strides"] or (1,) * a.rank
    bounds = zip(p["start_indices"], p["limit_indices"], strides, a.shape, strict=True)
    dims = untouched("d", a.shape, [(b, e, s) == (0, n, 1) for b, e, s, n in bounds])
    return Rule(
        operands=(dims,),
        results=(dims,),
        sizes=sizes_of((dims, a.shape)),
        linear=_LINEAR,
        moves_data=True,
        localise=_local_slice,
    )


def _local_slice(shard: Shard) -> Mapping[str, Any]:
    local, split = shard.operand_shape(0), shard.operands[0].dims
    limits = shard.op.params["limit_indices"]
    return {"limit_indices": tuple(n if axes else m for n, axes, m in zip(local, split, limits, strict=True))}


@rule("concatenate")
def concatenate(op: Op) -> Rule:
    """The joined dim stays whole; partial sums pass when all pieces are partial."""
    out = op.outputs[0]
    dims = untouched("d", out.shape, [d != op.params["dimension"] for d in range(out.rank)])
    return Rule(
        operands=(dims,) * len(op.inputs),
        results=(dims,),
        sizes=sizes_of((dims, out.shape)),
        linear=(frozenset(range(len(op.inputs))),),
    )


@rule("split")
def split(op: Op) -> Rule:
    """The cut dim stays whole."""
    a = op.inputs[0]
    dims = untouched("d", a.shape, [d != op.params["axis"] for d in range(a.rank)])
    return Rule(
        operands=(dims,),
        results=(dims,) * len(op.outputs),
        sizes=sizes_of((dims, a.shape)),
        linear=_LINEAR,
        moves_data=True,
    )


@rule("stack")
def stack(op: Op) -> Rule:
    """`i j, i j -> i 1 j`: the new dim stays whole."""
    a, axis = op.inputs[0], op.params["axis"]
    dims = factors_of("d", a.shape)
    return Rule(
        operands=(dims,) * len(op.inputs),
        results=((*dims[:axis], (), *dims[axis:]),),
        sizes=sizes_of((dims, a.shape)),
        linear=(frozenset(range(len(op.inputs))),),
    )


@rule("unstack")
def unstack(op: Op) -> Rule:
    """`i 1 j -> i j, i j`: the dim taken apart stays whole."""
    a, axis = op.inputs[0], op.params["axis"] % op.inputs[0].rank
    dims = untouched("d", a.shape, [d != axis for d in range(a.rank)])
    return Rule(
        operands=(dims,),
        results=((*dims[:axis], *dims[axis + 1 :]),) * len(op.outputs),
        sizes=sizes_of((dims, a.shape)),
        linear=_LINEAR,
        moves_data=True,
    )


@rule("tile")
def tile(op: Op) -> Rule:
    """`i j -> (r i) j`: repetitions are a factor of the result alone."""
    a = op.inputs[0]
    dims = factors_of("d", a.shape)
    repeats = factors_of("r", op.params["reps"])
    return Rule(
        operands=(dims,),
        results=(tuple((*r, *f) for r, f in zip(repeats, dims, strict=True)),),
        sizes=sizes_of((dims, a.shape), (repeats, op.params["reps"])),
        linear=_LINEAR,
        moves_data=True,
        localise=lambda s: {
            "reps": tuple(s.local_size(f"r{d}") if n > 1 else n for d, n in enumerate(s.op.params["reps"]))
        },
    )


@rule("dynamic_slice")
def dynamic_slice(op: Op) -> Rule:
    """Dims taken whole are factors (their start can only be 0); start indices are whole."""
    a, sizes = op.inputs[0], op.params["slice_sizes"]
    dims = untouched("d", a.shape, [s == n for s, n in zip(sizes, a.shape, strict=True)])
    return Rule(
        operands=(dims, *scalars(len(op.inputs) - 1)),
        results=(dims,),
        sizes=sizes_of((dims, a.shape)),
        linear=_LINEAR,
        moves_data=True,
        localise=lambda s: {"slice_sizes": s.result_shape()},
    )


@rule("dynamic_update_slice")
def dynamic_update_slice(op: Op) -> Rule:
    """Dims written whole are factors; partial sums pass when array and update are both partial."""
    a, update = op.inputs[:2]
    dims = untouched("d", a.shape, [s == n for s, n in zip(update.shape, a.shape, strict=True)])
    return Rule(
        operands=(dims, dims, *scalars(len(op.inputs) - 2)),
        results=(dims,),
        sizes=sizes_of((dims, a.shape)),
        linear=(frozenset({0, 1}),),
        flops=float(prod(update.shape)),
    )
