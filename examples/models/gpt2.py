"""GPT-2 in flax nnx: learned positions, dropout, the head tied to the embedding; AdamW, a warm-up and clipping.

autosharding verify examples/models/gpt2.py:make --devices 8
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

HIDDEN, LAYERS, HEADS = 64, 2, 8
SEQUENCE, BATCH, VOCABULARY = 32, 16, 128
SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 6e-4, warmup_steps=2, decay_steps=100)
NO_DECAY = ("bias", "scale")


def decays(params: nnx.State):
    """Weight decay is for matrices."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-2].key not in NO_DECAY, params)


OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(SCHEDULE, b2=0.95, weight_decay=0.1, mask=decays))


class Attention(nnx.Module):
    """Causal self-attention with one matrix for queries, keys and values."""

    def __init__(self, rngs: nnx.Rngs):
        self.qkv = nnx.Linear(HIDDEN, 3 * HIDDEN, rngs=rngs)
        self.out = nnx.Linear(HIDDEN, HIDDEN, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = jnp.split(self.qkv(x).reshape(*x.shape[:2], 3 * HEADS, HIDDEN // HEADS), 3, axis=2)
        scores = jnp.einsum("bsnd,btnd->bnst", q, k) / np.sqrt(HIDDEN // HEADS)
        causal = jnp.tril(jnp.ones((SEQUENCE, SEQUENCE), bool))
        weights = self.dropout(jax.nn.softmax(jnp.where(causal, scores, -1e9)))
        return self.out(jnp.einsum("bnst,btnd->bsnd", weights, v).reshape(x.shape))


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(HIDDEN, rngs=rngs)
        self.attention = Attention(rngs)
        self.norm2 = nnx.LayerNorm(HIDDEN, rngs=rngs)
        self.wide = nnx.Linear(HIDDEN, 4 * HIDDEN, rngs=rngs)
        self.narrow = nnx.Linear(4 * HIDDEN, HIDDEN, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.narrow(nnx.gelu(self.wide(self.norm2(x)))))


class GPT2(nnx.Module):
    """Tokens int32[batch, sequence] to logits float32[batch, sequence, vocabulary]."""

    def __init__(self, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(0.02)
        self.embed = nnx.Embed(VOCABULARY, HIDDEN, embedding_init=normal, rngs=rngs)
        self.position = nnx.Embed(SEQUENCE, HIDDEN, embedding_init=normal, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(HIDDEN, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.dropout(self.embed(tokens) + self.position(jnp.arange(SEQUENCE)))
        for block in self.blocks:
            x = block(x)
        return self.embed.attend(self.norm(x))


def train_step(model: GPT2, optimizer: nnx.Optimizer, tokens: jax.Array) -> jax.Array:
    """Change the model and the optimizer in place; return the loss, in nats per token."""

    def loss_fn(model: GPT2) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(tokens[:, :-1]), tokens[:, 1:]).mean()

    loss, gradients = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, gradients)
    return loss


def make():
    """Return the step and its example arguments."""
    model = GPT2(nnx.Rngs(0))
    tokens = np.random.default_rng(0).integers(VOCABULARY, size=(BATCH, SEQUENCE + 1)).astype(np.int32)
    return train_step, (model, nnx.Optimizer(model, OPTIMIZER, wrt=nnx.Param), tokens)
