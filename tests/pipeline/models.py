"""Small models of the kinds that people train, as they would write them: a step, its state, and its batches."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

LAYERS, WIDTH, HEADS, BATCH, SEQUENCE, VOCABULARY = 4, 16, 2, 8, 6, 12
RATE, MOMENTUM = 0.1, 0.9


class Model(NamedTuple):
    """step(*state, batch) returns (new state, loss), or changes objects of nnx in place and returns the loss."""

    step: Callable[..., Any]
    state: Callable[[], tuple[Any, ...]]
    batch: Callable[[int], Any]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng([seed, *shape]).standard_normal(shape)
    return (drawn / np.sqrt(shape[-2] if len(shape) > 1 else 1)).astype(np.float32)


def tokens(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, (BATCH, SEQUENCE + 1)).astype(np.int32)


def examples(seed: int) -> np.ndarray:
    return normal(BATCH, SEQUENCE, WIDTH, seed=seed)


def images(seed: int) -> np.ndarray:
    return normal(BATCH, 8, 8, 3, seed=seed)


def by_momentum(loss: Callable[..., Any], most: float = np.inf) -> Callable[..., Any]:
    """A step of descent with momentum, the gradients' norm at most `most`."""

    def step(state: tuple[Any, Any], batch: Any) -> tuple[tuple[Any, Any], Any]:
        p, moments = state
        value, grads = jax.value_and_grad(loss)(p, batch)
        if most < np.inf:
            norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
            grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, most / norm), grads)
        moments = jax.tree.map(lambda m, g: MOMENTUM * m + g, moments, grads)
        return (jax.tree.map(lambda w, m: w - RATE * m, p, moments), moments), value

    return step


def with_moments(p: Any) -> tuple[Any, ...]:
    return ((p, jax.tree.map(np.zeros_like, p)),)


# ---- transformers ------------------------------------------------------------------------------------------------


def blocks(stacked: bool = False) -> Any:
    shapes = {
        "qkv": (WIDTH, 3 * WIDTH),
        "out": (WIDTH, WIDTH),
        "wide": (WIDTH, 2 * WIDTH),
        "narrow": (2 * WIDTH, WIDTH),
    }
    each = [{k: normal(*s, seed=n) for k, s in shapes.items()} for n in range(LAYERS)]
    return jax.tree.map(lambda *xs: np.stack(xs), *each) if stacked else each


def embedded() -> dict[str, Any]:
    return {"embed": normal(VOCABULARY, WIDTH), "position": normal(SEQUENCE, WIDTH)}


def scaled(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-5)


def attention(p: Any, x: jax.Array) -> jax.Array:
    q, k, v = jnp.split((scaled(x) @ p["qkv"]).reshape(*x.shape[:2], 3 * HEADS, WIDTH // HEADS), 3, axis=2)
    scores = jnp.einsum("bsnd,btnd->bnst", q, k) / np.sqrt(WIDTH // HEADS)
    weights = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((SEQUENCE, SEQUENCE), bool)), scores, -1e9))
    return jnp.einsum("bnst,btnd->bsnd", weights, v).reshape(x.shape) @ p["out"]


def block(p: Any, x: jax.Array) -> jax.Array:
    x = x + attention(p, x)
    return x + jax.nn.silu(scaled(x) @ p["wide"]) @ p["narrow"]


def log_likelihood(logits: jax.Array, found: jax.Array) -> jax.Array:
    return jnp.take_along_axis(jax.nn.log_softmax(logits), found[..., None], -1)


def tied_sum(p: Any, batch: jax.Array) -> jax.Array:
    """The head is the embedding; the loss is a sum."""
    x = p["embed"][batch[:, :-1]] + p["position"]
    for each in p["blocks"]:
        x = block(each, x)
    return -1e-2 * log_likelihood(x @ p["embed"].T, batch[:, 1:]).sum()


def scanned(p: Any, batch: jax.Array) -> jax.Array:
    """Layers in a scan, computed again for the backward pass."""
    x, _ = jax.lax.scan(jax.checkpoint(lambda x, w: (block(w, x), None)), p["embed"][batch[:, :-1]], p["blocks"])
    return -log_likelihood(scaled(x) @ p["head"], batch[:, 1:]).mean()


def dropped(p: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Dropout after each block, by a key that comes with the batch."""
    found, key = batch
    x = p["embed"][found[:, :-1]] + p["position"]
    for each, k in zip(p["blocks"], jax.random.split(key, LAYERS), strict=True):
        x = jnp.where(jax.random.bernoulli(k, 0.9, x.shape), block(each, x) / 0.9, 0.0)
    return -log_likelihood(x @ p["head"], found[:, 1:]).mean()


class Block(nnx.Module):
    """Of GPT-2."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.qkv, self.out = nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs), nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.wide, self.narrow = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs), nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = jnp.split(self.qkv(self.norms[0](x)).reshape(*x.shape[:2], 3 * HEADS, -1), 3, axis=2)
        scores = jnp.einsum("bsnd,btnd->bnst", q, k) / np.sqrt(WIDTH // HEADS)
        weights = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((SEQUENCE, SEQUENCE), bool)), scores, -1e9))
        x = x + self.dropout(self.out(jnp.einsum("bnst,btnd->bsnd", weights, v).reshape(x.shape)))
        return x + self.narrow(nnx.gelu(self.wide(self.norms[1](x))))


