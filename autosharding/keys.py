"""Typed PRNG keys as the words they are made of: what can be cut by hand, and sent."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec


def is_key(dtype: Any) -> bool:
    """Whether it is a dtype of typed keys."""
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)


def words_of(keys: Any, sharding: NamedSharding | None = None) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the words of keys, and how they lie: like the keys, each whole."""
    words = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(keys.shape, keys.dtype))
    if sharding is None:
        return words
    spec = (*sharding.spec, *(None,) * (len(keys.shape) - len(sharding.spec)))
    return jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=NamedSharding(sharding.mesh, PartitionSpec(*spec)))


def keys_of(words: Any, dtype: Any, sharding: NamedSharding) -> Any:
    """The keys that words are of."""
    return _wrap(dtype, sharding)(words)


@functools.cache
def _wrap(dtype: Any, sharding: NamedSharding) -> Any:
    found: list[Any] = []
    jax.eval_shape(lambda k: found.append(jax.random.key_impl(k)), jax.ShapeDtypeStruct((), dtype))
    return jax.jit(functools.partial(jax.random.wrap_key_data, impl=found[0]), out_shardings=sharding)
