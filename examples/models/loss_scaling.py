"""Training in half precision: float16 arithmetic, float32 weights, and a loss scale that falls when gradients overflow.

autosharding verify examples/models/loss_scaling.py:make --devices 8
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

INPUTS, HIDDEN, OUTPUTS, LAYERS, BATCH = 32, 128, 16, 3, 64
PATIENCE = 2  # steps without overflow until the scale is doubled
OPTIMIZER = optax.sgd(1e-2, momentum=0.9)


class State(NamedTuple):
    params: Any
    optimizer: optax.OptState
    scale: jax.Array  # float32
    good: jax.Array  # int32, steps since the scale was changed


def init(key: jax.Array) -> list[dict[str, jax.Array]]:
    widths = [INPUTS, *[HIDDEN] * LAYERS, OUTPUTS]
    keys = jax.random.split(key, LAYERS + 1)
    return [
        {"w": jax.random.normal(k, (i, o)) / np.sqrt(i), "b": jnp.zeros(o)}
        for k, i, o in zip(keys, widths, widths[1:], strict=False)
    ]


def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    *hidden, last = jax.tree.map(lambda p: p.astype(jnp.float16), params)
    x = x.astype(jnp.float16)
    for p in hidden:
        x = jax.nn.gelu(x @ p["w"] + p["b"])
    return jnp.mean(jnp.square((x @ last["w"] + last["b"]).astype(jnp.float32) - y))


def train_step(state: State, x: jax.Array, y: jax.Array) -> tuple[State, dict[str, jax.Array]]:
    """Return the next state, the loss, and whether the gradients were finite."""
    loss, gradients = jax.value_and_grad(lambda p: loss_fn(p, x, y) * state.scale)(state.params)
    gradients = jax.tree.map(lambda g: g / state.scale, gradients)
    finite = jnp.all(jnp.stack([jnp.isfinite(g).all() for g in jax.tree.leaves(gradients)]))

    def update(state: State) -> State:
        updates, optimizer = OPTIMIZER.update(gradients, state.optimizer, state.params)
        grow = state.good + 1 >= PATIENCE
        scale = jnp.where(grow, state.scale * 2, state.scale)
        return State(optax.apply_updates(state.params, updates), optimizer, scale, jnp.where(grow, 0, state.good + 1))

    def skip(state: State) -> State:
        return state._replace(scale=state.scale / 2, good=jnp.zeros_like(state.good))

    return jax.lax.cond(finite, update, skip, state), {"loss": loss / state.scale, "finite": finite}


def make():
    """Return the step and its example arguments; the first scale is too large for float16."""
    params = init(jax.random.key(0))
    random = np.random.default_rng(0)
    x = random.standard_normal((BATCH, INPUTS)).astype(np.float32)
    y = np.sin(x @ random.standard_normal((INPUTS, OUTPUTS))).astype(np.float32)
    return train_step, (State(params, OPTIMIZER.init(params), jnp.float32(2.0**21), jnp.int32(0)), x, y)
