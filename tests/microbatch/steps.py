"""Losses as users write them, over a tiny transformer."""

import jax
import jax.numpy as jnp
import numpy as np

B, S, D, V, H = 8, 6, 16, 11, 4


def arrays(seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)

    params = {
        "emb": normal(V, D),
        "pos": normal(S, D),
        "wq": normal(D, H, D // H),
        "wk": normal(D, H, D // H),
        "wv": normal(D, H, D // H),
        "wo": normal(H, D // H, D),
        "w1": normal(D, 4 * D),
        "w2": normal(4 * D, D),
        "layers": normal(3, D, D),
    }
    tokens = rng.integers(0, V, (B, S + 1)).astype(np.int32)
    return params, tokens


def block(p, h):
    q, k, v = (jnp.einsum("bsd,dhe->bshe", h, p[n]) for n in ("wq", "wk", "wv"))
    a = jnp.einsum("bshe,bthe->bhst", q, k) / 2.0
    a = jnp.where(jnp.tril(jnp.ones((S, S), bool)), a, -1e9)
    h = h + jnp.einsum("bhst,bthe,hed->bsd", jax.nn.softmax(a), v, p["wo"])
    return h + jax.nn.gelu(h @ p["w1"]) @ p["w2"]


def logits(p, tokens):
    h = p["emb"][tokens[:, :-1]] + p["pos"]
    return block(p, h) @ p["emb"].T  # the embedding is tied


def nll(p, tokens):
    found = jax.nn.log_softmax(logits(p, tokens))
    return -jnp.take_along_axis(found, tokens[:, 1:, None], -1)[..., 0]


def mean_loss(p, tokens):
    return nll(p, tokens).mean()


def sum_loss(p, tokens):
    return nll(p, tokens).sum()


def masked_mean(p, tokens):
    mask = (tokens[:, 1:] != 0).astype(jnp.float32)
    return (nll(p, tokens) * mask).sum() / mask.sum()


def one_hot_loss(p, tokens):
    return -(jax.nn.one_hot(tokens[:, 1:], V) * jax.nn.log_softmax(logits(p, tokens))).sum(-1).mean()


def arange_loss(p, tokens):
    found = jax.nn.log_softmax(logits(p, tokens)[:, -1])
    return -found[jnp.arange(B), tokens[:, -1]].mean()


def flat_loss(p, tokens):
    found = jax.nn.log_softmax(logits(p, tokens).reshape(B * S, V))
    return -jnp.take_along_axis(found, tokens[:, 1:].reshape(B * S, 1), 1).mean()


def root_loss(p, tokens):
    return jnp.sqrt(jnp.mean(jnp.square(logits(p, tokens) - 1.0)))


def penalised(p, tokens):
    return mean_loss(p, tokens) + 1e-2 * sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(p))


def remat_loss(p, tokens):
    h = jax.checkpoint(block)(p, p["emb"][tokens[:, :-1]])
    return jnp.mean(jnp.square(h))


def scanned_layers(p, tokens):
    def layer(h, w):
        return h + jnp.tanh(h @ w), h.sum()

    h, sums = jax.lax.scan(jax.checkpoint(layer), p["emb"][tokens[:, :-1]], p["layers"])
    return jnp.mean(jnp.square(h)) + 1e-3 * sums.sum()


def recurrent(p, tokens):
    def cell(state, x):
        state = jnp.tanh(state @ p["layers"][0] + x)
        return state, state

    xs = jnp.swapaxes(p["emb"][tokens], 0, 1)
    last, states = jax.lax.scan(cell, jnp.zeros((B, D)), xs)
    return jnp.mean(states**2) + jnp.mean(last)


def dropped(p, tokens):
    h = p["emb"][tokens[:, :-1]]
    keep = jax.random.bernoulli(jax.random.key(3), 0.7, h.shape)
    return jnp.mean(jnp.square(block(p, jnp.where(keep, h / 0.7, 0.0))))


def keys_by_example(p, tokens):
    def one(key, t):
        h = p["emb"][t[:-1]]
        return jnp.mean(jnp.square((h * jax.random.bernoulli(key, 0.5, h.shape)) @ p["w1"]))

    return jax.vmap(one)(jax.random.split(jax.random.key(1), B), tokens).mean()


def grouped(p, tokens):
    h = p["emb"][tokens[:, :-1]].reshape(4, B // 4, S, D)
    return jnp.mean(jnp.square(jnp.einsum("gbsd,df->gbsf", h, p["w1"])))


def whitened_inputs(p, tokens):
    x = tokens[:, :2].astype(jnp.float32)
    x = (x - x.mean(0)) / (x.std(0) + 1e-3)
    h = p["emb"][tokens[:, 1:]] * x[:, :1, None]
    return jnp.mean(jnp.square(block(p, h)))


def permuted_inputs(p, tokens):
    order = jax.random.permutation(jax.random.key(0), B)
    return jnp.mean(jnp.square(block(p, p["emb"][tokens[order, 1:]])))


def views(p, tokens):
    h = p["emb"][tokens]
    return jnp.tanh(jnp.concatenate([h, h[:, ::-1]]) @ p["w1"]) @ p["w2"]


def two_views(p, tokens):
    h = views(p, tokens)
    return jnp.mean(jnp.square(h[:B] - h[B:] + 1.0))


def split_views(p, tokens):
    one, other = jnp.split(views(p, tokens), 2)
    return jnp.mean(jnp.square(one - other + 1.0))


def two_halves(p, tokens):
    h = p["emb"][tokens] @ p["w1"]
    return jnp.mean(jnp.square(h[: B // 2])) + jnp.sum(jnp.square(h[B // 2 :]))
