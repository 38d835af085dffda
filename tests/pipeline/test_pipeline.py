"""A pipeline gives the numbers of one device, whatever the cut and the schedule."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import autosharding as asd
import stage_dp
from autosharding.capture import capture
from autosharding.pipeline import PiecePlanner, pipelined
from autosharding.pipeline.build import equal_sites
from autosharding.pipeline.runner import Held
from autosharding.run_graph import Plain
from autosharding.target import find_target
from cost_model import Cluster
from tests.microbatch.steps import (
    B,
    D,
    S,
    arange_loss,
    arrays,
    block,
    dropped,
    keys_by_example,
    masked_mean,
    nll,
    remat_loss,
    root_loss,
    scanned_layers,
    sum_loss,
)

RATE = 0.1


def deep(p, tokens):
    h = p["emb"][tokens[:, :-1]] + p["pos"]
    for i in range(3):
        h = block(p, h) + jnp.tanh(h @ p["layers"][i])
    found = jax.nn.log_softmax(h @ p["emb"].T)
    return -jnp.take_along_axis(found, tokens[:, 1:, None], -1).sum()


def untied(p, tokens):
    return jnp.mean(jnp.square(block(p, p["emb"][tokens[:, :-1]])))


def experts(p, tokens):
    """Two of four experts for each token, dispatched by einsums."""
    x = p["emb"][tokens[:, :-1]]
    gates = jax.nn.softmax(x @ p["w1"][:, :4])
    best, which = jax.lax.top_k(gates, 2)
    dispatch = (jax.nn.one_hot(which, 4) * best[..., None]).sum(-2)
    sent = jnp.einsum("bse,bsd->ebsd", dispatch, x)
    made = jnp.tanh(jnp.einsum("ebsd,edf->ebsf", sent, p["w1"].reshape(4, D, D)))
    return jnp.mean(jnp.square(block(p, jnp.einsum("ebsf->bsf", made) + x)))


def sgd(loss):
    def step(p, tokens):
        value, grads = jax.value_and_grad(loss)(p, tokens)
        return jax.tree.map(lambda w, g: w - RATE * g, p, grads), value

    return step


def clipped(loss):
    """By the norm of all gradients."""

    def step(p, tokens):
        value, grads = jax.value_and_grad(loss)(p, tokens)
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
        scale = jnp.minimum(1.0, 0.01 / norm)
        return jax.tree.map(lambda w, g: w - RATE * scale * g, p, grads), value, norm

    return step


def with_each(p, tokens):
    """Something for every example besides."""

    def loss(p):
        found = nll(p, tokens)
        return found.mean(), found.sum(-1)

    (value, each), grads = jax.value_and_grad(loss, has_aux=True)(p)
    return jax.tree.map(lambda w, g: w - RATE * g, p, grads), value, each


def looping(p, tokens):
    """The update has a loop larger than that over the microbatches; a result is made of literals."""

    def smaller(_, g):
        for _ in range(100):
            g = g - 0.01 * jnp.tanh(g)
        return g

    value, grads = jax.value_and_grad(untied)(p, tokens)
    grads["w1"] = jax.lax.fori_loop(0, 2, smaller, grads["w1"])
    return jax.tree.map(lambda w, g: w - RATE * g, p, grads), value, jnp.zeros(1)


def apart(x, place):
    """An array of a loop over layers in slices."""
    return np.split(np.asarray(x), place.count, place.dim) if place.count > 1 else [x]


def together(slices, place):
    return np.concatenate([np.asarray(x) for x in slices], place.dim) if place.count > 1 else slices[0]


def run(step, schedule, steps=2, method="auto"):
    """The largest difference, relative to each array's largest element, after some steps of feeding the state on."""
    p, tokens = arrays()
    leaves, tree = jax.tree.flatten((p, tokens))
    graph = capture(lambda *xs: jax.tree.leaves(step(*jax.tree.unflatten(tree, xs))), leaves)
    n = len(leaves) - 1
    state = {i: i for i in range(n)}
    per_stage = 8 // schedule.n_stages
    cluster = Cluster.parse("cpu:8")

    pipeline = pipelined(graph, state, schedule)
    plan = pipeline.plan(cluster, equal_sites(cluster, schedule.n_stages), PiecePlanner(method), None)
    devices = jax.devices()
    runner = pipeline.runner(plan, [devices[i * per_stage :][:per_stage] for i in range(schedule.n_stages)])
    plain = jax.jit(Plain(graph).outputs)
    sliced, one, many = pipeline.sliced, list(leaves), list(leaves)
    worst = 0.0
    for seed in range(steps):
        batch = arrays(seed)[1]
        a = plain([*one[:n], batch, *graph.constants])
        cut = [part for x, place in zip([*many[:n], batch], sliced.inputs, strict=True) for part in apart(x, place)]
        made = runner([*cut, *sliced.graph.constants])
        b = [together([made[k] for k in place.indices], place) for place in sliced.outputs]
        for x, y in zip(a, b, strict=True):
            scale = np.max(np.abs(x), initial=1e-6)
            worst = max(worst, float(np.max(np.abs(np.asarray(x) - np.asarray(y)), initial=0.0) / scale))
        one, many = list(a), list(b)
    return worst, pipeline, runner


