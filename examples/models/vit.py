"""A vision transformer in equinox: images cut into patches by a convolution, a class token, dropout.

autosharding verify examples/models/vit.py:make --devices 8
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

IMAGE, PATCH, CLASSES = 16, 4, 16
HIDDEN, LAYERS, HEADS, BATCH = 64, 2, 8, 16
TOKENS = (IMAGE // PATCH) ** 2 + 1
OPTIMIZER = optax.adamw(1e-3, weight_decay=0.05)


class Block(eqx.Module):
    norm1: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    norm2: eqx.nn.LayerNorm
    mlp: eqx.nn.MLP
    dropout: eqx.nn.Dropout

    def __init__(self, key: jax.Array):
        one, two = jax.random.split(key)
        self.norm1, self.norm2 = eqx.nn.LayerNorm(HIDDEN), eqx.nn.LayerNorm(HIDDEN)
        self.attention = eqx.nn.MultiheadAttention(HEADS, HIDDEN, key=one)
        self.mlp = eqx.nn.MLP(HIDDEN, HIDDEN, 4 * HIDDEN, depth=1, activation=jax.nn.gelu, key=two)
        self.dropout = eqx.nn.Dropout(0.1)

    def __call__(self, x: jax.Array, key: jax.Array) -> jax.Array:
        one, two = jax.random.split(key)
        y = jax.vmap(self.norm1)(x)
        x = x + self.dropout(self.attention(y, y, y), key=one)
        return x + self.dropout(jax.vmap(self.mlp)(jax.vmap(self.norm2)(x)), key=two)


class ViT(eqx.Module):
    """One image float32[3, height, width] to logits float32[classes]."""

    patches: eqx.nn.Conv2d
    token: jax.Array
    position: jax.Array
    blocks: list[Block]
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __init__(self, key: jax.Array):
        keys = jax.random.split(key, 4 + LAYERS)
        self.patches = eqx.nn.Conv2d(3, HIDDEN, PATCH, PATCH, key=keys[0])
        self.token = 0.02 * jax.random.normal(keys[1], (1, HIDDEN))
        self.position = 0.02 * jax.random.normal(keys[2], (TOKENS, HIDDEN))
        self.head = eqx.nn.Linear(HIDDEN, CLASSES, key=keys[3])
        self.blocks = [Block(k) for k in keys[4:]]
        self.norm = eqx.nn.LayerNorm(HIDDEN)

    def __call__(self, image: jax.Array, key: jax.Array) -> jax.Array:
        x = self.patches(image).reshape(HIDDEN, -1).T
        x = jnp.concatenate([self.token, x]) + self.position
        for block, k in zip(self.blocks, jax.random.split(key, LAYERS), strict=True):
            x = block(x, k)
        return self.head(self.norm(x[0]))


def loss_fn(model: ViT, images: jax.Array, labels: jax.Array, key: jax.Array) -> jax.Array:
    logits = jax.vmap(model)(images, jax.random.split(key, images.shape[0]))
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train_step(model: ViT, optimizer: optax.OptState, images: jax.Array, labels: jax.Array, key: jax.Array):
    """Return the next model and optimizer state, and the loss in nats."""
    loss, gradients = eqx.filter_value_and_grad(loss_fn)(model, images, labels, key)
    updates, optimizer = OPTIMIZER.update(gradients, optimizer, eqx.filter(model, eqx.is_array))
    return eqx.apply_updates(model, updates), optimizer, loss


def make():
    """Return the step and its example arguments."""
    model = ViT(jax.random.key(0))
    random = np.random.default_rng(0)
    images = random.standard_normal((BATCH, 3, IMAGE, IMAGE)).astype(np.float32)
    labels = random.integers(CLASSES, size=BATCH).astype(np.int32)
    return train_step, (model, OPTIMIZER.init(eqx.filter(model, eqx.is_array)), images, labels, jax.random.key(1))
