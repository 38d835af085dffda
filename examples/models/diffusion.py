"""A denoising diffusion step in flax linen: noise and times drawn inside the step, a moving average of the weights.

autosharding verify examples/models/diffusion.py:make --devices 8
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.training import train_state

IMAGE, CHANNELS, BATCH, TIMES = 16, 32, 16, 100
OPTIMIZER = optax.adam(2e-4)
KEPT = np.cumprod(1 - np.linspace(1e-4, 0.02, TIMES)).astype(np.float32)  # of the image's variance, at each time


class TrainState(train_state.TrainState):
    average: Any
    key: jax.Array


class Denoiser(nn.Module):
    """The noise in images float32[batch, height, width, 3] at times int32[batch]."""

    @nn.compact
    def __call__(self, images: jax.Array, times: jax.Array) -> jax.Array:
        angles = times[:, None] * jnp.exp(-jnp.linspace(0.0, 6.0, CHANNELS // 2))
        time = nn.Dense(CHANNELS)(
            nn.silu(nn.Dense(4 * CHANNELS)(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)))
        )
        x = nn.Conv(CHANNELS, (3, 3))(images)
        for _ in range(2):
            y = nn.Conv(CHANNELS, (3, 3))(nn.silu(nn.GroupNorm(8)(x)))
            y = y + nn.Dense(CHANNELS)(nn.silu(time))[:, None, None]
            x = x + nn.Conv(CHANNELS, (3, 3))(nn.silu(nn.GroupNorm(8)(y)))
        return nn.Conv(3, (3, 3))(nn.silu(nn.GroupNorm(8)(x)))


def train_step(state: TrainState, images: jax.Array) -> tuple[TrainState, jax.Array]:
    """Return the next state, and the mean square error of the noise."""
    key, for_times, for_noise = jax.random.split(state.key, 3)
    times = jax.random.randint(for_times, images.shape[:1], 0, TIMES)
    noise = jax.random.normal(for_noise, images.shape)
    kept = jnp.asarray(KEPT)[times][:, None, None, None]
    noisy = jnp.sqrt(kept) * images + jnp.sqrt(1 - kept) * noise

    def loss_fn(params: Any) -> jax.Array:
        return jnp.mean(jnp.square(state.apply_fn({"params": params}, noisy, times) - noise))

    loss, gradients = jax.value_and_grad(loss_fn)(state.params)
    state = state.apply_gradients(grads=gradients, key=key)
    return state.replace(average=optax.incremental_update(state.params, state.average, 0.01)), loss


def make():
    """Return the step and its example arguments."""
    model = Denoiser()
    images = np.random.default_rng(0).standard_normal((BATCH, IMAGE, IMAGE, 3)).astype(np.float32)
    params = model.init(jax.random.key(0), images, np.zeros(BATCH, np.int32))["params"]
    fixed = {"apply_fn": model.apply, "tx": OPTIMIZER, "key": jax.random.key(1)}
    return train_step, (TrainState.create(params=params, average=jax.tree.map(jnp.copy, params), **fixed), images)
