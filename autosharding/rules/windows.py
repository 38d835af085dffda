"""Windows sliding over arrays (pooling and its gradients): every dim is a factor, windowed ones by halo exchange."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import jax

from autosharding.graph import Op
from autosharding.rules.base import Exchange, Rule, Shard, rule, sizes_of
from autosharding.rules.halo import (
    Slide,
    Slides,
    all_fit,
    common,
    cut_parts,
    fetched,
    highest,
    lowest,
    split_slides,
    traffic,
    window_slide,
)
from autosharding.rules.notation import Dims
from autosharding.rules.pieces import untouched

_LINEAR = (frozenset({0}),)


@dataclass(frozen=True, slots=True)
class Window:
    """The window along one dim: elements, stride, (low, high) padding, dilation of the array, of the window."""

    size: int
    stride: int
    padding: tuple[int, int]
    base: int
    holes: int

    @property
    def is_free(self) -> bool:
        """One element, moving by one, without padding."""
        return self == Window(1, 1, (0, 0), 1, 1)


def _windows(op: Op) -> list[Window]:
    p = op.params
    ones = (1,) * len(p["window_dimensions"])
    settings = (
        p["window_dimensions"],
        p["window_strides"],
        map(tuple, p["padding"]),
        p.get("base_dilation") or ones,
        p.get("window_dilation") or ones,
    )
    return [Window(*each) for each in zip(*settings, strict=True)]


# ---- from an image to a smaller one ----------------------------------------------------------------------


@rule("reduce_window", "reduce_window_sum", "reduce_window_max", "reduce_window_min", "select_and_gather_add")
def window(op: Op) -> Rule:
    """`i j -> i j`, a halo for windowed `j`; initial values are scalars."""
    a, out = op.inputs[0], op.outputs[0]
    windows = _windows(op)
    free = untouched("d", a.shape, [w.is_free for w in windows])
    slid = {d: common(a.shape[d], out.shape[d]) for d, w in enumerate(windows) if not w.is_free}
    dims: Dims = tuple((f"h{d}",) if slid.get(d, 1) > 1 else f for d, f in enumerate(free))
    sizes = sizes_of((free, a.shape)) | {f"h{d}": n for d, n in slid.items() if n > 1}
    return Rule(
        operands=tuple(dims if x.rank else () for x in op.inputs),
        results=(dims,) * len(op.outputs),
        sizes=sizes,
        linear=_LINEAR if op.name in ("reduce_window_sum", "select_and_gather_add") else (),
        flops=float(out.size * prod(op.params["window_dimensions"])),
        slides=frozenset(f for f in sizes if f.startswith("h")),
        admits=lambda parts: all_fit([_pool_slides(op, parts)]),
        exchanges=_pool_traffic,
        run=_run_pool,
    )


def _pool_slides(op: Op, parts: Mapping[str, int]) -> Slides:
    a, out = op.inputs[0], op.outputs[0]
    return split_slides(
        parts,
        {
            d: (
                f"h{d}",
                partial(
                    window_slide,
                    a.shape[d],
                    out.shape[d],
                    window=w.size,
                    stride=w.stride,
                    low=w.padding[0],
                    holes=w.holes,
                    dilation=w.base,
                ),
            )
            for d, w in enumerate(_windows(op))
        },
    )


def _arrays(op: Op) -> int:
    """How many operands are arrays; after them come initial values."""
    return len(op.inputs) // 2 if op.name == "reduce_window" else len(op.inputs)


def _pool_traffic(shard: Shard) -> Sequence[Exchange]:
    slides = _pool_slides(shard.op, cut_parts(shard))
    return [e for i in range(_arrays(shard.op)) for e in traffic(shard, i, slides)]


def _run_pool(shard: Shard, *operands: Any) -> Sequence[Any]:
    slides = _pool_slides(shard.op, cut_parts(shard))
    n = _arrays(shard.op)
    fills = operands[n:] or [_fill(shard.op, i) for i in range(n)]
    stretches = [fetched(shard, x, slides, fill) for x, fill in zip(operands, fills, strict=False)]
    padding = [slides[d][1].padding if d in slides else pad for d, pad in enumerate(shard.op.params["padding"])]
    return shard.bind(*stretches, *operands[n:], padding=tuple(padding))


def _fill(op: Op, i: int) -> Any:
    """What lies outside of the array, so that it changes nothing."""
    dtype = op.inputs[i].aval.dtype
    if op.name == "reduce_window_max":
        return lowest(dtype)
    if op.name == "reduce_window_min":
        return highest(dtype)
    return _never_selected(op) if op.name == "select_and_gather_add" and i == 1 else 0


def _never_selected(op: Op) -> Any:
    """The operand's number that no window selects: the lowest for `ge`, the highest for `le`."""
    dtype = op.inputs[1].aval.dtype
    return lowest(dtype) if op.params["select_prim"].name == "ge" else highest(dtype)


