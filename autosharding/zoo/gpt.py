"""GPT in the sizes of GPT-3 and of Alpa's suite: learned positions, layer norm first, tied embedding.

Letters of the shapes: b sequences, s and t positions, h hidden, n heads, d = h / n, f = 4 h, v vocabulary.
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
    layer_norm,
    maybe_remat,
    token_batch,
)
from autosharding.zoo.model import Model, make_model
from autosharding.zoo.weights import Weight, ones, zeros


@dataclass(frozen=True, slots=True)
class GPT:
    """One size; `batch` (sequences) and `sequence` (tokens) are the published ones, `build`'s defaults."""

    hidden: int
    layers: int
    heads: int
    vocabulary: int = 51200
    sequence: int = 1024
    batch: int = 1024


SIZES = {
    "tiny": GPT(64, 2, 4, vocabulary=256, sequence=32, batch=8),
    "125m": GPT(768, 12, 12),
    "350m": GPT(1024, 24, 16),
    "760m": GPT(1536, 24, 16),
    "1.3b": GPT(2048, 24, 32),
    "2.6b": GPT(2560, 32, 32),
    "6.7b": GPT(4096, 32, 32),
    "15b": GPT(5120, 48, 40),
    "39b": GPT(8192, 48, 64),
    "76b": GPT(10240, 60, 80),
    "145b": GPT(12288, 80, 96, sequence=2048),
    "175b": GPT(12288, 96, 96, sequence=2048),
}


def norm_weights(hidden: int) -> dict[str, Weight]:
    """Return the weights of a layer norm."""
    return {"scale": ones(hidden), "bias": zeros(hidden)}


def attention_weights(hidden: int, heads: int, layers: int) -> dict[str, Weight]:
    """Return the weights of self-attention: wq, wk, wv [h, n, d] and wo [n, d, h], with their biases."""
    size = hidden // heads
    last = 0.02 / math.sqrt(2 * layers)
    return {f"w{x}": Weight((hidden, heads, size)) for x in "qkv"} | {
        **{f"b{x}": zeros(heads, size) for x in "qkv"},
        "wo": Weight((heads, size, hidden), last),
        "bo": zeros(hidden),
    }


def mlp_weights(hidden: int, inner: int, layers: int) -> dict[str, Weight]:
    """Return the weights of the two dense layers, [h, f] and [f, h]."""
    last = 0.02 / math.sqrt(2 * layers)
    return {
        "wi": Weight((hidden, inner)),
        "bi": zeros(inner),
        "wo": Weight((inner, hidden), last),
        "bo": zeros(hidden),
    }


def gpt_weights(c: GPT) -> dict[str, Any]:
    """Return the weights of the whole model."""
    block = {
        "norm1": norm_weights(c.hidden),
        "attn": attention_weights(c.hidden, c.heads, c.layers),
        "norm2": norm_weights(c.hidden),
        "mlp": mlp_weights(c.hidden, 4 * c.hidden, c.layers),
    }
    return {
        "embed": Weight((c.vocabulary, c.hidden)),
        "position": Weight((c.sequence, c.hidden)),
        "blocks": [block] * c.layers,
        "norm": norm_weights(c.hidden),
    }


def attention(p: Any, x: jax.Array) -> jax.Array:
    """Return causal self-attention of x[b, s, h], [b, s, h]."""
    q = jnp.einsum("bsh,hnd->bsnd", x, cast(p["wq"])) + cast(p["bq"])
    k = jnp.einsum("bth,hnd->btnd", x, cast(p["wk"])) + cast(p["bk"])
    v = jnp.einsum("bth,hnd->btnd", x, cast(p["wv"])) + cast(p["bv"])
    logits = jnp.einsum("bsnd,btnd->bnst", q, k) * q.shape[-1] ** -0.5
    mixed = jnp.einsum("bnst,btnd->bsnd", causal_softmax(logits), v)
    return jnp.einsum("bsnd,ndh->bsh", mixed, cast(p["wo"])) + cast(p["bo"])


def mlp(p: Any, x: jax.Array) -> jax.Array:
    """Return the two dense layers on x[b, s, h], [b, s, h]."""
    inner = jax.nn.gelu(jnp.einsum("bsh,hf->bsf", x, cast(p["wi"])) + cast(p["bi"]))
    return jnp.einsum("bsf,fh->bsh", inner, cast(p["wo"])) + cast(p["bo"])


def block(p: Any, x: jax.Array) -> jax.Array:
    """Return one layer of the model on x[b, s, h], [b, s, h]."""
    x = x + attention(p["attn"], layer_norm(p["norm1"], x))
    return x + mlp(p["mlp"], layer_norm(p["norm2"], x))


def build_gpt(name: str, c: GPT, *, remat: bool) -> Model:
    """Return the train step of one size."""
    layer = maybe_remat(block, remat)

    def loss(params: Any, stats: Any, batch: Any) -> tuple[jax.Array, Any]:
        """Return the mean cross-entropy of the next token, in nats."""
        x = embed(params["embed"], batch["tokens"]) + cast(params["position"])
        for i, p in enumerate(params["blocks"]):
            with jax.named_scope(f"block{i}"):
                x = layer(p, x)
        x = layer_norm(params["norm"], x)
        logits = jnp.einsum("bsh,vh->bsv", x, cast(params["embed"]))
        return cross_entropy(logits, batch["labels"]), stats

    return make_model(name, loss, gpt_weights(c), token_batch(c.batch, c.sequence, c.vocabulary))