class GPT2(nnx.Module):
    """Tokens to logits, the head tied to the embedding."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed, self.position = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs), nnx.Embed(SEQUENCE, WIDTH, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)

    def __call__(self, found: jax.Array) -> jax.Array:
        x = self.embed(found) + self.position(jnp.arange(SEQUENCE))
        for each in self.blocks:
            x = each(x)
        return self.embed.attend(self.norm(x))


def nnx_step(model: GPT2, optimizer: nnx.Optimizer, batch: jax.Array) -> jax.Array:
    def loss(model: GPT2) -> jax.Array:
        return -log_likelihood(model(batch[:, :-1]), batch[:, 1:]).mean()

    value, grads = nnx.value_and_grad(loss)(model)
    optimizer.update(model, grads)
    return value


def nnx_state() -> tuple[GPT2, nnx.Optimizer]:
    model = GPT2(nnx.Rngs(0))
    return model, nnx.Optimizer(model, optax.sgd(RATE, momentum=MOMENTUM), wrt=nnx.Param)


# ---- others ------------------------------------------------------------------------------------------------------


def residual(p: Any, batch: jax.Array) -> jax.Array:
    """Convolutions around shortcuts, no norm; an average over the image, a linear head."""
    conv = partial(jax.lax.conv_general_dilated, padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    x = conv(batch, p["first"], (1, 1))
    for first, second in p["blocks"]:
        x = x + 0.5 * conv(jax.nn.relu(conv(jax.nn.relu(x), first, (1, 1))), second, (1, 1))
    return jnp.mean(jnp.square(jnp.mean(x, axis=(1, 2)) @ p["head"] - jnp.mean(batch, axis=(1, 2))))


def residual_weights() -> Any:
    def kernel(seed: int, a: int, b: int) -> np.ndarray:
        return normal(3, 3, a, b, seed=seed) / 3

    pairs = [(kernel(2 * n, WIDTH, WIDTH), kernel(2 * n + 1, WIDTH, WIDTH)) for n in range(LAYERS)]
    return {"first": kernel(99, 3, WIDTH), "blocks": pairs, "head": normal(WIDTH, 3)}


def experts(p: Any, batch: jax.Array) -> jax.Array:
    """Two of four experts for each token, within a group, as far as they have places; a loss for even use."""
    x, balance = batch, 0.0
    for each in p:
        gates = jax.nn.softmax(x @ each["gate"])
        best, which = jax.lax.top_k(gates, 2)
        chosen = jax.nn.one_hot(which, 4)
        place = jnp.cumsum(chosen.sum(-2), axis=1) * chosen.sum(-2)
        dispatch = (chosen * best[..., None]).sum(-2) * (place <= SEQUENCE // 2)
        inner = jax.nn.relu(jnp.einsum("bse,bsd,edf->ebsf", dispatch, x, each["wide"]))
        x = x + jnp.einsum("ebsf,efd->bsd", inner, each["narrow"])
        balance += jnp.mean(jnp.mean(gates, axis=1) * jnp.mean(chosen.sum(-2), axis=1))
    return jnp.mean(jnp.square(x - jnp.sin(3 * batch))) + 1e-2 * balance


def experts_weights() -> Any:
    shapes = {"gate": (WIDTH, 4), "wide": (4, WIDTH, WIDTH), "narrow": (4, WIDTH, WIDTH)}
    return [{k: normal(*s, seed=n) for k, s in shapes.items()} for n in range(LAYERS)]


def state_of(**weights: Callable[[], Any]) -> Callable[[], tuple[Any, ...]]:
    return lambda: with_moments({k: make() for k, make in weights.items()})


def head() -> np.ndarray:
    return normal(WIDTH, VOCABULARY)


def embed() -> np.ndarray:
    return normal(VOCABULARY, WIDTH)


MODELS = {
    "gpt2 in nnx": Model(nnx_step, nnx_state, tokens),
    "llama in a scan": Model(
        by_momentum(scanned), state_of(embed=embed, blocks=partial(blocks, True), head=head), tokens
    ),
    "residual net": Model(by_momentum(residual), lambda: with_moments(residual_weights()), images),
    "experts": Model(by_momentum(experts), lambda: with_moments(experts_weights()), examples),
    "tied, a sum loss": Model(by_momentum(tied_sum), lambda: with_moments(embedded() | {"blocks": blocks()}), tokens),
    "clipped by the global norm": Model(
        by_momentum(tied_sum, most=0.05), lambda: with_moments(embedded() | {"blocks": blocks()}), tokens
    ),
    "dropout": Model(
        by_momentum(dropped),
        lambda: with_moments(embedded() | {"blocks": blocks(), "head": head()}),
        lambda seed: (tokens(seed), jax.random.key(seed)),
    ),
}
