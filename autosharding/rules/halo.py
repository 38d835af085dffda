"""Windows over a dim that is split: what each device needs of its neighbours' pieces, and how it gets it.

Along one dim, device k of p makes the k-th part of the result from a stretch of the operand. `Slide` says where that
stretch begins and ends; what lies in the neighbours' pieces (the halo) is fetched by one `ppermute` from each side,
what lies outside the array is filled. Nothing else is sent: a 3x3 convolution moves one row each way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd, prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from autosharding.rules.base import Exchange, Shard


@dataclass(frozen=True)
class Slide:
    """How `parts` devices read along one dim of an operand.

    Positions count the operand as the window sees it: with `dilation - 1` holes between elements. Device k reads
    positions `k * step - low` up to `k * step - low + extent`.

    Attributes:
        size: elements of the whole operand along the dim.
        parts: devices.
        step: positions from one device's stretch to the next one's.
        extent: positions that a device reads.
        low: positions before the first element that the first device reads (padding; negative skips elements).
        dilation: positions from one element to the next.
    """

    size: int
    parts: int
    step: int
    extent: int
    low: int
    dilation: int = 1

    @property
    def piece(self) -> int:
        """Elements that a device has."""
        return self.size // self.parts

    def start(self, k: int) -> int:
        """The first element in device k's stretch, counted from the array's own first; may lie outside."""
        return -((self.low - k * self.step) // self.dilation)

    @property
    def length(self) -> int:
        """Elements in a stretch; the same for every device where `aligned`."""
        return (self.extent - 1 - self.low) // self.dilation - self.start(0) + 1

    @property
    def padding(self) -> tuple[int, int]:
        """Holes that a stretch begins and ends with."""
        before = self.start(0) * self.dilation + self.low
        return before, self.extent - before - (self.length - 1) * self.dilation - 1

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """For each device where its stretch begins, counted from its own piece's beginning."""
        return tuple(self.start(k) - k * self.piece for k in range(self.parts))

    @property
    def left(self) -> int:
        """Elements that some device needs of the one before it."""
        return max(0, *(-s for s in self.starts[1:]), 0)

    @property
    def right(self) -> int:
        """Elements that some device needs of the one after it."""
        return max(0, *(s + self.length - self.piece for s in self.starts[:-1]), 0)

    @property
    def fits(self) -> bool:
        """Whether all stretches are alike, and neighbours have all that is needed."""
        aligned = self.dilation == 1 or self.step % self.dilation == 0
        return aligned and self.length > 0 and max(self.left, self.right) <= self.piece


def window_slide(
    size: int, count: int, parts: int, *, window: int, stride: int, low: int, holes: int = 1, dilation: int = 1
) -> Slide:
    """The results are split: `count` positions of a window of `window` elements, `holes` apart, moving by `stride`."""
    mine = count // parts
    return Slide(size, parts, mine * stride, (mine - 1) * stride + (window - 1) * holes + 1, low, dilation)


def common(*sizes: int) -> int:
    """The size of a factor along which a window slides: what divides all dims; 1 where one is empty."""
    return gcd(*sizes) if all(sizes) else 1


def extended(shard: Shard, x: Any, dim: int, slide: Slide, factor: str, fill: Any) -> Any:
    """A device's stretch of `dim` from its own piece and its neighbours', `fill` where there is nothing.

    Args:
        shard: the op on this device.
        x: the local piece.
        dim: of `x`.
        slide: along `dim`.
        factor: that is split along `dim`.
        fill: a scalar of the dtype of `x`.
    """
    axes, k, p = shard.axes(factor), shard.index(factor), slide.parts
    parts = [x]
    if slide.left:
        last = jax.lax.slice_in_dim(x, slide.piece - slide.left, slide.piece, axis=dim)
        got = jax.lax.ppermute(last, axes, [(i, i + 1) for i in range(p - 1)])
        parts.insert(0, _unless(k == 0, got, fill))
    if slide.right:
        first = jax.lax.slice_in_dim(x, 0, slide.right, axis=dim)
        got = jax.lax.ppermute(first, axes, [(i + 1, i) for i in range(p - 1)])
        parts.append(_unless(k == p - 1, got, fill))
    joined = jax.lax.concatenate(parts, dim) if len(parts) > 1 else x
    return _stretch(joined, dim, slide, k, fill)


