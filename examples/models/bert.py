"""BERT in flax linen: masked tokens are predicted from both sides; padding is masked; dropout from the state's key.

autosharding verify examples/models/bert.py:make --devices 8
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.training import train_state

HIDDEN, LAYERS, HEADS = 64, 2, 8
SEQUENCE, BATCH, VOCABULARY = 32, 16, 128
MASKED, MASK_TOKEN = 8, 1  # how many tokens of each sequence are predicted, and what stands in their place
OPTIMIZER = optax.lamb(1e-3, weight_decay=0.01)


class TrainState(train_state.TrainState):
    key: jax.Array


class Layer(nn.Module):
    """Attention and two dense layers, a layer norm behind each."""

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        y = nn.MultiHeadDotProductAttention(HEADS, dropout_rate=0.1, deterministic=False)(x, mask=mask)
        x = nn.LayerNorm()(x + nn.Dropout(0.1, deterministic=False)(y))
        y = nn.Dense(HIDDEN)(nn.gelu(nn.Dense(4 * HIDDEN)(x), approximate=False))
        return nn.LayerNorm()(x + nn.Dropout(0.1, deterministic=False)(y))


class Bert(nn.Module):
    """Logits float32[batch, masked, vocabulary] of the masked positions, and float32[batch, 2] of the next sentence."""

    @nn.compact
    def __call__(self, tokens: jax.Array, segments: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        embed = nn.Embed(VOCABULARY, HIDDEN)
        place = self.param("position", nn.initializers.normal(0.02), (SEQUENCE, HIDDEN))
        x = nn.LayerNorm()(embed(tokens) + nn.Embed(2, HIDDEN)(segments) + place)
        mask = nn.make_attention_mask(tokens > 0, tokens > 0)
        for _ in range(LAYERS):
            x = Layer()(x, mask)
        masked = jnp.take_along_axis(x, positions[..., None], axis=1)
        logits = embed.attend(nn.LayerNorm()(nn.gelu(nn.Dense(HIDDEN)(masked))))
        return logits, nn.Dense(2)(jnp.tanh(nn.Dense(HIDDEN)(x[:, 0])))


def train_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
    """Return the next state, and the loss in nats with the accuracy of the masked tokens."""
    key, dropout = jax.random.split(state.key)

    def loss_fn(params: Any):
        inputs = batch["tokens"], batch["segments"], batch["positions"]
        logits, follows = state.apply_fn({"params": params}, *inputs, rngs={"dropout": dropout})
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean()
        return loss + optax.softmax_cross_entropy_with_integer_labels(follows, batch["follows"]).mean(), logits

    (loss, logits), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == batch["labels"])
    return state.apply_gradients(grads=gradients, key=key), {"loss": loss, "accuracy": accuracy}


def make_batch() -> dict[str, np.ndarray]:
    """Return two padded sentences a row, some of their tokens masked; all int32."""
    random = np.random.default_rng(0)
    tokens = random.integers(2, VOCABULARY, size=(BATCH, SEQUENCE))
    positions = np.sort(random.permuted(np.tile(np.arange(16), (BATCH, 1)), axis=1)[:, :MASKED], axis=1)
    labels = np.take_along_axis(tokens, positions, axis=1)
    np.put_along_axis(tokens, positions, MASK_TOKEN, axis=1)
    lengths = random.integers(16, SEQUENCE + 1, size=(BATCH, 1))
    tokens = np.where(np.arange(SEQUENCE) < lengths, tokens, 0)
    segments = np.broadcast_to(np.arange(SEQUENCE) >= 8, tokens.shape)
    batch = {"tokens": tokens, "segments": segments, "positions": positions, "labels": labels}
    batch["follows"] = random.integers(2, size=BATCH)
    return {name: x.astype(np.int32) for name, x in batch.items()}


def make():
    """Return the step and its example arguments."""
    model, batch = Bert(), make_batch()
    params, dropout, key = jax.random.split(jax.random.key(0), 3)
    inputs = batch["tokens"], batch["segments"], batch["positions"]
    variables = model.init({"params": params, "dropout": dropout}, *inputs)
    return train_step, (
        TrainState.create(apply_fn=model.apply, params=variables["params"], tx=OPTIMIZER, key=key),
        batch,
    )