F1B = stage_dp.one_f_one_b

CASES = [
    ("tied, a sum loss, deep", sgd(deep), F1B(4, 4)),
    ("tied, a sum loss", sgd(sum_loss), F1B(2, 4)),
    ("two microbatches", sgd(untied), F1B(2, 2)),
    ("clipped by the global norm", clipped(masked_mean), F1B(2, 4)),
    ("dropout", sgd(dropped), F1B(2, 2)),
    ("experts", sgd(experts), F1B(2, 4)),
    ("a loop over layers", sgd(scanned_layers), F1B(2, 4)),
    ("remat", sgd(remat_loss), F1B(2, 4)),
    ("keys by example", sgd(keys_by_example), F1B(2, 2)),
    ("its own position", sgd(arange_loss), F1B(2, 8)),
    ("a root", sgd(root_loss), F1B(2, 4)),
    ("something for each example", with_each, F1B(2, 4)),
    ("loops in the update", looping, F1B(2, 2)),
    ("one microbatch", sgd(deep), F1B(4, 1)),
    ("gpipe", sgd(deep), stage_dp.gpipe(4, 8)),
    ("eager", sgd(deep), stage_dp.eager_one_f_one_b(2, 4)),
    ("zero-bubble", sgd(deep), stage_dp.zero_bubble(4, 4)),
    ("zero-bubble, clipped", clipped(untied), stage_dp.zero_bubble(2, 4)),
    ("interleaved", clipped(deep), stage_dp.interleaved(2, 4, 2)),
]


QUICK = {"tied, a sum loss", "clipped by the global norm", "loops in the update", "interleaved", "zero-bubble, clipped"}


@pytest.mark.parametrize(
    ("step", "schedule"),
    [pytest.param(*c[1:], id=c[0], marks=() if c[0] in QUICK else pytest.mark.slow) for c in CASES],
)
def test_loss_and_state_are_those_of_one_device(step, schedule):
    worst, _, _ = run(step, schedule)
    assert worst <= 1e-5


def test_one_activation_and_one_cotangent_cross_a_boundary():
    _, pipeline, _ = run(sgd(untied), F1B(2, 4), steps=1)
    assert len(pipeline.assignment.received(1, "loop")) == 1
    assert len(pipeline.assignment.received(0, "loop")) == 1
    sizes = [pipeline.graph.values[v].size for p in (0, 1) for v in pipeline.assignment.received(p, "loop")]
    assert sizes == [B * S * D] * 2


def test_as_many_microbatches_are_in_flight_as_the_schedule_says(monkeypatch):
    held = {}
    drop = Held.drop

    def counted(self, microbatch):
        held.setdefault(id(self), []).append(len(self.by_microbatch))
        drop(self, microbatch)

    monkeypatch.setattr(Held, "drop", counted)
    run(sgd(untied), F1B(4, 8), steps=1)
    assert sorted(map(max, held.values()), reverse=True) == [4, 3, 2, 1]


