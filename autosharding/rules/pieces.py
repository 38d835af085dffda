"""Operators that cut and paste: pad, slice, concatenate, split, stack, tile, dynamic slices.

A dim that is taken or pasted whole is a factor. A dim that is padded or sliced is one too, where the pieces of operand
and result lie side by side, or nearly (see `halo`); other dims that are touched stay whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np

from autosharding.graph import Atom, Literal, Op
from autosharding.rules.base import Dims, Rule, Shard, factors_of, rule, sizes_of
from autosharding.rules.halo import Slides, all_fit, common, cut_parts, fetched, split_slides, traffic, window_slide

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
    """`i j, . -> i j`: `j` is padded. With literal zeros partial sums pass; other monoids pass any literal."""
    value = op.inputs[1]
    dims, sizes = _slid(op, [c == (0, 0, 0) for c in op.params["padding_config"]])
    return Rule(
        operands=(dims, ()),
        results=(dims,),
        sizes=sizes,
        linear=_LINEAR if is_zero(value) else (frozenset({0, 1}),),
        moves_data=is_zero(value),
        flops=float(op.outputs[0].size),
        **_sliding(sizes, lambda parts: _pad_slides(op, parts)),
        run=_run_pad,
    )


def _slid(op: Op, free: Sequence[bool]) -> tuple[Dims, dict[str, int]]:
    """Dims and sizes of an op of one array: `d` where the dim is free, `h` where the result's is another one."""
    a, out = op.inputs[0], op.outputs[0]
    sizes = {
        f"{'d' if ok else 'h'}{d}": n if ok else common(n, m)
        for d, (ok, n, m) in enumerate(zip(free, a.shape, out.shape, strict=True))
    }
    sizes = {f: n for f, n in sizes.items() if n > 1}
    names = [f"{'d' if ok else 'h'}{d}" for d, ok in enumerate(free)]
    return tuple((f,) if f in sizes else () for f in names), sizes


def _sliding(sizes: Mapping[str, int], slides: Callable[[Mapping[str, int]], Slides]) -> dict[str, Any]:
    """What a rule says of its sliding factors, whose names begin with `h`."""
    return {
        "slides": frozenset(f for f in sizes if f.startswith("h")),
        "admits": lambda parts: all_fit([slides(parts)]),
        "exchanges": lambda shard: traffic(shard, 0, slides(cut_parts(shard))),
    }


def _pad_slides(op: Op, parts: Mapping[str, int]) -> Slides:
    """A window of one element over the array with its holes."""
    a, out = op.inputs[0], op.outputs[0]
    made = {
        d: (f"h{d}", partial(window_slide, n, m, window=1, stride=1, low=low, dilation=holes + 1))
        for d, (n, m, (low, _, holes)) in enumerate(zip(a.shape, out.shape, op.params["padding_config"], strict=True))
    }
    return split_slides(parts, made)


def _run_pad(shard: Shard, x: Any, value: Any) -> Sequence[Any]:
    slides = _pad_slides(shard.op, cut_parts(shard))
    config = [
        (*slides[d][1].padding, c[2]) if d in slides else c for d, c in enumerate(shard.op.params["padding_config"])
    ]
    return shard.bind(fetched(shard, x, slides, value), value, padding_config=tuple(config))


@rule("slice")
def slice_(op: Op) -> Rule:
    """`i j -> i j`, a part of `j` taken."""
    a, p = op.inputs[0], op.params
    bounds = zip(p["start_indices"], p["limit_indices"], _strides(op), a.shape, strict=True)
    dims, sizes = _slid(op, [(b, e, s) == (0, n, 1) for b, e, s, n in bounds])
    return Rule(
        operands=(dims,),
        results=(dims,),
        sizes=sizes,
        linear=_LINEAR,
        moves_data=True,
        **_sliding(sizes, lambda parts: _slice_slides(op, parts)),
        run=_run_slice,
    )


def _strides(op: Op) -> tuple[int, ...]:
    return op.params["strides"] or (1,) * op.inputs[0].rank


def _slice_slides(op: Op, parts: Mapping[str, int]) -> Slides:
    """A window of one element, begun late."""
    settings = zip(op.inputs[0].shape, op.outputs[0].shape, op.params["start_indices"], _strides(op), strict=True)
    made = {
        d: (f"h{d}", partial(window_slide, n, m, window=1, stride=stride, low=-start))
        for d, (n, m, start, stride) in enumerate(settings)
    }
    return split_slides(parts, made)


def _run_slice(shard: Shard, x: Any) -> Sequence[Any]:
    slides = _slice_slides(shard.op, cut_parts(shard))
    x = fetched(shard, x, slides, 0)
    starts, limits = list(shard.op.params["start_indices"]), list(shard.op.params["limit_indices"])
    for d, axes in enumerate(shard.operands[0].dims):
        if axes:
            starts[d], limits[d] = (0, slides[d][1].length) if d in slides else (0, x.shape[d])
    return shard.bind(x, start_indices=tuple(starts), limit_indices=tuple(limits))


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
