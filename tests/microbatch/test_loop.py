"""A step in a loop over microbatches gives what it gave, and does nearly all its work on the batch in the loop."""

import re
from pathlib import Path

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
from benchmarks.microbatch import EXACT, spread
from tests.microbatch.steps import (
    B,
    D,
    S,
    arange_loss,
    arrays,
    dropped,
    flat_loss,
    grouped,
    keys_by_example,
    masked_mean,
    mean_loss,
    nll,
    one_hot_loss,
    penalised,
    permuted_inputs,
    recurrent,
    remat_loss,
    root_loss,
    scanned_layers,
    split_views,
    sum_loss,
    two_halves,
    two_views,
    whitened_inputs,
)

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
    permuted_inputs,
    two_views,
    split_views,
    two_halves,
]

ALIKE = {sum_loss, one_hot_loss, flat_loss, penalised, keys_by_example, split_views, two_halves}
"""Losses that another one resembles."""

ROUNDING = 5e-6
"""Of sums in another order, over the largest element: 3.2e-6 for the recurrent step on one kind of processor."""

IN_FOURS = {grouped, permuted_inputs, two_halves}
"""Losses that are followed into four pieces of the batch, not into single examples."""


STATE = {1 + i: i for i in range(9)}
"""The gradients stand for the new state."""


def captured(fn, args):
    leaves, tree = jax.tree.flatten(args)
    return capture(lambda *xs: jax.tree.leaves(fn(*jax.tree.unflatten(tree, xs))), leaves)


def split(fn, args, microbatches):
    """(the graph, its graph in microbatches)."""
    graph = captured(fn, args)
    return graph, microbatched(graph, STATE, microbatches)


def ran(graph, args):
    leaves = [jnp.asarray(x) for x in jax.tree.leaves(args)]
    return jax.jit(Plain(graph).outputs)([*leaves, *graph.constants])


def agree(fn, args, *microbatches):
    graph = captured(fn, args)
    whole = ran(graph, args)
    for m in microbatches:
        labels = best_labels(graph, STATE, batch_of(graph, STATE), m)
        assert share(labels) >= 0.97
        pieces = microbatched(graph, STATE, m)
        assert any(op.name == "scan" and op.region.times == m for op in pieces.ops if op.region is not None)
        for x, y, name in zip(whole, ran(pieces, args), graph.output_names, strict=True):
            scale = np.max(np.abs(x), initial=1e-6)
            np.testing.assert_allclose(y, x, rtol=0, atol=ROUNDING * scale, err_msg=f"{name}, {m} microbatches")


@pytest.mark.parametrize(
    "loss", [pytest.param(f, marks=[pytest.mark.slow] * (f in ALIKE), id=f.__name__) for f in LOSSES]
)
def test_loss_and_gradients_are_those_of_the_whole_batch(loss):
    agree(jax.value_and_grad(loss), arrays(), 2, 4 if loss in IN_FOURS else 8)


def with_each(p, tokens):
    """Something for every example besides, and of all of them."""

    def loss(p):
        found = nll(p, tokens)
        return found.mean(), found.max(-1)

    (_, each), grads = jax.value_and_grad(loss, has_aux=True)(p)
    return each, grads, each.max(), (each > 1).all()


def accumulated(p, tokens):
    """Gradients accumulated by the user himself."""

    def mean_of(p, t):
        return jnp.mean(jnp.square(p["emb"][t[:, :-1]] @ p["w1"]))

    def add(total, t):
        loss, grads = jax.value_and_grad(mean_of)(p, t)
        return jax.tree.map(jnp.add, total, (loss, grads)), loss

    start = jax.tree.map(jnp.zeros_like, (jnp.float32(0), p))
    (loss, grads), losses = jax.lax.scan(add, start, tokens.reshape(8, B // 8, S + 1))
    return loss, grads, losses


@pytest.mark.parametrize("step", [with_each, accumulated])
def test_what_examples_have_each_is_put_together(step):
    agree(step, arrays(), 4)


STEPS = {
    "a masked mean": jax.value_and_grad(masked_mean),
    "a root": jax.value_and_grad(root_loss),
    "dropout": jax.value_and_grad(dropped),
    "something for each example": with_each,
    "accumulated by the user": accumulated,
}


@pytest.mark.parametrize("microbatches", [2, 4, 8])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "accumulated by the user" else pytest.mark.slow) for n in STEPS]
)
def test_on_eight_devices(name, microbatches):
    graph, pieces = split(STEPS[name], arrays(), microbatches)
    leaves = jax.tree.leaves(arrays())
    for x, y, result in zip(ran(graph, arrays()), spread(pieces, STATE, leaves), graph.output_names, strict=True):
        np.testing.assert_allclose(y, x, rtol=0, atol=EXACT * np.max(np.abs(x), initial=1e-6), err_msg=result)


