"""Decoding with a KV cache: one token of each sequence through all layers, its keys and values put into the cache.

autosharding verify examples/models/decode.py:make --devices 8
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

HIDDEN, LAYERS, HEADS = 64, 4, 8
LENGTH, BATCH, VOCABULARY = 32, 16, 128


class Cache(NamedTuple):
    """Keys and values float32[layer, batch, length, head, size], and how many positions are filled."""

    keys: jax.Array
    values: jax.Array
    filled: jax.Array
    token: jax.Array  # int32[batch], the last of each sequence
    key: jax.Array


def init(key: jax.Array) -> dict[str, Any]:
    keys = iter(jax.random.split(key, 7))

    def normal(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), shape) / np.sqrt(HIDDEN)

    size = HIDDEN // HEADS
    layers = {name: normal(LAYERS, HIDDEN, HEADS, size) for name in ("wq", "wk", "wv")}
    layers |= {"wo": normal(LAYERS, HEADS, size, HIDDEN)}
    layers |= {"wide": normal(LAYERS, HIDDEN, 4 * HIDDEN), "narrow": normal(LAYERS, 4 * HIDDEN, HIDDEN)}
    return {"embed": normal(VOCABULARY, HIDDEN), "layers": layers}


def rms_norm(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-5)


def step(cache: Cache, params: dict[str, Any]) -> tuple[Cache, jax.Array]:
    """Return the cache with one token more, drawn for each sequence, and its log-probability float32[batch]."""

    def layer(x: jax.Array, stacked: tuple[Any, jax.Array, jax.Array]):
        p, keys, values = stacked
        y = rms_norm(x)
        q, k, v = (jnp.einsum("bh,hnd->bnd", y, p[name]) for name in ("wq", "wk", "wv"))
        keys = jax.lax.dynamic_update_slice(keys, k[:, None], (0, cache.filled, 0, 0))
        values = jax.lax.dynamic_update_slice(values, v[:, None], (0, cache.filled, 0, 0))
        scores = jnp.einsum("bnd,btnd->bnt", q, keys) * q.shape[-1] ** -0.5
        weights = jax.nn.softmax(jnp.where(jnp.arange(LENGTH) <= cache.filled, scores, -jnp.inf))
        x = x + jnp.einsum("bnd,ndh->bh", jnp.einsum("bnt,btnd->bnd", weights, values), p["wo"])
        return x + jax.nn.gelu(rms_norm(x) @ p["wide"]) @ p["narrow"], (keys, values)

    stacked = params["layers"], cache.keys, cache.values
    x, (keys, values) = jax.lax.scan(layer, params["embed"][cache.token], stacked)
    scores = jax.nn.log_softmax(rms_norm(x) @ params["embed"].T)
    key, drawing = jax.random.split(cache.key)
    token = jax.random.categorical(drawing, scores)
    drawn = jnp.take_along_axis(scores, token[:, None], axis=-1)[:, 0]
    return Cache(keys, values, cache.filled + 1, token, key), drawn


def make():
    """Return the step and its example arguments."""
    shape = (LAYERS, BATCH, LENGTH, HEADS, HIDDEN // HEADS)
    token = jnp.arange(BATCH, dtype=jnp.int32)
    cache = Cache(jnp.zeros(shape), jnp.zeros(shape), jnp.int32(0), token, jax.random.key(1))
    return step, (cache, init(jax.random.key(0)))
