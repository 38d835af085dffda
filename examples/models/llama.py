"""Llama in plain JAX: grouped-query attention, rotary positions, RMS norm, SwiGLU; layers scanned, each rematerialised.

autosharding verify examples/models/llama.py:make --devices 8
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

HIDDEN, INNER, LAYERS = 64, 128, 4
KEY_HEADS, GROUP, SIZE = 4, 2, 8  # key-value heads, query heads of each, numbers per head
SEQUENCE, BATCH, VOCABULARY = 32, 16, 128
OPTIMIZER = optax.adamw(3e-4, b2=0.95, weight_decay=0.1)


def init(key: jax.Array) -> dict[str, Any]:
    """Return the weights; those of the layers are stacked."""
    keys = iter(jax.random.split(key, 9))

    def normal(*shape: int) -> jax.Array:
        return 0.02 * jax.random.normal(next(keys), shape)

    layers = {
        "norm1": jnp.ones((LAYERS, HIDDEN)),
        "wq": normal(LAYERS, HIDDEN, KEY_HEADS, GROUP, SIZE),
        "wk": normal(LAYERS, HIDDEN, KEY_HEADS, SIZE),
        "wv": normal(LAYERS, HIDDEN, KEY_HEADS, SIZE),
        "wo": normal(LAYERS, KEY_HEADS, GROUP, SIZE, HIDDEN),
        "norm2": jnp.ones((LAYERS, HIDDEN)),
        "gate": normal(LAYERS, HIDDEN, INNER),
        "up": normal(LAYERS, HIDDEN, INNER),
        "down": normal(LAYERS, INNER, HIDDEN),
    }
    embed, head = normal(VOCABULARY, HIDDEN), normal(HIDDEN, VOCABULARY)
    return {"embed": embed, "layers": layers, "norm": jnp.ones(HIDDEN), "head": head}


def rms_norm(gain: jax.Array, x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-5) * gain


def rotate(x: jax.Array) -> jax.Array:
    """Return x[batch, sequence, ..., size] with coordinates i and i + size/2 turned by the position's angle."""
    frequency = 500_000.0 ** (-jnp.arange(0, SIZE, 2) / SIZE)
    angles = (jnp.arange(SEQUENCE)[:, None] * frequency).reshape(SEQUENCE, *[1] * (x.ndim - 3), SIZE // 2)
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attention(p: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    q = rotate(jnp.einsum("bsh,hkgd->bskgd", x, p["wq"]))
    k = rotate(jnp.einsum("bth,hkd->btkd", x, p["wk"]))
    v = jnp.einsum("bth,hkd->btkd", x, p["wv"])
    scores = jnp.einsum("bskgd,btkd->bkgst", q, k) * SIZE**-0.5
    causal = jnp.tril(jnp.ones((SEQUENCE, SEQUENCE), bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf))
    return jnp.einsum("bskgd,kgdh->bsh", jnp.einsum("bkgst,btkd->bskgd", weights, v), p["wo"])


@jax.checkpoint
def block(x: jax.Array, p: dict[str, jax.Array]) -> tuple[jax.Array, None]:
    x = x + attention(p, rms_norm(p["norm1"], x))
    y = rms_norm(p["norm2"], x)
    return x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"], None


def loss_fn(params: dict[str, Any], tokens: jax.Array) -> jax.Array:
    x, _ = jax.lax.scan(block, params["embed"][tokens[:, :-1]], params["layers"])
    logits = rms_norm(params["norm"], x) @ params["head"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def train_step(state: tuple[Any, optax.OptState], tokens: jax.Array):
    """Return the next (weights, optimizer state), and the loss in nats per token."""
    params, optimizer = state
    loss, gradients = jax.value_and_grad(loss_fn)(params, tokens)
    updates, optimizer = OPTIMIZER.update(gradients, optimizer, params)
    return (optax.apply_updates(params, updates), optimizer), loss


def make():
    """Return the step and its example arguments."""
    params = init(jax.random.key(0))
    tokens = np.random.default_rng(0).integers(VOCABULARY, size=(BATCH, SEQUENCE + 1)).astype(np.int32)
    return train_step, ((params, OPTIMIZER.init(params)), tokens)
