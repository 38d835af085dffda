"""An MLP-mixer in haiku: dense layers over patches and over channels in turn.

autosharding verify examples/models/mixer.py:make --devices 8
"""

from typing import NamedTuple

import haiku as hk
import jax
import numpy as np
import optax

IMAGE, PATCH, CLASSES = 16, 4, 16
HIDDEN, LAYERS, BATCH = 64, 2, 16
OPTIMIZER = optax.adamw(1e-3, weight_decay=0.1)


class State(NamedTuple):
    params: hk.Params
    optimizer: optax.OptState


def norm(x: jax.Array) -> jax.Array:
    return hk.LayerNorm(axis=-1, create_scale=True, create_offset=True)(x)


def dense(x: jax.Array, width: int, *, bias: bool) -> jax.Array:
    """Two dense layers over the last dim."""
    return hk.Linear(x.shape[-1], with_bias=bias)(jax.nn.gelu(hk.Linear(width)(x)))


def model(images: jax.Array) -> jax.Array:
    """Images float32[batch, height, width, 3] to logits float32[batch, classes]."""
    x = hk.Conv2D(HIDDEN, PATCH, PATCH, padding="VALID")(images)
    x = x.reshape(x.shape[0], -1, HIDDEN)
    for _ in range(LAYERS):
        x = x + dense(norm(x).swapaxes(1, 2), 32, bias=False).swapaxes(1, 2)  # the next norm would take a bias away
        x = x + dense(norm(x), 4 * HIDDEN, bias=True)
    return hk.Linear(CLASSES)(norm(x).mean(axis=1))


MODEL = hk.without_apply_rng(hk.transform(model))


def train_step(state: State, images: jax.Array, labels: jax.Array) -> tuple[State, jax.Array]:
    """Return the next state, and the loss in nats."""

    def loss_fn(params: hk.Params) -> jax.Array:
        logits = MODEL.apply(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, gradients = jax.value_and_grad(loss_fn)(state.params)
    updates, optimizer = OPTIMIZER.update(gradients, state.optimizer, state.params)
    return State(optax.apply_updates(state.params, updates), optimizer), loss


def make():
    """Return the step and its example arguments."""
    random = np.random.default_rng(0)
    images = random.standard_normal((BATCH, IMAGE, IMAGE, 3)).astype(np.float32)
    labels = random.integers(CLASSES, size=BATCH).astype(np.int32)
    params = MODEL.init(jax.random.key(0), images)
    return train_step, (State(params, OPTIMIZER.init(params)), images, labels)
