"""A step in a loop over microbatches gives what it gave, and does nearly all its work on the batch in the loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import autosharding as asd
from autosharding.capture import capture
from autosharding.microbatch import batch_of, microbatched
from autosharding.microbatch.split import best_labels
from autosharding.microbatch.ways import share
from autosharding.run_graph import Plain

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


LOSSES = [
    mean_loss,
    sum_loss,
    masked_mean,
    one_hot_loss,
    arange_loss,
    flat_loss,
    root_loss,
    penalised,
    remat_loss,
    scanned_layers,
    recurrent,
    dropped,
    keys_by_example,
    grouped,
    whitened_inputs,
]


def split(fn, args, microbatches):
    """(the graph, its graph in microbatches, the share of the work in the loop)."""
    leaves, tree = jax.tree.flatten(args)
    graph = capture(lambda *xs: jax.tree.leaves(fn(*jax.tree.unflatten(tree, xs))), leaves)
    examples = batch_of(graph, STATE)
    labels = best_labels(graph, STATE, examples, microbatches)
    return graph, microbatched(graph, STATE, microbatches), share(labels)


STATE = {1 + i: i for i in range(9)}
"""The gradients stand for the new state."""


def agree(fn, args, microbatches):
    graph, pieces, inside = split(fn, args, microbatches)
    assert any(op.name == "scan" and op.region.times == microbatches for op in pieces.ops if op.region is not None)
    leaves = [jnp.asarray(x) for x in jax.tree.leaves(args)]
    for x, y, name in zip(
        jax.jit(Plain(graph).outputs)([*leaves, *graph.constants]),
        jax.jit(Plain(pieces).outputs)([*leaves, *pieces.constants]),
        graph.output_names,
        strict=True,
    ):
        scale = np.max(np.abs(x), initial=1e-6)
        np.testing.assert_allclose(y, x, rtol=0, atol=2e-6 * scale, err_msg=name)
    return inside


@pytest.mark.parametrize(
    ("loss", "microbatches"),
    [(f, m) for f in LOSSES for m in (2, 4, 8) if (f, m) != (grouped, 8)],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_loss_and_gradients_are_those_of_the_whole_batch(loss, microbatches):
    assert agree(jax.value_and_grad(loss), arrays(), microbatches) >= 0.97


def test_what_examples_have_each_is_put_together():
    def step(p, tokens):
        (_, each), grads = jax.value_and_grad(lambda p: (nll(p, tokens).mean(), nll(p, tokens).max(-1)), has_aux=True)(
            p
        )
        return each, grads, each.max(), (each > 1).all()

    assert agree(lambda p, t: (step(p, t)[0], step(p, t)[1], *step(p, t)[2:]), arrays(), 4) >= 0.97


def test_gradients_accumulated_by_the_user_himself():
    def step(p, tokens):
        def add(total, t):
            loss, grads = jax.value_and_grad(lambda p: mean_of(p, t))(p)
            return jax.tree.map(jnp.add, total, (loss, grads)), loss

        def mean_of(p, t):
            h = p["emb"][t[:, :-1]]
            return jnp.mean(jnp.square(h @ p["w1"]))

        start = jax.tree.map(jnp.zeros_like, (jnp.float32(0), p))
        (loss, grads), losses = jax.lax.scan(add, start, tokens.reshape(8, B // 8, S + 1))
        return loss, grads, losses

    assert agree(step, arrays(), 4) >= 0.97


def test_shared_terms_have_one_accumulator():
    _, pieces, _ = split(jax.value_and_grad(mean_loss), arrays(), 4)
    (loop,) = (op for op in pieces.ops if op.name == "scan" and op.region.times == 4 and not pieces.depths[op.index])
    carried = [lane for lane in loop.region.lanes if lane.is_carried]
    assert len(carried) == 1 + 8  # the loss, and the leaves that it reads: the embedding once


def test_sums_of_narrow_terms_are_wide():
    def loss(p, tokens):
        half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), p)
        return jnp.mean(jnp.square(half["emb"][tokens] @ half["w1"]).astype(jnp.float32))

    _, pieces, _ = split(jax.value_and_grad(loss), arrays(), 4)
    carried = {
        v.dtype for c in pieces.lanes if c.lane.is_carried and c.region.times == 4 for v, _ in c.makes if v.size > 1
    }
    assert carried == {"f32"}


def norm(x, axes):
    return (x - x.mean(axes, keepdims=True)) / jnp.sqrt(x.var(axes, keepdims=True) + 1e-5)


def batch_norm(p, tokens):
    h = p["emb"][tokens] @ p["w1"]
    return jnp.mean(jnp.square(norm(h, (0, 1)) @ p["w2"]))


def contrastive(p, tokens):
    h = jnp.mean(p["emb"][tokens] @ p["w1"], 1) @ p["w2"]
    return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(h @ h.T)))


def capacity(p, tokens):
    x = p["emb"][tokens].reshape(B * (S + 1), D)
    gates = jax.nn.softmax(x @ p["layers"][0][:, :4])
    mask = jax.nn.one_hot(gates.argmax(-1), 4)
    place = jnp.cumsum(mask, 0) * mask
    dispatch = jax.nn.one_hot(place.astype(jnp.int32), 16) * mask[..., None]
    sent = jnp.einsum("tec,td->ecd", dispatch, x)
    out = jnp.einsum("ecd,df->ecf", sent, p["w1"])
    return jnp.mean(jnp.square(jnp.einsum("tec,ecf->tf", dispatch, out)))


@pytest.mark.parametrize(
    ("loss", "op", "line"),
    [
        (batch_norm, "reads a sum over the whole batch", "(norm)"),
        (contrastive, "pairs each example with the others", "(contrastive)"),
        (capacity, "needs the batch dim whole", "(capacity)"),
        (grouped, "needs the batch dim whole", "(grouped)"),
    ],
)
def test_what_couples_examples_is_refused(loss, op, line):
    with pytest.raises(asd.MicrobatchError) as error:
        split(jax.value_and_grad(loss), arrays(), 8)
    text = str(error.value)
    assert op in text
    assert line in text
    assert "would run unsplit" in text


def test_a_number_that_does_not_divide():
    leaves, tree = jax.tree.flatten(arrays())
    graph = capture(lambda *xs: jax.tree.leaves(mean_loss(*jax.tree.unflatten(tree, xs))), leaves)
    with pytest.raises(asd.MicrobatchError, match="nearest number that does is 2"):
        microbatched(graph, STATE, 3)


def test_a_step_without_a_batch():
    def step(p):
        return jax.tree.map(lambda x: x * 0.9, p)

    leaves = jax.tree.leaves(arrays()[0])
    graph = capture(lambda *xs: step(list(xs)), leaves)
    with pytest.raises(asd.MicrobatchError, match="none of its arguments is a batch"):
        microbatched(graph, {i: i for i in range(len(leaves))}, 2)
