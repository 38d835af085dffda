"""Convolutions: batch, channels and groups are factors, and so is each spatial dim, along which windows slide.

A split spatial dim costs a halo: a few rows of the neighbours' pieces. Where the kernel is the longer side (the
gradient of a kernel slides one image over another) its dim is split with the image's, and the result is partial.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

from autosharding.graph import Op
from autosharding.rules.base import Exchange, Rule, Shard, adds_up, rule
from autosharding.rules.halo import (
    Slide,
    Slides,
    all_fit,
    common,
    cut_parts,
    fetched,
    split_slides,
    traffic,
    window_slide,
)
from autosharding.rules.notation import Dim, Dims


@rule("conv_general_dilated")
def conv_general_dilated(op: Op) -> Rule:
    """`n (g i) h, (g o) i 1 -> n (g o) h`, `i` summed; a halo for `h`; batch groups: `(g n) i, (g o) i -> n (g o)`."""
    lhs, rhs = op.inputs
    numbers = op.params["dimension_numbers"]
    groups, batch_groups = op.params["feature_group_count"], op.params["batch_group_count"]
    sizes = {
        "g": groups * batch_groups,
        "n": lhs.shape[numbers.lhs_spec[0]] // batch_groups,
        "i": rhs.shape[numbers.rhs_spec[1]],
        "o": rhs.shape[numbers.rhs_spec[0]] // (groups * batch_groups),
        **_spatial(op),
    }
    sizes = {f: n for f, n in sizes.items() if n > 1}

    def dims(spec: tuple[int, ...], first: str, second: str, spatial: str) -> Dims:
        """Batch-like, feature-like and spatial dims at their places in the layout."""
        found: list[Dim] = [()] * len(spec)
        found[spec[0]] = tuple(f for f in first.split() if f in sizes)
        found[spec[1]] = tuple(f for f in second.split() if f in sizes)
        for t, d in enumerate(spec[2:]):
            found[d] = tuple(f"{f}{t}" for f in spatial if f"{f}{t}" in sizes)
        return tuple(found)

    out = op.outputs[0]
    kernel = prod(rhs.shape[d] for d in numbers.rhs_spec[2:])
    return Rule(
        operands=(
            dims(numbers.lhs_spec, "g n" if batch_groups > 1 else "n", "g i" if groups > 1 else "i", "hk"),
            dims(numbers.rhs_spec, "g o", "i", "k"),
        ),
        results=(dims(numbers.out_spec, "n", "g o", "h"),),
        sizes=sizes,
        reduced={f: "sum" for f in sizes if f[0] in "ik"},
        linear=tuple(frozenset({i}) for i in (0, 1) if adds_up(op, i)),
        flops=2.0 * out.size * kernel * rhs.shape[numbers.rhs_spec[1]],
        slides=frozenset(f for f in sizes if f[0] in "hk"),
        admits=lambda parts: all_fit([_slides(op, parts)]),
        exchanges=_exchanges,
        run=_run,
    )


def _spatial(op: Op) -> dict[str, int]:
    """For each spatial dim one factor: `h` of image and result, or `k` of image and kernel, whichever are longer."""
    numbers = op.params["dimension_numbers"]
    found = {}
    for t, (d, k, o) in enumerate(_spatial_dims(numbers)):
        image, kernel, result = op.inputs[0].shape[d], op.inputs[1].shape[k], op.outputs[0].shape[o]
        found[f"h{t}" if result >= kernel else f"k{t}"] = common(image, max(result, kernel))
    return found


def _spatial_dims(numbers: Any) -> list[tuple[int, int, int]]:
    """(image dim, kernel dim, result dim) of each spatial dim."""
    return list(zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True))


def _slides(op: Op, parts: Mapping[str, int]) -> Slides:
    """How the image is read along its split spatial dims."""
    p = op.params
    found: dict[int, tuple[str, Callable[[int], Slide]]] = {}
    for t, (d, k, o) in enumerate(_spatial_dims(p["dimension_numbers"])):
        image, kernel, result = op.inputs[0].shape[d], op.inputs[1].shape[k], op.outputs[0].shape[o]
        settings = {"low": p["padding"][t][0], "dilation": p["lhs_dilation"][t]}
        over_result = partial(
            window_slide, image, result, window=kernel, stride=p["window_strides"][t], holes=p["rhs_dilation"][t]
        )
        # the kernel is split: its elements take the part of the results, and the other way round
        over_kernel = partial(
            window_slide, image, kernel, window=result, stride=p["rhs_dilation"][t], holes=p["window_strides"][t]
        )
        made = ("h", over_result) if result >= kernel else ("k", over_kernel)
        found[d] = (f"{made[0]}{t}", partial(made[1], **settings))
    return split_slides(parts, found)


def _exchanges(shard: Shard) -> Sequence[Exchange]:
    return traffic(shard, 0, _slides(shard.op, cut_parts(shard)))


def _run(shard: Shard, lhs: Any, rhs: Any) -> Sequence[Any]:
    """Fetch the halo; each device has fewer groups, and pads only where its stretch begins or ends in a hole."""
    slides = _slides(shard.op, cut_parts(shard))
    padding = list(shard.op.params["padding"])
    for t, (d, _, _) in enumerate(_spatial_dims(shard.op.params["dimension_numbers"])):
        if d in slides:
            padding[t] = slides[d][1].padding
    groups = {
        key: shard.op.params[key] // shard.parts("g")
        for key in ("feature_group_count", "batch_group_count")
        if shard.op.params[key] > 1
    }
    return shard.bind(fetched(shard, lhs, slides, 0), rhs, padding=tuple(padding), **groups)