# ---- and back: the gradient of max pooling ---------------------------------------------------------------


@rule("select_and_scatter_add")
def unpool(op: Op) -> Rule:
    """`i j, i j -> i j`: a halo of both operands for windowed `j`, where windows keep step with the image."""
    source, operand = op.inputs
    windows = _windows(op)
    free = untouched("d", operand.shape, [w.is_free for w in windows])
    slid = {
        d: common(operand.shape[d], source.shape[d])
        for d, w in enumerate(windows)
        if not w.is_free and operand.shape[d] == source.shape[d] * w.stride
    }
    dims: Dims = tuple((f"h{d}",) if slid.get(d, 1) > 1 else f for d, f in enumerate(free))
    sizes = sizes_of((free, operand.shape)) | {f"h{d}": n for d, n in slid.items() if n > 1}
    return Rule(
        operands=(dims, dims),
        results=(dims,),
        sizes=sizes,
        linear=_LINEAR,
        flops=float(prod(source.shape) * prod(op.params["window_dimensions"])),
        slides=frozenset(f for f in sizes if f.startswith("h")),
        admits=lambda parts: all_fit(_unpool_slides(op, parts)),
        exchanges=lambda shard: [
            e for i, s in enumerate(_unpool_slides(shard.op, cut_parts(shard))) for e in traffic(shard, i, s)
        ],
        run=_run_unpool,
    )


def _reach(w: Window) -> tuple[int, int]:
    """How many windows of the device before, and of the device after, reach into a device's piece."""
    low = w.padding[0]
    return (w.size - low - 1) // w.stride, -(-low // w.stride)


def _unpool_slides(op: Op, parts: Mapping[str, int]) -> tuple[Slides, Slides]:
    """How source and operand are read: every window that reaches into the piece, and all that these cover."""
    windows = dict(enumerate(_windows(op)))

    def of_source(d: int, w: Window, p: int) -> Slide:
        before, after = _reach(w)
        n = op.inputs[0].shape[d]
        return Slide(n, p, n // p, n // p + before + after, before)

    def of_operand(d: int, w: Window, p: int) -> Slide:
        before, after = _reach(w)
        n, mine = op.inputs[1].shape[d], op.inputs[0].shape[d] // p
        extent = (mine + before + after - 1) * w.stride + w.size
        return Slide(n, p, n // p, extent, before * w.stride + w.padding[0])

    source = {d: (f"h{d}", partial(of_source, d, w)) for d, w in windows.items()}
    operand = {d: (f"h{d}", partial(of_operand, d, w)) for d, w in windows.items()}
    return split_slides(parts, source), split_slides(parts, operand)


def _run_unpool(shard: Shard, source: Any, operand: Any) -> Sequence[Any]:
    """Unpool all windows that reach into the piece; what they give outside of it is cut off."""
    of_source, of_operand = _unpool_slides(shard.op, cut_parts(shard))
    padding = [(0, 0) if d in of_operand else pad for d, pad in enumerate(shard.op.params["padding"])]
    (found,) = shard.bind(
        fetched(shard, source, of_source, 0),
        fetched(shard, operand, of_operand, _never_selected(shard.op)),
        padding=tuple(padding),
    )
    for d, (_, slide) in of_operand.items():
        found = _own(found, d, slide)
    return (found,)


def _own(x: Any, dim: int, slide: Slide) -> Any:
    """A device's own piece of its stretch; zeros where no window reached."""
    begin = -slide.starts[0]
    missing = max(0, begin + slide.piece - x.shape[dim])
    if missing:
        config = [(0, missing, 0) if d == dim else (0, 0, 0) for d in range(x.ndim)]
        x = jax.lax.pad(x, jax.numpy.zeros((), x.dtype), config)
    return jax.lax.slice_in_dim(x, begin, begin + slide.piece, axis=dim)


@rule("select_and_scatter")
def select_and_scatter(op: Op) -> Rule:
    """`i 1, i 1, . -> i 1`: windowed dims stay whole."""
    dims = untouched("d", op.inputs[0].shape, [w.is_free for w in _windows(op)])
    return Rule(
        operands=(dims, dims, ()),
        results=(dims,),
        sizes=sizes_of((dims, op.inputs[0].shape)),
        flops=float(op.outputs[0].size * prod(op.params["window_dimensions"])),
    )
