"""Random bits and PRNG keys.

With partitionable threefry every element is a hash of the key and of its own position, so each device draws
exactly its own elements, the same numbers as unsharded. Keys are never split; what is done to keys alone is
cheap and repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry2x32_p

from autosharding.graph import Op
from autosharding.rules.base import Rule, Shard, factors_of, rule, sizes_of
from autosharding.rules.elementwise import broadcast

_UINTS = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint64}
_KEY_FLOPS = 100.0  # about what one threefry hash takes


@rule(
    "random_seed",
    "random_wrap",
    "random_unwrap",
    "random_split",
    "random_fold_in",
    "random_clone",
    "rng_bit_generator",
    "random_gamma",
)
def keys(op: Op) -> Rule:
    """Everything whole: keys are small, and other generators' streams, of numbers rejected at random, cannot be cut."""
    return Rule(
        operands=tuple(((),) * a.rank for a in op.inputs),
        results=tuple(((),) * v.rank for v in op.outputs),
        sizes={},
        flops=_KEY_FLOPS * sum(v.size for v in op.outputs),
    )


@rule("random_bits")
def random_bits(op: Op) -> Rule:
    """`. -> i j`: every dim of the result splits freely, under any number of keys; the keys stay whole."""
    key, out = op.inputs[0], op.outputs[0]
    dims = factors_of("d", out.shape)
    config: Any = jax.config
    if key.dtype != "key<fry>" or not config.jax_threefry_partitionable:
        return keys(op)
    return Rule(
        operands=(((),) * key.rank,),
        results=(dims,),
        sizes=sizes_of((dims, out.shape)),
        flops=_KEY_FLOPS * out.size,
        run=_draw,
    )


def _draw(shard: Shard, key: Any) -> Sequence[Any]:
    """The bits at this device's own positions: for each key a grid of counters."""
    spec, out, many = shard.results[0], shard.op.outputs[0], shard.op.inputs[0].rank
    if spec.is_replicated:
        return shard.bind(key)
    local = shard.result_shape()
    places = [shard.positions(spec, out.shape, d, jnp.uint32) for d in range(out.rank)]
    words = jax.random.key_data(key)
    for d in range(many):
        if spec.dims[d]:
            words = jnp.take(words, places[d], axis=d, mode="clip")
    high, low = _counters(out.shape[many:], places[many:])

    def spread(x: Any, dims: Sequence[int]) -> Any:
        return jax.lax.broadcast_in_dim(x, local, dims)

    grid = tuple(range(many, out.rank))
    first, second = (spread(words[..., i], tuple(range(many))) for i in range(2))
    bits = threefry2x32_p.bind(first, second, spread(high, grid), spread(low, grid))
    return (_joined(bits[0], bits[1], shard.op.params["bit_width"]),)


def _joined(high: Any, low: Any, width: int) -> Any:
    """Two hash words as one number of the width asked for, as JAX joins them."""
    if width == 64:
        return (high.astype(jnp.uint64) << 32) | low.astype(jnp.uint64)
    return (high ^ low).astype(_UINTS[width])


def _counters(shape: Sequence[int], places: Sequence[Any]) -> tuple[Any, Any]:
    """The row-major positions of a piece of an array, given those along each dim, as two u32 words, high and low."""
    local = tuple(len(p) for p in places)
    high = low = jnp.zeros(local, jnp.uint32)
    for d in range(len(local)):
        if shape[d] == 1:
            continue
        place = jax.lax.broadcast_in_dim(places[d], local, (d,))
        stride = prod(shape[d + 1 :])
        step = _wide_multiply(place, stride, prod(shape) > 2**32)
        total = low + step[1]
        high = high + step[0] + (total < low).astype(jnp.uint32)
        low = total
    return high, low


def _wide_multiply(x: Any, y: int, wide: bool) -> tuple[Any, Any]:
    """u32 times a constant below 2^64 as (high, low) u32 words; without `wide` the high word is 0."""
    low_y, high_y = np.uint32(y & 0xFFFFFFFF), np.uint32(y >> 32)
    low = x * low_y
    if not wide:
        return jnp.zeros_like(x), low
    a, b = x & 0xFFFF, x >> 16
    c, d = np.uint32(low_y & 0xFFFF), np.uint32(low_y >> 16)
    middle = b * c + ((a * c) >> 16)  # below 2^32
    other = a * d + (middle & 0xFFFF)
    return b * d + (middle >> 16) + (other >> 16) + x * high_y, low


@rule("iota_2x32_shape")
def counters(op: Op) -> Rule:
    """`-> i j, i j`: each device counts from where its own piece begins."""
    out = op.outputs[0]
    dims = factors_of("d", out.shape)
    return Rule(
        operands=(),
        results=(dims, dims),
        sizes=sizes_of((dims, out.shape)),
        flops=float(out.size),
        run=_count,
    )


def _count(shard: Shard) -> Sequence[Any]:
    spec, out = shard.results[0], shard.op.outputs[0]
    return _counters(out.shape, [shard.positions(spec, out.shape, d, jnp.uint32) for d in range(out.rank)])


@rule("threefry2x32", "threefry4x32", "philox2x32", "philox4x32")
def hashes(op: Op) -> Rule:
    """Element by element over keys' words and counters."""
    out = op.outputs[0]
    dims = factors_of("d", out.shape)
    return Rule(
        operands=tuple(broadcast(a, dims) for a in op.inputs),
        results=(dims,) * len(op.outputs),
        sizes=sizes_of((dims, out.shape)),
        flops=_KEY_FLOPS * out.size,
    )
