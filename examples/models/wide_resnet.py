"""A wide residual network in flax linen: batch norm in front of each convolution, its statistics in the train state.

autosharding verify examples/models/wide_resnet.py:make --devices 8
"""

from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from flax.training import train_state

IMAGE, BATCH, CLASSES = 16, 16, 16
BASE, WIDEN, STAGES, DEPTH = 8, 2, 3, 1  # channels of the first layer, how much wider the blocks are, blocks a stage
OPTIMIZER = optax.sgd(0.1, momentum=0.9, nesterov=True)


class TrainState(train_state.TrainState):
    batch_stats: Any


class Block(nn.Module):
    """Norm, relu and a 3x3 convolution, twice, around a shortcut."""

    channels: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(nn.BatchNorm(use_running_average=False, momentum=0.9)(x))
        if x.shape[-1] != self.channels:
            x = nn.Conv(self.channels, (1, 1), self.stride, use_bias=False)(y)
        y = nn.Conv(self.channels, (3, 3), self.stride, use_bias=False)(y)
        y = nn.relu(nn.BatchNorm(use_running_average=False, momentum=0.9)(y))
        return x + nn.Conv(self.channels, (3, 3), use_bias=False)(y)


class WideResNet(nn.Module):
    """Images float32[batch, height, width, 3] to logits float32[batch, classes]."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = nn.Conv(BASE, (3, 3), use_bias=False)(images)
        for stage in range(STAGES):
            for i in range(DEPTH):
                x = Block(BASE * WIDEN * 2**stage, stride=2 if stage and not i else 1)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=False, momentum=0.9)(x))
        return nn.Dense(CLASSES)(nn.avg_pool(x, x.shape[1:3]).reshape(x.shape[0], -1))


def train_step(state: TrainState, images: jax.Array, labels: jax.Array) -> tuple[TrainState, jax.Array]:
    """Return the next state, and the loss in nats with weight decay in it."""

    def loss_fn(params: Any):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, new = state.apply_fn(variables, images, mutable=["batch_stats"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss + 5e-4 * optax.tree.norm(params, squared=True), new["batch_stats"]

    (loss, stats), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    return state.apply_gradients(grads=gradients, batch_stats=stats), loss


def make():
    """Return the step and its example arguments."""
    model = WideResNet()
    random = np.random.default_rng(0)
    images = random.standard_normal((BATCH, IMAGE, IMAGE, 3)).astype(np.float32)
    labels = random.integers(CLASSES, size=BATCH).astype(np.int32)
    state = TrainState.create(apply_fn=model.apply, tx=OPTIMIZER, **model.init(jax.random.key(0), images))
    return train_step, (state, images, labels)
