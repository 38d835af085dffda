"""A flax nnx transformer with dropout, trained by optax: modules are changed in place and stay sharded.

python examples/train_nnx.py --steps 40
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import autosharding as asd

HIDDEN, LAYERS, HEADS = 64, 2, 8
SEQUENCE, BATCH, VOCABULARY = 32, 16, 64
OPTIMIZER = optax.adamw(3e-3)


class Block(nnx.Module):
    """One layer: attention and two dense layers, each behind a layer norm and a dropout."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(HIDDEN, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, HIDDEN, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(HIDDEN, rngs=rngs)
        self.wide = nnx.Linear(HIDDEN, 4 * HIDDEN, rngs=rngs)
        self.narrow = nnx.Linear(4 * HIDDEN, HIDDEN, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = x + self.dropout(self.attention(self.norm1(x), mask=mask))
        return x + self.dropout(self.narrow(nnx.gelu(self.wide(self.norm2(x)))))


class Transformer(nnx.Module):
    """Tokens int32[batch, sequence] to logits float32[batch, sequence, vocabulary]."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(VOCABULARY, HIDDEN, rngs=rngs)
        self.position = nnx.Embed(SEQUENCE, HIDDEN, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(HIDDEN, rngs=rngs)
        self.head = nnx.Linear(HIDDEN, VOCABULARY, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens) + self.position(jnp.arange(SEQUENCE))
        mask = nnx.make_causal_mask(tokens)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))


def train_step(model: Transformer, optimizer: nnx.Optimizer, tokens: jax.Array, labels: jax.Array):
    """Change the model and the optimizer in place; return the loss, in nats per token."""

    def loss_fn(model: Transformer) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(tokens), labels).mean()

    loss, gradients = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, gradients)
    return loss


def make_batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens and labels int32[batch, sequence]: each row counts by a stride, modulo the vocabulary."""
    random = np.random.default_rng(step)
    start, stride = random.integers(VOCABULARY, size=(BATCH, 1)), random.integers(1, 4, size=(BATCH, 1))
    text = (start + stride * np.arange(SEQUENCE + 1)) % VOCABULARY
    return text[:, :-1].astype(np.int32), text[:, 1:].astype(np.int32)


def make():
    """Return the step and its example arguments, for the command line."""
    model = Transformer(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, OPTIMIZER, wrt=nnx.Param)
    return train_step, (model, optimizer, *make_batch(0))


def run(step, steps: int) -> list[float]:
    """Return the losses of a run from the first state on."""
    _, (model, optimizer, *_) = make()
    return [float(step(model, optimizer, *make_batch(i))) for i in range(steps)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train a flax nnx transformer.")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--method", default="auto", help="auto, data, fsdp, zero1, zero2 or megatron")
    options = parser.parse_args(arguments)
    if jax.config.jax_num_cpu_devices != 8:
        jax.config.update("jax_num_cpu_devices", 8)  # has no say where there are accelerators
    losses = run(asd.parallelize(train_step, method=options.method), options.steps)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} nats per token in {options.steps} steps")


if __name__ == "__main__":
    main()