def _unless(at_the_edge: Any, got: Any, fill: Any) -> Any:
    """What was received, `fill` where nobody sent; `ppermute` leaves zeros there, which is often right."""
    if isinstance(fill, (int, float)) and fill == 0:
        return got
    return jnp.where(at_the_edge, jnp.asarray(fill, got.dtype), got)


def _stretch(x: Any, dim: int, slide: Slide, k: Any, fill: Any) -> Any:
    """Cut the stretch out of what was joined; where it reaches beyond (into padding), filled first."""
    begins = [s + slide.left for s in slide.starts]
    before = max(0, *(-b for b in begins))
    after = max(0, *(b + slide.length - x.shape[dim] for b in begins))
    if before or after:
        config = [(before, after, 0) if d == dim else (0, 0, 0) for d in range(x.ndim)]
        x = jax.lax.pad(x, jnp.asarray(fill, x.dtype), config)
    begins = [b + before for b in begins]
    if len(set(begins)) == 1:
        return jax.lax.slice_in_dim(x, begins[0], begins[0] + slide.length, axis=dim)
    begin = jnp.asarray(np.array(begins, np.int32))[k]
    return jax.lax.dynamic_slice_in_dim(x, begin, slide.length, axis=dim)


Slides = Mapping[int, tuple[str, Slide]]
"""Operand dim -> the factor that is split along it, and how it is read."""


def fetched(shard: Shard, x: Any, slides: Slides, fill: Any) -> Any:
    """A device's stretch along several dims, one after the other, so that corners come along."""
    for dim, (factor, slide) in slides.items():
        x = extended(shard, x, dim, slide, factor, fill)
    return x


def traffic(shard: Shard, operand: int, slides: Slides) -> list[Exchange]:
    """What `fetched` sends."""
    shape = list(shard.operand_shape(operand))
    itemsize = max(1, np.dtype(shard.op.inputs[operand].aval.dtype).itemsize)
    found: list[Exchange] = []
    before = ""  # what comes after a first dim sends corners too
    for dim, (factor, slide) in slides.items():
        axes = shard.axes(factor)
        row = prod(n for d, n in enumerate(shape) if d != dim)
        shape[dim] = slide.length
        stretch = prod(shape)
        for side in ("left", "right"):
            n = getattr(slide, side)
            if n:
                part = f"{before}{n} {side} along {dim}"
                found.append(Exchange("collective-permute", axes, n * row, itemsize, n * row + stretch, operand, part))
                stretch = 0  # held once
        before = f"{before}{slide} along {dim}; "
    return found


def split_slides(parts: Mapping[str, int], slides: Mapping[int, tuple[str, Any]]) -> Slides:
    """Of all dims along which a window can slide, those that are cut; the third of each entry makes its `Slide`."""
    return {d: (f, make(parts[f])) for d, (f, make) in slides.items() if parts.get(f, 1) > 1}


def cut_parts(shard: Shard) -> dict[str, int]:
    """Factor -> pieces."""
    return {f: shard.parts(f) for f in shard.factors}


def lowest(dtype: Any) -> Any:
    """The least number of a dtype: what a maximum begins with; complex numbers go by their real part first."""
    if dtype == jnp.bool_:
        return False
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return complex(-np.inf, -np.inf)
    return -jnp.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min


def highest(dtype: Any) -> Any:
    """The greatest number of a dtype: what a minimum begins with."""
    if dtype == jnp.bool_:
        return True
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return complex(np.inf, np.inf)
    return jnp.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).max


def all_fit(slides: Sequence[Slides]) -> bool:
    """Whether each of them can be run."""
    return all(slide.fits for each in slides for _, slide in each.values())