def test_shared_terms_have_one_accumulator():
    _, pieces = split(jax.value_and_grad(mean_loss), arrays(), 4)
    (loop,) = (op for op in pieces.ops if op.name == "scan" and op.region.times == 4 and not pieces.depths[op.index])
    carried = [lane for lane in loop.region.lanes if lane.is_carried]
    assert len(carried) == 1 + 8  # the loss, and the leaves that it reads: the embedding once


def test_sums_of_narrow_terms_are_wide():
    def loss(p, tokens):
        half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), p)
        return jnp.mean(jnp.square(half["emb"][tokens] @ half["w1"]).astype(jnp.float32))

    _, pieces = split(jax.value_and_grad(loss), arrays(), 4)
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
    ("loss", "op", "why", "line"),
    [
        (batch_norm, "sub", "reads a sum over the whole batch", "x - x.mean"),
        (contrastive, "dot_general", "pairs each example with the others", "h @ h.T"),
        (capacity, "cumsum", "needs the batch dim whole", "jnp.cumsum(mask, 0)"),
        (grouped, "reshape", "needs the batch dim whole", ".reshape(4, B // 4, S, D)"),
    ],
)
def test_what_couples_examples_is_refused(loss, op, why, line):
    with pytest.raises(asd.MicrobatchError) as error:
        split(jax.value_and_grad(loss), arrays(), 8)
    said = re.search(r"microbatches: (\S+) \((\w+\.py):(\d+) \((\w+)\)\) (.+?), while", str(error.value))
    assert said is not None
    assert (said[1], said[5]) == (op, why)
    source = Path(__file__).with_name(said[2]).read_text().splitlines()
    assert line in source[int(said[3]) - 1]
    assert re.search(r"\d+% of the work on the batch would run unsplit", str(error.value))


def every_second(p, tokens):
    """What is done with the gradients depends on something known before."""
    value, grads = jax.value_and_grad(mean_loss)(p, tokens)
    w = jax.lax.cond(p["pos"][0, 0] > 0, lambda g: g @ g.T @ g @ g.T @ g, lambda g: g, grads["w1"])
    return value, {**grads, "w1": w}


def test_branches_on_gradients_wait_for_their_sums():
    agree(every_second, arrays(), 2)


