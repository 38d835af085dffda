"""A mixture of experts, gated as in GShard: a token goes to its two best experts as far as they have places.

Everything is an einsum. Letters: g groups, s tokens of a group, e experts, c places of an expert, h hidden, f inner.

    autosharding verify examples/models/moe_top2.py:make --devices 8
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

HIDDEN, INNER, EXPERTS, LAYERS = 64, 128, 8, 2
GROUPS, TOKENS, OUTPUTS = 16, 32, 16
PLACES = 2 * TOKENS // EXPERTS
OPTIMIZER = optax.adamw(1e-3)


def init(key: jax.Array) -> dict[str, Any]:
    keys = iter(jax.random.split(key, 2 + 3 * LAYERS))

    def normal(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), shape) / np.sqrt(shape[-2])

    layers = [
        {
            "gate": normal(HIDDEN, EXPERTS),
            "wi": normal(EXPERTS, HIDDEN, INNER),
            "wo": normal(EXPERTS, INNER, HIDDEN),
        }
        for _ in range(LAYERS)
    ]
    return {"in": normal(OUTPUTS, HIDDEN), "layers": layers, "out": normal(HIDDEN, OUTPUTS)}


def choose(gates: jax.Array, used: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The best expert of each token: weights [g, s, e, c] at its place, and gates without that expert.

    used[g, e] places are taken; who finds none has weight zero.
    """
    chosen = jax.nn.one_hot(jnp.argmax(gates, axis=-1), EXPERTS)
    place = jnp.cumsum(chosen, axis=1) - 1 + used[:, None]
    slots = jax.nn.one_hot(place.astype(jnp.int32), PLACES) * chosen[..., None]
    return gates[..., None] * slots, gates * (1 - chosen)


def experts(p: dict[str, jax.Array], x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the experts' work on x[g, s, h], and the loss that keeps them evenly used."""
    gates = jax.nn.softmax(x @ p["gate"])
    first, others = choose(gates, jnp.zeros((x.shape[0], EXPERTS)))
    second, _ = choose(others, jnp.sum(first > 0, axis=(1, 3)).astype(x.dtype))
    combine = (first + second) / jnp.maximum(jnp.sum(first + second, axis=(2, 3), keepdims=True), 1e-9)
    dispatch = (combine > 0).astype(x.dtype)
    inner = jax.nn.relu(jnp.einsum("egch,ehf->egcf", jnp.einsum("gsec,gsh->egch", dispatch, x), p["wi"]))
    out = jnp.einsum("gsec,egch->gsh", combine, jnp.einsum("egcf,efh->egch", inner, p["wo"]))
    share = jnp.mean(jax.nn.one_hot(jnp.argmax(gates, axis=-1), EXPERTS), axis=1)
    return out, EXPERTS**2 * jnp.mean(share * jnp.mean(gates, axis=1))


def loss_fn(params: dict[str, Any], x: jax.Array, y: jax.Array) -> jax.Array:
    x, balance = x @ params["in"], 0.0
    for p in params["layers"]:
        out, loss = experts(p, x)
        x, balance = x + out, balance + loss
    return jnp.mean(jnp.square(x @ params["out"] - y)) + 0.01 * balance


def train_step(state: tuple[Any, optax.OptState], x: jax.Array, y: jax.Array):
    """Return the next (weights, optimizer state), and the loss."""
    params, optimizer = state
    loss, gradients = jax.value_and_grad(loss_fn)(params, x, y)
    updates, optimizer = OPTIMIZER.update(gradients, optimizer, params)
    return (optax.apply_updates(params, updates), optimizer), loss


def make():
    """Return the step and its example arguments."""
    params = init(jax.random.key(0))
    x = np.random.default_rng(0).standard_normal((GROUPS, TOKENS, OUTPUTS)).astype(np.float32)
    return train_step, ((params, OPTIMIZER.init(params)), x, np.sin(3 * x))
