"""A dense network trained by adafactor, its second moments kept by rows and columns, behind a clip by the global norm.

autosharding verify examples/models/adafactor.py:make --devices 8
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

INPUTS, HIDDEN, OUTPUTS, LAYERS, BATCH = 64, 256, 16, 3, 64
OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adafactor(1e-2, min_dim_size_to_factor=64, decay_rate=0.8, weight_decay_rate=1e-3),
)


def init(key: jax.Array) -> list[dict[str, jax.Array]]:
    widths = [INPUTS, *[HIDDEN] * LAYERS, OUTPUTS]
    keys = jax.random.split(key, LAYERS + 1)
    return [
        {"w": jax.random.normal(k, (i, o)) / np.sqrt(i), "b": jnp.zeros(o)}
        for k, i, o in zip(keys, widths, widths[1:], strict=False)
    ]


def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    *hidden, last = params
    for p in hidden:
        x = jnp.tanh(x @ p["w"] + p["b"])
    return jnp.mean(jnp.square(x @ last["w"] + last["b"] - y))


def train_step(state: tuple[Any, optax.OptState], x: jax.Array, y: jax.Array):
    """Return the next (weights, optimizer state), the mean square error and the norm of the gradients."""
    params, optimizer = state
    loss, gradients = jax.value_and_grad(loss_fn)(params, x, y)
    updates, optimizer = OPTIMIZER.update(gradients, optimizer, params)
    return (optax.apply_updates(params, updates), optimizer), {"loss": loss, "norm": optax.tree.norm(gradients)}


def make():
    """Return the step and its example arguments."""
    params = init(jax.random.key(0))
    random = np.random.default_rng(0)
    x = random.standard_normal((BATCH, INPUTS)).astype(np.float32)
    y = np.sin(x @ random.standard_normal((INPUTS, OUTPUTS))).astype(np.float32)
    return train_step, ((params, OPTIMIZER.init(params)), x, y)
