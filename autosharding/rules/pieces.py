"""Operators that cut and paste: pad, slice, concatenate, split, stack, tile, dynamic slices.

A dim that is taken or pasted whole is a factor. A dim that is padded or sliced is one too, where the pieces of operand
and result lie side by side, or nearly (see `halo`); other dims that are touched stay whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from autosharding.graph import Atom, Literal, Op
from autosharding.rules.base import Dims, Rule, Shard, factors_of, numeric, rule, sizes_of
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
    """`i j, i j -> i j`, joined along `j`; partial sums pass when all pieces are partial."""
    out, at = op.outputs[0], op.params["dimension"]
    factor, size = f"h{at}", common(*(a.shape[at] for a in (*op.inputs, out)))
    free = untouched("d", out.shape, [d != at for d in range(out.rank)])
    dims = tuple((factor,) if d == at and size > 1 else f for d, f in enumerate(free))
    sizes = sizes_of((free, out.shape)) | ({factor: size} if size > 1 else {})

    def slides(parts: Mapping[str, int]) -> list[Slides]:
        return [_joined(op, i, parts) for i in range(len(op.inputs))]

    return Rule(
        operands=(dims,) * len(op.inputs),
        results=(dims,),
        sizes=sizes,
        linear=(frozenset(range(len(op.inputs))),),
        slides=frozenset({factor}) & set(sizes),
        admits=lambda parts: all_fit(slides(parts)),
        exchanges=lambda shard: [e for i, each in enumerate(slides(cut_parts(shard))) for e in traffic(shard, i, each)],
        run=_run_concatenate,
    )


def _joined(op: Op, i: int, parts: Mapping[str, int]) -> Slides:
    """An operand read as if it were as long as the result, with nothing before and after it."""
    at, out = op.params["dimension"], op.outputs[0]
    n, begin = op.inputs[i].shape[at], _begins(op)[i]
    return split_slides(parts, {at: (f"h{at}", partial(window_slide, n, out.shape[at], window=1, stride=1, low=begin))})


def _begins(op: Op) -> list[int]:
    """Where each operand begins in the result."""
    sizes = [a.shape[op.params["dimension"]] for a in op.inputs]
    return [sum(sizes[:i]) for i in range(len(sizes))]


def _run_concatenate(shard: Shard, *operands: Any) -> Sequence[Any]:
    """Where the joined dim is split, each device picks its own part of the result out of all operands."""
    parts, at = cut_parts(shard), shard.op.params["dimension"]
    if not _joined(shard.op, 0, parts):
        return shard.bind(*operands)
    local = shard.result_shape()
    offset = shard.dim_offset(shard.results[0], shard.op.outputs[0].shape, at)
    place = jax.lax.broadcasted_iota(np.int32, local, at) + offset
    found = None
    for i, (x, begin) in enumerate(zip(operands, _begins(shard.op), strict=True)):
        stretch = fetched(shard, x, _joined(shard.op, i, parts), 0)
        found = stretch if found is None else jnp.where(place >= begin, stretch, found)
    return (found,)


@rule("split")
def split(op: Op) -> Rule:
    """`i j -> i j, i j`, `j` cut."""
    a, at = op.inputs[0], op.params["axis"] % op.inputs[0].rank
    factor, size = f"h{at}", common(*(x.shape[at] for x in (a, *op.outputs)))
    free = untouched("d", a.shape, [d != at for d in range(a.rank)])
    dims = tuple((factor,) if d == at and size > 1 else f for d, f in enumerate(free))
    sizes = sizes_of((free, a.shape)) | ({factor: size} if size > 1 else {})

    def slides(parts: Mapping[str, int]) -> list[Slides]:
        return [_cut_out(op, i, parts) for i in range(len(op.outputs))]

    return Rule(
        operands=(dims,),
        results=(dims,) * len(op.outputs),
        sizes=sizes,
        linear=_LINEAR,
        moves_data=True,
        slides=frozenset({factor}) & set(sizes),
        admits=lambda parts: all_fit(slides(parts)),
        exchanges=lambda shard: [e for each in slides(cut_parts(shard)) for e in traffic(shard, 0, each)],
        run=_run_split,
    )


def _cut_out(op: Op, i: int, parts: Mapping[str, int]) -> Slides:
    """A result as a slice of the operand."""
    at = op.params["axis"] % op.inputs[0].rank
    sizes = [v.shape[at] for v in op.outputs]
    make = partial(window_slide, op.inputs[0].shape[at], sizes[i], window=1, stride=1, low=-sum(sizes[:i]))
    return split_slides(parts, {at: (f"h{at}", make)})


def _run_split(shard: Shard, x: Any) -> Sequence[Any]:
    parts = cut_parts(shard)
    if not _cut_out(shard.op, 0, parts):
        return shard.bind(x)
    return [fetched(shard, x, _cut_out(shard.op, i, parts), 0) for i in range(len(shard.op.outputs))]


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
    """`v w, . -> 1 w`: `w` is taken whole (its start can only be 0); of a split `v` each device gives what it has."""
    a, out, sizes = op.inputs[0], op.outputs[0], op.params["slice_sizes"]
    whole = [s == n for s, n in zip(sizes, a.shape, strict=True)]
    dims = untouched("d", a.shape, whole)
    found = untouched("v", a.shape, [not ok and numeric(out) for ok in whole])
    operand = tuple(f or v for f, v in zip(dims, found, strict=True))
    return Rule(
        operands=(operand, *scalars(len(op.inputs) - 1)),
        results=(dims,),
        sizes=sizes_of((operand, a.shape)),
        reduced={f: "sum" for v in found for f in v},
        linear=_LINEAR,
        moves_data=True,
        run=_run_dynamic_slice,
    )


def _run_dynamic_slice(shard: Shard, x: Any, *given: Any) -> Sequence[Any]:
    """Along split dims: the elements that are this device's own, zeros elsewhere.

    Starts are clamped as XLA does, but before: where the slice is cut further, XLA:CPU merges the two, adds up their
    starts, and clamps only the sum (jaxlib 0.10.2).
    """
    whole, wanted = shard.op.inputs[0].shape, shard.op.params["slice_sizes"]
    sizes, starts = list(shard.result_shape()), list(given)
    for d, axes in enumerate(shard.operands[0].dims):
        if wanted[d] == whole[d]:
            starts[d] = jnp.zeros_like(starts[d])
            continue
        if not axes:
            starts[d] = _clamped(starts[d], whole[d] - wanted[d]).astype(starts[d].dtype)
            continue
        offset = shard.dim_offset(shard.operands[0], whole, d)
        place = _clamped(starts[d], whole[d] - wanted[d]) + jnp.arange(wanted[d]) - offset
        mine = (place >= 0) & (place < x.shape[d])
        x = jnp.take(x, place, axis=d, mode="clip")
        x = jnp.where(jax.lax.broadcast_in_dim(mine, x.shape, (d,)), x, jnp.zeros_like(x))
        starts[d] = jnp.zeros_like(starts[d])
    return shard.bind(x, *starts, slice_sizes=tuple(sizes))


def _clamped(start: Any, most: int) -> Any:
    """A start index as XLA takes it, i32."""
    wide = start if start.dtype.itemsize >= np.dtype(np.int32).itemsize else start.astype(np.int32)
    return jnp.clip(wide, 0, most).astype(np.int32)


@rule("dynamic_update_slice")
def dynamic_update_slice(op: Op) -> Rule:
    """`v w, 1 w, . -> v w`: `w` is written whole; of a split `v` each device writes what falls into its own piece."""
    a, update = op.inputs[:2]
    whole = [s == n for s, n in zip(update.shape, a.shape, strict=True)]
    dims = factors_of("d", a.shape)
    return Rule(
        operands=(dims, untouched("d", a.shape, whole), *scalars(len(op.inputs) - 2)),
        results=(dims,),
        sizes=sizes_of((dims, a.shape)),
        linear=(frozenset({0, 1}),),
        flops=float(prod(update.shape)),
        run=_run_dynamic_update_slice,
    )


def _run_dynamic_update_slice(shard: Shard, x: Any, update: Any, *given: Any) -> Sequence[Any]:
    """Along split dims the update is moved to where it falls, and what is not written there stays as it is."""
    whole, written = shard.op.inputs[0].shape, shard.op.inputs[1].shape
    starts = list(given)
    written_here: list[tuple[int, Any]] = []  # (dim, which of the update's elements)
    for d, axes in enumerate(shard.operands[0].dims):
        if not axes or written[d] == whole[d]:
            continue
        first = _clamped(starts[d], whole[d] - written[d]) - shard.dim_offset(shard.operands[0], whole, d)
        width = min(written[d], x.shape[d])
        starts[d] = jnp.clip(first, 0, x.shape[d] - width)
        place = starts[d] + jnp.arange(width) - first  # in the update
        update = jnp.take(update, place, axis=d, mode="clip")
        written_here.append((d, (place >= 0) & (place < written[d])))
    if not written_here:
        return shard.bind(x, update, *starts)
    starts = [_clamped(s, n - m) for s, n, m in zip(starts, x.shape, update.shape, strict=True)]
    mine = jnp.ones(update.shape, bool)
    for d, inside in written_here:
        mine &= jax.lax.broadcast_in_dim(inside, update.shape, (d,))
    there = jax.lax.dynamic_slice(x, starts, update.shape)
    return shard.bind(x, jnp.where(mine, update, there), *starts)
