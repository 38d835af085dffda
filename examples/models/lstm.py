"""A language model of two LSTM layers in flax linen, each a scan over time.

autosharding verify examples/models/lstm.py:make --devices 8
"""

from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

HIDDEN, LAYERS = 64, 2
SEQUENCE, BATCH, VOCABULARY = 16, 16, 64
OPTIMIZER = optax.chain(optax.clip_by_global_norm(0.25), optax.adam(2e-3))


class LanguageModel(nn.Module):
    """Tokens int32[batch, sequence] to logits float32[batch, sequence, vocabulary]."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(VOCABULARY, HIDDEN)(tokens)
        for _ in range(LAYERS):
            x = nn.RNN(nn.OptimizedLSTMCell(HIDDEN))(x)
        return nn.Dense(VOCABULARY)(x)


def train_step(state: TrainState, tokens: jax.Array) -> tuple[TrainState, jax.Array]:
    """Return the next state, and the loss in nats per token."""

    def loss_fn(params: Any) -> jax.Array:
        logits = state.apply_fn({"params": params}, tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    loss, gradients = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=gradients), loss


def make():
    """Return the step and its example arguments."""
    model = LanguageModel()
    tokens = np.random.default_rng(0).integers(VOCABULARY, size=(BATCH, SEQUENCE + 1)).astype(np.int32)
    params = model.init(jax.random.key(0), tokens[:, :-1])["params"]
    return train_step, (TrainState.create(apply_fn=model.apply, params=params, tx=OPTIMIZER), tokens)
