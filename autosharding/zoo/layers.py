"""What the language models share: norms, embedding, causal attention, cross-entropy, batches of tokens.

Letters of the shapes: b sequences, s positions, h hidden, n heads, d numbers per head, v vocabulary.
Weights arrive in float32 and are cast where they are used; activations are bfloat16 between layers.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

COMPUTE = jnp.bfloat16
MASKED = -1e9  # a logit that gets no probability


def cast(weight: jax.Array) -> jax.Array:
    """Return the bfloat16 copy of a master weight."""
    return weight.astype(COMPUTE)


def layer_norm(p: Any, x: jax.Array) -> jax.Array:
    """Return x[..., h] with mean 0 and variance 1 over h, scaled and shifted; moments in float32."""
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
    return cast((x - mean) * jax.lax.rsqrt(variance + 1e-5) * p["scale"] + p["bias"])


def rms_norm(scale: jax.Array, x: jax.Array) -> jax.Array:
    """Return x[..., h] with mean square 1 over h, scaled; the moment in float32."""
    x = x.astype(jnp.float32)
    square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return cast(x * jax.lax.rsqrt(square + 1e-5) * scale)


def embed(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """Return the rows [b, s, h] of table[v, h]; looked up in float32, so that its gradient adds up so."""
    return cast(table[tokens])


def causal_softmax(logits: jax.Array) -> jax.Array:
    """Return the attention weights of logits[..., s, t], t <= s, in bfloat16; the softmax in float32."""
    s, t = logits.shape[-2:]
    seen = jnp.arange(s)[:, None] >= jnp.arange(t)[None, :]
    return cast(jax.nn.softmax(jnp.where(seen, logits.astype(jnp.float32), MASKED), axis=-1))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean of -log softmax(logits)[label], in nats, float32.

    logits[..., v], labels int32[...]. The label's logit is picked by comparison, not by gather, so that the
    vocabulary may be split without a lookup.
    """
    logits = logits.astype(jnp.float32)
    is_label = labels[..., None] == jnp.arange(logits.shape[-1])
    picked = jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1)
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - picked)


def maybe_remat(block: Callable[..., Any], remat: bool) -> Callable[..., Any]:
    """Return the block under `jax.checkpoint` if `remat`."""
    return jax.checkpoint(block) if remat else block


def token_batch(batch: int, sequence: int, vocabulary: int) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """Return the maker of random batches {tokens, labels}, int32[b, s], a label being the next token."""

    def make_batch(key: jax.Array) -> dict[str, jax.Array]:
        """Return one batch."""
        text = jax.random.randint(key, (batch, sequence + 1), 0, vocabulary, jnp.int32)
        return {"tokens": text[:, :-1], "labels": text[:, 1:]}

    return make_batch
