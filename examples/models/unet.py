"""A U-Net in equinox: down by strided convolutions, up by nearest neighbours, each level joined to its twin.

autosharding verify examples/models/unet.py:make --devices 8
"""

from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

IMAGE, BATCH, CLASSES = 32, 8, 4
CHANNELS = (16, 32, 64)  # of each level
OPTIMIZER = optax.adam(1e-3)


class Level(eqx.Module):
    """Two 3x3 convolutions, a group norm behind each."""

    convolutions: list[eqx.nn.Conv2d]
    norms: list[eqx.nn.GroupNorm]

    def __init__(self, inputs: int, channels: int, key: jax.Array):
        one, two = jax.random.split(key)
        self.convolutions = [
            eqx.nn.Conv2d(inputs, channels, 3, padding=1, key=one),
            eqx.nn.Conv2d(channels, channels, 3, padding=1, key=two),
        ]
        self.norms = [eqx.nn.GroupNorm(4, channels) for _ in range(2)]

    def __call__(self, x: jax.Array) -> jax.Array:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = jax.nn.silu(norm(convolution(x)))
        return x


class UNet(eqx.Module):
    """One image float32[3, height, width] to logits float32[classes, height, width]."""

    downs: list[Level]
    strides: list[eqx.nn.Conv2d]
    ups: list[Level]
    head: eqx.nn.Conv2d

    def __init__(self, key: jax.Array):
        keys = iter(jax.random.split(key, 4 * len(CHANNELS)))
        pairs = list(pairwise(CHANNELS))
        self.downs = [Level(i, o, next(keys)) for i, o in [(3, CHANNELS[0]), *pairs]]
        self.strides = [eqx.nn.Conv2d(c, c, 3, 2, padding=1, key=next(keys)) for c in CHANNELS[:-1]]
        self.ups = [Level(small + large, small, next(keys)) for small, large in pairs]
        self.head = eqx.nn.Conv2d(CHANNELS[0], CLASSES, 1, key=next(keys))

    def __call__(self, x: jax.Array) -> jax.Array:
        skips = []
        for down, stride in zip(self.downs, self.strides, strict=False):
            x = down(x)
            skips.append(x)
            x = stride(x)
        x = self.downs[-1](x)
        for up, skip in zip(reversed(self.ups), reversed(skips), strict=True):
            x = jax.image.resize(x, (x.shape[0], *skip.shape[1:]), "nearest")
            x = up(jnp.concatenate([skip, x]))
        return self.head(x)


def loss_fn(model: UNet, images: jax.Array, labels: jax.Array) -> jax.Array:
    logits = jnp.moveaxis(jax.vmap(model)(images), 1, -1)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train_step(model: UNet, optimizer: optax.OptState, images: jax.Array, labels: jax.Array):
    """Return the next model and optimizer state, and the loss in nats per pixel."""
    loss, gradients = eqx.filter_value_and_grad(loss_fn)(model, images, labels)
    updates, optimizer = OPTIMIZER.update(gradients, optimizer)
    return eqx.apply_updates(model, updates), optimizer, loss


def make():
    """Return the step and its example arguments."""
    model = UNet(jax.random.key(0))
    random = np.random.default_rng(0)
    images = random.standard_normal((BATCH, 3, IMAGE, IMAGE)).astype(np.float32)
    labels = random.integers(CLASSES, size=(BATCH, IMAGE, IMAGE)).astype(np.int32)
    return train_step, (model, OPTIMIZER.init(eqx.filter(model, eqx.is_array)), images, labels)
