"""A mixture of experts without places: tokens sorted by expert, each expert's share multiplied by `ragged_dot`.

autosharding verify examples/models/moe_ragged.py:make --devices 8
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

HIDDEN, INNER, EXPERTS, BEST = 64, 128, 8, 2
TOKENS, OUTPUTS = 256, 16
OPTIMIZER = optax.adamw(1e-3)


def init(key: jax.Array) -> dict[str, jax.Array]:
    keys = iter(jax.random.split(key, 6))

    def normal(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), shape) / np.sqrt(shape[-2])

    return {
        "in": normal(OUTPUTS, HIDDEN),
        "router": normal(HIDDEN, EXPERTS),
        "gate": normal(EXPERTS, HIDDEN, INNER),
        "up": normal(EXPERTS, HIDDEN, INNER),
        "down": normal(EXPERTS, INNER, HIDDEN),
        "out": normal(HIDDEN, OUTPUTS),
    }


def experts(p: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Return the work of the best experts of each token of x[token, hidden]."""
    weights, chosen = jax.lax.top_k(jax.nn.softmax(x @ p["router"]), BEST)
    weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    order = jnp.argsort(chosen.reshape(-1))
    counts = jnp.bincount(chosen.reshape(-1), length=EXPERTS)
    sorted_x = x[order // BEST]
    inner = jax.nn.silu(jax.lax.ragged_dot(sorted_x, p["gate"], counts))
    inner = inner * jax.lax.ragged_dot(sorted_x, p["up"], counts)
    out = jax.lax.ragged_dot(inner, p["down"], counts) * weights.reshape(-1)[order, None]
    return jnp.zeros_like(x).at[order // BEST].add(out)


def loss_fn(params: dict[str, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    x = x @ params["in"]
    return jnp.mean(jnp.square((x + experts(params, x)) @ params["out"] - y))


def train_step(state: tuple[Any, optax.OptState], x: jax.Array, y: jax.Array):
    """Return the next (weights, optimizer state), and the mean square error."""
    params, optimizer = state
    loss, gradients = jax.value_and_grad(loss_fn)(params, x, y)
    updates, optimizer = OPTIMIZER.update(gradients, optimizer, params)
    return (optax.apply_updates(params, updates), optimizer), loss


def make():
    """Return the step and its example arguments."""
    params = init(jax.random.key(0))
    x = np.random.default_rng(0).standard_normal((TOKENS, OUTPUTS)).astype(np.float32)
    return train_step, ((params, OPTIMIZER.init(params)), x, np.sin(3 * x))