def test_the_public_face(tmp_path):
    p, tokens = arrays()
    plain = jax.jit(sgd(sum_loss))
    step = asd.parallelize(sgd(sum_loss), stages=2, microbatches=4)
    plan = step.plan(p, tokens)
    plan.save(tmp_path / "plan.json")
    assert asd.load_plan(tmp_path / "plan.json") == plan
    assert "pipeline of step" in str(plan)
    assert plan.trace()["traceEvents"]
    again = asd.parallelize(sgd(sum_loss), plan=asd.load_plan(tmp_path / "plan.json"))
    q = r = p
    for seed in range(2):
        tokens = arrays(seed)[1]
        p, one = plain(p, tokens)
        q, two = step(q, tokens)
        r, three = again(r, tokens)
        np.testing.assert_allclose([two, three], [one] * 2, rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), p, q)
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(q)} == {4}
    born = step.init(lambda: jax.tree.map(jnp.asarray, arrays()[0]), rest=(tokens,))
    laid = [x.sharding for x in jax.tree.leaves(born)]
    assert laid == jax.tree.leaves(step.shardings(p, tokens)[0])
    assert np.isfinite(step(born, tokens)[1])
    plain_again = step(p, tokens[:4])[1]  # other shapes are planned anew
    np.testing.assert_allclose(plain_again, plain(p, tokens[:4])[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"stages": 0}, "at least one"),
        ({"stages": 9}, "nearest choice is 8 stages.*Numbers that do: 1, 2, 4, 8"),
        ({"stages": 2.5}, "no number of stages"),
        ({"stages": 2, "microbatches": "many"}, "no number of microbatches"),
        ({"stages": 2, "channel": "pigeon"}, "The channels are auto, device_put, permute, transfer"),
        ({"stages": 2, "microbatches": 3}, "nearest number that does is 2"),
        ({"stages": 2, "schedule": "zero"}, "The schedules are gpipe, 1f1b"),
        ({"stages": 2, "schedule": "interleaved", "chunks": 1}, "takes 2 chunks or more"),
        ({"stages": 2, "mesh": {"x": 8}}, "one stage only"),
    ],
)
def test_what_cannot_be(options, says):
    with pytest.raises(asd.AutoshardingError, match=says):
        asd.parallelize(sgd(sum_loss), **options).plan(*arrays())


def test_the_fastest_number_of_stages():
    plan = asd.plan(sgd(untied), *arrays(), cluster="cpu:4", stages="auto")
    others = [asd.plan(sgd(untied), *arrays(), cluster="cpu:4", stages=n).seconds for n in (1, 2)]
    assert plan.seconds <= min(others)


@pytest.mark.slow
def test_one_mesh_that_does_with_fewer_microbatches_may_be_fastest():
    gpt = find_target("gpt:350m", batch=32)
    found, one = (asd.plan(gpt.step, *gpt.args, cluster="v100:1x4", stages=n).seconds for n in ("auto", 1))
    assert found <= one


@pytest.mark.parametrize("microbatches", [2, "auto"])
def test_the_memory_that_is_named_is_enough(microbatches):
    def loss(p, x):
        return jnp.mean(jnp.square(jnp.tanh(x @ p[0]) @ p[1]))

    args, step = ([np.ones((64, 64), np.float32)] * 2, np.ones((8, 64), np.float32)), sgd(loss)
    with pytest.raises(asd.Infeasible) as error:
        asd.parallelize(step, stages=2, microbatches=microbatches, memory="4KiB").plan(*args)
    said = re.search(r"2 stages in (\d+) microbatches fit ([\d,]+) bytes", str(error.value))
    assert said is not None
    memory = int(said[2].replace(",", ""))
    plan = asd.parallelize(step, stages=2, microbatches=int(said[1]), memory=memory).plan(*args)
    assert max(plan.peaks) <= memory


def test_more_stages_than_layers():
    def step(w, x):
        return w - 0.1 * jax.grad(lambda w: jnp.mean(jnp.square(x @ w)))(w)

    args = np.ones((4, 4), np.float32), np.ones((8, 4), np.float32)
    with pytest.raises(asd.StageError, match=r"cannot be cut into 8 layers.*The nearest choice is (\d)") as error:
        asd.parallelize(step, stages=8, microbatches=2).plan(*args)
    nearest = int(re.findall(r"nearest choice is (\d)", str(error.value))[-1])
    assert len(asd.parallelize(step, stages=nearest, microbatches=2).plan(*args).plans) == nearest


def test_a_loop_over_the_batch_that_cannot_be_cut_is_named():
    def step(w, x):
        def piece(grads, x):
            return grads + jax.grad(lambda w: jnp.mean(jnp.square(jnp.tanh(x @ w) @ w)))(w), None

        return w - jax.lax.scan(piece, jnp.zeros_like(w), x.reshape(2, -1, 4))[0]

    args = np.ones((4, 4), np.float32), np.ones((8, 4), np.float32)
    with pytest.raises(asd.StageError, match=r"work is in scan \(test_pipeline.py:.*with microbatches, does the same"):
        asd.parallelize(step, stages=2, microbatches=2, devices=jax.devices()[:2]).plan(*args)


def test_it_cannot_be_compiled_as_one():
    with pytest.raises(asd.UnsupportedProgram, match="many programs"):
        asd.parallelize(sgd(sum_loss), stages=2, microbatches=2).lower(*arrays())
