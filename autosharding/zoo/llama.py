"""Llama 3: grouped-query attention, rotary positions, RMS norm first, SwiGLU.

Letters of the shapes: b sequences, s and t positions, h hidden, k key-value heads, g query heads per
key-value head, d numbers per head, f feed-forward, v vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from autosharding.zoo.layers import (
    cast,
    causal_softmax,
    cross_entropy,
    embed,
    maybe_remat,
    rms_norm,
    token_batch,
)
from autosharding.zoo.model import Model, make_model
from autosharding.zoo.weights import Weight, ones

ROTARY_BASE = 500_000.0  # Llama 3's rope_theta


@dataclass(frozen=True, slots=True)
class Llama:
    """One size; `batch` (sequences) and `sequence` (tokens) are the published ones, `build`'s defaults."""

    hidden: int
    layers: int
    heads: int
    inner: int
    key_heads: int = 8
    head_size: int = 128
    vocabulary: int = 128256
    tied: bool = False
    sequence: int = 8192
    batch: int = 512


SIZES = {
    "tiny": Llama(64, 2, 4, 128, key_heads=2, head_size=16, vocabulary=256, sequence=32, batch=8),
    "1b": Llama(2048, 16, 32, 8192, head_size=64, tied=True),
    "8b": Llama(4096, 32, 32, 14336),
    "70b": Llama(8192, 80, 64, 28672, batch=1024),
}


def llama_weights(c: Llama) -> dict[str, Any]:
    """Return the weights of the whole model."""
    last = 0.02 / math.sqrt(2 * c.layers)
    block = {
        "norm1": ones(c.hidden),
        "attn": {
            "wq": Weight((c.hidden, c.key_heads, c.heads // c.key_heads, c.head_size)),
            "wk": Weight((c.hidden, c.key_heads, c.head_size)),
            "wv": Weight((c.hidden, c.key_heads, c.head_size)),
            "wo": Weight((c.key_heads, c.heads // c.key_heads, c.head_size, c.hidden), last),
        },
        "norm2": ones(c.hidden),
        "mlp": {
            "gate": Weight((c.hidden, c.inner)),
            "up": Weight((c.hidden, c.inner)),
            "down": Weight((c.inner, c.hidden), last),
        },
    }
    head = {} if c.tied else {"head": Weight((c.vocabulary, c.hidden))}
    return {
        "embed": Weight((c.vocabulary, c.hidden)),
        "blocks": [block] * c.layers,
        "norm": ones(c.hidden),
    } | head


def rotary_angles(sequence: int, size: int) -> jax.Array:
    """Return the angle, in radians, of each position and pair of coordinates, float32[s, d / 2]."""
    frequency = ROTARY_BASE ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    return jnp.arange(sequence, dtype=jnp.float32)[:, None] * frequency


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Return x[b, s, ..., d] with coordinates i and i + d/2 turned by angles[s, d / 2], in float32."""
    angles = angles.reshape(angles.shape[0], *[1] * (x.ndim - 3), angles.shape[1])
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return cast(jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1))


def attention(p: Any, x: jax.Array, angles: jax.Array) -> jax.Array:
    """Return causal grouped-query self-attention of x[b, s, h], [b, s, h]."""
    q = rotate(jnp.einsum("bsh,hkgd->bskgd", x, cast(p["wq"])), angles)
    k = rotate(jnp.einsum("bth,hkd->btkd", x, cast(p["wk"])), angles)
    v = jnp.einsum("bth,hkd->btkd", x, cast(p["wv"]))
    logits = jnp.einsum("bskgd,btkd->bkgst", q, k) * q.shape[-1] ** -0.5
    mixed = jnp.einsum("bkgst,btkd->bskgd", causal_softmax(logits), v)
    return jnp.einsum("bskgd,kgdh->bsh", mixed, cast(p["wo"]))


def swiglu(p: Any, x: jax.Array) -> jax.Array:
    """Return the gated feed-forward of x[b, s, h], [b, s, h]."""
    gate = jax.nn.silu(jnp.einsum("bsh,hf->bsf", x, cast(p["gate"])))
    up = jnp.einsum("bsh,hf->bsf", x, cast(p["up"]))
    return jnp.einsum("bsf,fh->bsh", gate * up, cast(p["down"]))


def block(p: Any, x: jax.Array, angles: jax.Array) -> jax.Array:
    """Return one layer of the model on x[b, s, h], [b, s, h]."""
    x = x + attention(p["attn"], rms_norm(p["norm1"], x), angles)
    return x + swiglu(p["mlp"], rms_norm(p["norm2"], x))


def build_llama(name: str, c: Llama, *, remat: bool) -> Model:
    """Return the train step of one size."""
    layer = maybe_remat(block, remat)

    def loss(params: Any, stats: Any, batch: Any) -> tuple[jax.Array, Any]:
        """Return the mean cross-entropy of the next token, in nats."""
        x = embed(params["embed"], batch["tokens"])
        angles = rotary_angles(c.sequence, c.head_size)
        for i, p in enumerate(params["blocks"]):
            with jax.named_scope(f"block{i}"):
                x = layer(p, x, angles)
        head = params["embed"] if c.tied else params["head"]
        logits = jnp.einsum("bsh,vh->bsv", rms_norm(params["norm"], x), cast(head))
        return cross_entropy(logits, batch["labels"]), stats

    return make_model(name, loss, llama_weights(c), token_batch(c.batch, c.sequence, c.vocabulary))
