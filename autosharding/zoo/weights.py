"""A model's parameters before they exist: a tree of `Weight`s, made abstract, counted or drawn."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


@dataclass(frozen=True, slots=True)
class Weight:
    """One float32 array to be: its shape and how it starts, `fill + scale * normal`."""

    shape: tuple[int, ...]
    scale: float = 0.02  # standard deviation; 0 means the constant `fill`
    fill: float = 0.0


def zeros(*shape: int) -> Weight:
    """Return a bias: starts at zero."""
    return Weight(shape, scale=0.0)


def ones(*shape: int) -> Weight:
    """Return a gain: starts at one."""
    return Weight(shape, scale=0.0, fill=1.0)


def he_normal(*shape: int) -> Weight:
    """Return a weight before a relu, its last dimension the output: variance 2 / (inputs per output)."""
    return Weight(shape, scale=math.sqrt(2 / math.prod(shape[:-1])))


def abstract(tree: Any) -> Any:
    """Return the tree with a `ShapeDtypeStruct` for each weight; allocates nothing."""
    return jax.tree.map(lambda weight: jax.ShapeDtypeStruct(weight.shape, jnp.float32), tree)


def count(tree: Any) -> int:
    """Return how many numbers the tree holds."""
    return sum(math.prod(weight.shape) for weight in jax.tree.leaves(tree))


def draw(tree: Any, key: jax.Array) -> Any:
    """Return the tree with an array for each weight, drawn from `key`.

    All normals are drawn at once and cut: one random generator to compile instead of one for each shape.
    """
    weights, structure = jax.tree.flatten(tree)
    sizes = [math.prod(weight.shape) if weight.scale else 0 for weight in weights]
    normals = jax.random.normal(key, (sum(sizes),), jnp.float32)
    ends = itertools.accumulate(sizes)
    arrays = [_fill(w, normals[end - n : end]) for w, n, end in zip(weights, sizes, ends, strict=True)]
    return jax.tree.unflatten(structure, arrays)


def _fill(weight: Weight, normals: jax.Array) -> jax.Array:
    if weight.scale == 0.0:
        return jnp.full(weight.shape, weight.fill, jnp.float32)
    return weight.fill + weight.scale * normals.reshape(weight.shape)