def several_steps(p, tokens):
    """Each with what the one before it made of the parameters."""

    def one(p, piece):
        value, grads = jax.value_and_grad(mean_loss)(p, piece)
        return jax.tree.map(lambda w, g: w - 0.1 * g, p, grads), value

    return jax.lax.scan(one, p, tokens.reshape(2, B // 2, -1))


def test_steps_in_a_loop_of_the_users_own_are_refused_by_their_op():
    with pytest.raises(asd.MicrobatchError, match=r"\w+ \(steps.py:\d+ \(.*\)\) reads a sum over the whole batch"):
        split(several_steps, arrays(), 2)


def sorted_by_expert(p, tokens):
    x = p["emb"][tokens].reshape(B * (S + 1), D)
    order = jnp.argsort((x @ p["layers"][0][:, :4]).argmax(-1))
    counts = jnp.full((4,), B * (S + 1) // 4)
    out = jax.lax.ragged_dot(x[order], p["w1"].reshape(4, D, D), counts)
    return jnp.mean(jnp.square(x.at[order].add(out) @ p["w1"]))


def test_what_is_sorted_over_the_batch_is_named_though_it_could_run_whole():
    with pytest.raises(
        asd.MicrobatchError, match=r"sort \(test_loop.*sorted_by_expert\)\) needs the batch dim whole"
    ) as e:
        split(jax.value_and_grad(sorted_by_expert), arrays(), 2)
    assert "microbatch_semantics" not in str(e.value), "statistics of its own would not help it"


def fast_norm(x):
    mean, square = x.mean((0, 1)), jnp.square(x).mean((0, 1))
    variance = jnp.maximum(0.0, square - jnp.square(mean))
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5), (mean, variance)


def plain_norm(x):
    return norm(x, (0, 1)), (x.mean((0, 1)), x.max((0, 1)))


def layers_of_norms(normalise):
    def loss(p, tokens):
        h, first = normalise(p["emb"][tokens] @ p["w1"])
        h, second = normalise(jax.nn.gelu(h) @ p["w2"])
        mask = (tokens != 0).astype(jnp.float32)
        return (jnp.square(h - 1.0).mean(-1) * mask).sum() / mask.sum(), (first, second)

    def step(p, tokens):
        (loss_, (first, second)), grads = jax.value_and_grad(loss, has_aux=True)(p, tokens)
        return loss_, grads, first[0], 0.9 + 0.1 * first[0], 0.1 * second[0], first[1]

    return step


@pytest.mark.parametrize("normalise", [fast_norm, plain_norm])
def test_each_microbatch_with_its_own_statistics(normalise):
    p, tokens = arrays()
    tokens[:, 0] = 0  # as many tokens that count in each microbatch
    tokens[:, 1:] = np.maximum(tokens[:, 1:], 1)
    step, m = layers_of_norms(normalise), 2
    graph = captured(step, (p, tokens))
    with pytest.raises(asd.MicrobatchError, match="reads a sum over the whole batch"):
        microbatched(graph, STATE, m)
    assert share(best_labels(graph, STATE, B, m, independent=True)) >= 0.97
    pieces = microbatched(graph, STATE, m, independent=True)
    found = ran(pieces, (p, tokens))
    each = [jax.tree.leaves(jax.jit(step)(p, tokens[k::m])) for k in range(m)]
    expected = [np.mean(xs, 0) for xs in zip(*each, strict=True)]
    if normalise is plain_norm:
        expected[-1] = np.max([xs[-1] for xs in each], 0)
    for y, x in zip(found, expected, strict=True):
        np.testing.assert_allclose(y, x, rtol=0, atol=3e-6 * np.max(np.abs(x), initial=1e-6))


def test_statistics_of_each_microbatch_on_request():
    def step(p, tokens):
        value, grads = jax.value_and_grad(batch_norm)(p, tokens)
        return jax.tree.map(lambda w, g: w - 0.1 * g, p, grads), value

    with pytest.raises(asd.MicrobatchError, match="microbatch_semantics"):
        asd.plan(step, *arrays(), cluster="cpu:1", microbatches=4)
    options = {"cluster": "cpu:1", "microbatches": 4, "microbatch_semantics": "independent"}
    plan = asd.plan(step, *arrays(), **options)
    assert plan.independent
    assert "4, each with its own statistics" in str(plan)
    with pytest.raises(asd.MicrobatchError, match="neither 'whole' nor"):
        asd.plan(step, *arrays(), cluster="cpu:1", microbatch_semantics="each")


def test_a_number_that_does_not_divide():
    graph = captured(mean_loss, arrays())
    with pytest.raises(asd.MicrobatchError, match="nearest number that does is 2"):
        microbatched(graph, STATE, 3)


def test_a_step_without_a_batch():
    def step(p):
        return jax.tree.map(lambda x: x * 0.9, p)

    leaves = jax.tree.leaves(arrays()[0])
    graph = capture(lambda *xs: step(list(xs)), leaves)
    assert microbatched(graph, {i: i for i in range(len(leaves))}, 1) is graph
    with pytest.raises(asd.MicrobatchError, match="none of its arguments is a batch"):
        microbatched(graph, {i: i for i in range(len(leaves))}, 2)
