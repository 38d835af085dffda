"""Mixture of experts in the sizes of Alpa's suite: every second layer's feed-forward is a set of experts.

Top-2 gating as GShard has it (Lepikhin et al., 2020, algorithm 1, without its auxiliary loss and random
second expert): tokens are cut into groups, an expert takes at most `2 s / e` tokens of a group, the rest
pass by. Everything is an einsum.

Letters of the shapes: g groups, s tokens of a group, e experts, c places of an expert in a group, h hidden, f
feed-forward.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from autosharding.zoo import gpt
from autosharding.zoo.layers import cast, cross_entropy, embed, layer_norm, maybe_remat, token_batch
from autosharding.zoo.model import Model, make_model
from autosharding.zoo.weights import Weight

INNER = 8  # feed-forward width in units of the hidden width, as in GShard and Alpa's suite


@dataclass(frozen=True, slots=True)
class MoE:
    """One size; `batch` (sequences) and `sequence` (tokens) are the published ones, `build`'s defaults."""

    hidden: int
    layers: int
    heads: int
    experts: int
    vocabulary: int = 32000
    group: int = 2048  # tokens
    sequence: int = 1024
    batch: int = 1024


SIZES = {
    "tiny": MoE(64, 2, 4, 4, vocabulary=256, group=64, sequence=32, batch=8),
    "380m": MoE(768, 8, 16, 8),
    "690m": MoE(768, 8, 16, 16),
    "1.3b": MoE(768, 16, 16, 16),
    "2.4b": MoE(1024, 16, 16, 16),
    "7.1b": MoE(1280, 16, 16, 32),
    "10b": MoE(1536, 16, 16, 32),
    "27b": MoE(2048, 16, 16, 48),
    "70b": MoE(2048, 32, 16, 64),
    "140b": MoE(2048, 32, 16, 128),
}


def moe_weights(c: MoE) -> dict[str, Any]:
    """Return the weights of the whole model; experts are in layers 0, 2, 4, ..., as in Alpa."""
    inner = INNER * c.hidden
    shared = {
        "norm1": gpt.norm_weights(c.hidden),
        "attn": gpt.attention_weights(c.hidden, c.heads, c.layers),
        "norm2": gpt.norm_weights(c.hidden),
    }
    experts = {
        "gate": Weight((c.hidden, c.experts)),
        "wi": Weight((c.experts, c.hidden, inner)),
        "wo": Weight((c.experts, inner, c.hidden), 0.02 / math.sqrt(2 * c.layers)),
    }
    pair = [shared | {"experts": experts}, shared | {"mlp": gpt.mlp_weights(c.hidden, inner, c.layers)}]
    return {
        "embed": Weight((c.vocabulary, c.hidden)),
        "position": Weight((c.sequence, c.hidden)),
        "blocks": pair * (c.layers // 2),
        "norm": gpt.norm_weights(c.hidden),
        "head": Weight((c.vocabulary, c.hidden)),
    }


def places(chosen: jax.Array, taken: jax.Array, capacity: int) -> tuple[jax.Array, jax.Array]:
    """Return which choices find a place, [g, s, e], and the place of each token, int32[g, s].

    chosen[g, s, e] is 1 at a token's expert; taken[g, 1, e] counts places that went before; float32.
    """
    position = jnp.cumsum(chosen, axis=1) - chosen + taken
    kept = chosen * (position < capacity)
    return kept, jnp.sum(position * kept, axis=-1).astype(jnp.int32)


def route(kept: jax.Array, place: jax.Array, gate: jax.Array, capacity: int) -> jax.Array:
    """Return the weights [g, s, e, c] of one choice: its gate[g, s] at its expert and place."""
    slot = jax.nn.one_hot(place, capacity, dtype=jnp.float32)
    return jnp.einsum("gse,gsc->gsec", kept * gate[..., None], slot)


def top2(gates: jax.Array, capacity: int) -> jax.Array:
    """Return the combine weights [g, s, e, c] of probabilities gates[g, s, e], in float32."""
    experts = gates.shape[-1]
    first = jax.nn.one_hot(jnp.argmax(gates, axis=-1), experts, dtype=jnp.float32)
    others = gates * (1.0 - first)
    second = jax.nn.one_hot(jnp.argmax(others, axis=-1), experts, dtype=jnp.float32)
    kept1, place1 = places(first, jnp.zeros_like(first[:, :1]), capacity)
    kept2, place2 = places(second, jnp.sum(kept1, axis=1, keepdims=True), capacity)
    gate1, gate2 = jnp.sum(gates * kept1, axis=-1), jnp.sum(gates * kept2, axis=-1)
    total = jnp.maximum(gate1 + gate2, 1e-9)
    return route(kept1, place1, gate1 / total, capacity) + route(kept2, place2, gate2 / total, capacity)


def expert_mlp(p: Any, x: jax.Array, group: int) -> jax.Array:
    """Return the experts' feed-forward of x[b, s, h], [b, s, h]; `group` is tokens per group."""
    tokens = x.reshape(-1, group, x.shape[-1])
    capacity = max(1, 2 * group // p["gate"].shape[-1])
    scores = jnp.einsum("gsh,he->gse", tokens, cast(p["gate"])).astype(jnp.float32)
    combine = top2(jax.nn.softmax(scores, axis=-1), capacity)
    dispatch = cast(combine > 0)
    inputs = jnp.einsum("gsec,gsh->egch", dispatch, tokens)
    inner = jax.nn.relu(jnp.einsum("egch,ehf->egcf", inputs, cast(p["wi"])))
    outputs = jnp.einsum("egcf,efh->egch", inner, cast(p["wo"]))
    return jnp.einsum("gsec,egch->gsh", cast(combine), outputs).reshape(x.shape)


def expert_block(p: Any, x: jax.Array, group: int) -> jax.Array:
    """Return one layer with experts on x[b, s, h], [b, s, h]."""
    x = x + gpt.attention(p["attn"], layer_norm(p["norm1"], x))
    return x + expert_mlp(p["experts"], layer_norm(p["norm2"], x), group)


def build_moe(name: str, c: MoE, *, remat: bool) -> Model:
    """Return the train step of one size; a batch smaller than a group is one group."""
    tokens = c.batch * c.sequence
    group = math.gcd(tokens, c.group)
    dense = maybe_remat(gpt.block, remat)
    sparse = maybe_remat(lambda p, x: expert_block(p, x, group), remat)

    def loss(params: Any, stats: Any, batch: Any) -> tuple[jax.Array, Any]:
        """Return the mean cross-entropy of the next token, in nats."""
        x = embed(params["embed"], batch["tokens"]) + cast(params["position"])
        for i, p in enumerate(params["blocks"]):
            with jax.named_scope(f"block{i}"):
                x = sparse(p, x) if "experts" in p else dense(p, x)
        x = layer_norm(params["norm"], x)
        logits = jnp.einsum("bsh,vh->bsv", x, cast(params["head"]))
        return cross_entropy(logits, batch["labels"]), stats

    return make_model(name, loss, moe_weights(c), token_batch(c.batch, c.sequence, c.vocabulary))
