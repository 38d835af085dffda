"""Loops over layers in a pipeline: cut by slices, whose arrays stay on their stages."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import autosharding as asd
from autosharding.capture import capture
from autosharding.pipeline import PiecePlanner
from autosharding.pipeline.build import cut, equal_sites, forward_of, pipelined
from autosharding.pipeline.layers import layers_of
from autosharding.pipeline.slices import in_slices
from autosharding.pipeline.tally import price_of
from autosharding.pipeline.travel import Travel, seconds_of, travels_of
from autosharding.run_graph import Plain
from cost_model import Cluster, Link
from stage_dp import one_f_one_b

LAYERS, WIDTH, BATCH, VOCABULARY, RATE = 4, 16, 8, 12, 0.1


def arguments(layers=LAYERS):
    rng = np.random.default_rng(0)
    draw = lambda *shape: (rng.standard_normal(shape) / 4).astype(np.float32)  # noqa: E731
    p = {
        "embed": draw(VOCABULARY, WIDTH),
        "w": draw(layers, WIDTH, WIDTH),
        "b": draw(WIDTH, layers),
        "scale": draw(layers),
    }
    moments = jax.tree.map(np.zeros_like, p)
    return (p, moments), rng.integers(0, VOCABULARY, (BATCH,)).astype(np.int32)


def loss_fn(p, tokens, reverse=False):
    """The biases are stacked along their last dim, the scales are cast, each layer knows its number."""

    @jax.checkpoint
    def layer(h, xs):
        w, b, scale, n = xs
        h = h + scale * jnp.tanh(h @ w + b) / (1 + n)
        return h, jnp.mean(jnp.square(h), axis=-1)

    stacks = p["w"], p["b"].T, p["scale"].astype(jnp.bfloat16).astype(jnp.float32), jnp.arange(p["w"].shape[0])
    h, sizes = jax.lax.scan(layer, p["embed"][tokens], stacks, reverse=reverse)
    found = jax.nn.log_softmax(h @ p["embed"].T)
    return -jnp.take_along_axis(found, tokens[:, None], -1).sum() + 1e-2 * sizes.mean(0).sum()


def step(state, tokens, reverse=False):
    """Momentum, clipped by the norm of all gradients; the norm of the new parameters besides."""
    p, moments = state
    value, grads = jax.value_and_grad(loss_fn)(p, tokens, reverse)
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
    moments = jax.tree.map(lambda m, g: 0.9 * m + g * jnp.minimum(1.0, 0.5 / norm), moments, grads)
    p = jax.tree.map(lambda w, m: w - RATE * m, p, moments)
    return (p, moments), (value, sum(jnp.max(jnp.abs(w)) for w in jax.tree.leaves(p)))


def backwards(state, tokens):
    return step(state, tokens, reverse=True)


def graph_of(fn, *args):
    leaves, tree = jax.tree.flatten(args)
    graph = capture(lambda *xs: jax.tree.leaves(fn(*jax.tree.unflatten(tree, xs))), leaves)
    return graph, leaves, {i: i for i in range(len(leaves) - 1)}


def slices_of(x, place):
    return np.split(np.asarray(x), place.count, place.dim) if place.count > 1 else [x]


@pytest.mark.parametrize("fn", [step, backwards])
@pytest.mark.parametrize("pieces", [2, 3])
def test_slices_do_what_the_loop_did(fn, pieces):
    graph, leaves, state = graph_of(fn, *arguments())
    sliced = in_slices(graph, state, frozenset({0, 1}), pieces)
    given = [part for x, place in zip(leaves, sliced.inputs, strict=True) for part in slices_of(x, place)]
    many = jax.jit(Plain(sliced.graph).outputs)(given + list(sliced.graph.constants))
    one = jax.jit(Plain(graph).outputs)(leaves + list(graph.constants))
    for x, place in zip(one, sliced.outputs, strict=True):
        found = [np.asarray(many[i]) for i in place.indices]
        np.testing.assert_allclose(
            np.concatenate(found, place.dim) if place.count > 1 else found[0], x, rtol=2e-5, atol=1e-7
        )


def test_all_that_belongs_to_layers_is_in_slices():
    graph, _, state = graph_of(step, *arguments())
    sliced = in_slices(graph, state, frozenset({0, 1}), 2)
    names = graph.input_names
    assert [p.count for p in sliced.inputs] == [2, 1, 2, 2, 2, 1, 2, 2, 1]  # b, embed, scale, w and their moments
    assert [p.dim for p in sliced.inputs] == [1, 0, 0, 0, 1, 0, 0, 0, 0]
    assert sliced.graph.input_names[:3] == (f"{names[0]}[:, 0:2]", f"{names[0]}[:, 2:4]", names[1])
    assert sliced.donated == {0, 1, 2}
    assert sliced.state == {i: i for i in range(14)}
    loops = [op for op in sliced.graph.ops if op.name == "scan"]
    assert [op.params["length"] for op in loops] == [2, 2, 2, 2]
    assert not any(op.name in ("concatenate", "slice") for op in sliced.graph.ops)


def test_a_loop_over_time_stays_whole():
    def recurrent(w, xs):
        def loss(w):
            return jnp.mean(jax.lax.scan(lambda h, x: (jnp.tanh(h @ w + x), None), jnp.zeros((2, 4)), xs)[0])

        return w - jax.grad(loss)(w)

    graph, _, state = graph_of(recurrent, np.ones((4, 4), np.float32), np.ones((6, 2, 4), np.float32))
    assert in_slices(graph, state, frozenset(), 2).graph is graph


def trained(run, state, steps=3):
    """(the state, what else is returned) after some steps."""
    said = []
    for seed in range(steps):
        tokens = np.random.default_rng(seed).integers(0, VOCABULARY, (BATCH,)).astype(np.int32)
        state, found = run(state, tokens)
        said.append(found)
    return state, said


@pytest.mark.parametrize("stages", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_training_in_stages_is_that_of_one_device(stages):
    state, tokens = arguments()
    run = asd.parallelize(step, stages=stages, microbatches=4)
    one, many = trained(jax.jit(step), state), trained(run, state)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-6), one, many)
    weights, plan = many[0][0]["w"], run.plan(state, tokens)
    assert {p.topology.n_devices for p in plan.plans} == {8 // stages}
    assert weights.sharding.mesh.shape["stages"] == stages  # each stage holds its own layers
    assert {s.index[0].stop - s.index[0].start for s in weights.addressable_shards} == {LAYERS // stages}


@pytest.mark.slow
def test_layers_that_stages_cannot_share_equally():
    state, tokens = arguments(6)
    run = asd.parallelize(step, stages=4, microbatches=2)
    one, many = trained(jax.jit(step), state, 2), trained(run, state, 2)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-6), one, many)
    assert many[0][0]["w"].sharding == run.shardings(state, tokens)[0][0]["w"]


def test_keys_that_a_loop_hands_on():
    """Each microbatch makes the same key in the loop, and the next slice goes on with it."""

    def loss(p, tokens, key):
        def layer(carry, w):
            (h, key), (key, own) = carry, jax.random.split(carry[1])
            return (h + jnp.tanh(h @ w) * jax.random.bernoulli(own, 0.9, h.shape), key), None

        (h, _), _ = jax.lax.scan(layer, (p["embed"][tokens], key), p["w"])
        return jnp.mean(jnp.square(h))

    def dropped(p, tokens, key):
        value, grads = jax.value_and_grad(loss)(p, tokens, key)
        return jax.tree.map(lambda w, g: w - RATE * g, p, grads), value

    (p, _), tokens = arguments()
    p = {"embed": p["embed"], "w": p["w"]}
    run = asd.parallelize(dropped, stages=2, microbatches=4, devices=jax.devices()[:2])
    one, many = (fn(p, tokens, jax.random.key(3)) for fn in (jax.jit(dropped), run))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-6), one, many)


@pytest.mark.parametrize("layers", [LAYERS, 6])
def test_slices_that_travel_are_priced(layers):
    run = asd.parallelize(step, stages=4, microbatches=4)
    program, graph = run.program(*arguments(layers)), run.graph(*arguments(layers))
    pipeline, plan = program.pipeline, program.plan
    travels = travels_of(pipeline.sliced, pipeline.pieces, [p.topology.n_devices for p in plan.plans])
    weights = [p.indices for v, p in zip(graph.inputs, pipeline.sliced.inputs, strict=True) if len(v.shape) == 3]
    assert {w in [t.inputs for t in travels] for w in weights} == {layers % 4 > 0}
    parts = pipeline.parts(plan.plans)
    for stage, (priced, own) in enumerate(zip(plan.prices, parts, strict=True)):
        held = sum(t.held([own]) for t in travels if t.first == stage)
        travelling = any(stage in t.stages and stage != t.first for t in travels)
        assert priced.state_bytes - price_of(own, 4).state_bytes == held
        assert (priced.before > price_of(own, 4).before) == (priced.after > price_of(own, 4).after) == travelling


def test_slices_leave_their_stage_one_after_another():
    link = Link(bandwidth=1e3, latency=0.5)
    travels = [Travel(range(3), (0, 1, 2)), Travel(range(3, 6), (0, 0, 1))]
    found = seconds_of(travels, [1000, 1000, 2000, 500, 500, 500], [2, 1, 2], [[link] * 3] * 3)
    assert found == [0.0, pytest.approx(1.5 + 1.5 + 1.0), pytest.approx(1.5 + 1.5)]


@pytest.mark.parametrize("layers", [4, pytest.param(6, marks=pytest.mark.slow)])
def test_loops_are_cut_where_any_number_of_stages_may_be_best(layers, tmp_path):
    """Where a collective takes a second to start, stages are best."""
    cluster = Cluster.parse("cpu:4")
    slow = replace(cluster, wiring=replace(cluster.wiring, start=1.0))
    state, tokens = arguments(layers)
    given = {"devices": jax.devices()[:4], "microbatches": 4}
    run = asd.parallelize(step, stages="auto", cluster=slow, **given)
    plan = run.plan(state, tokens)
    assert plan.schedule.n_stages > 1
    one, many = trained(jax.jit(step), state, 2), trained(run, state, 2)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-6), one, many)
    plan.save(tmp_path / "plan.json")
    again = asd.parallelize(step, plan=asd.load_plan(tmp_path / "plan.json"), **given)
    assert again.plan(state, tokens) == plan


def test_uneven_slices_are_told_by_the_plan():
    """Where a stage has slices that others have not as many of, its plan says how finely the loop was cut."""
    graph, _, state = graph_of(step, *arguments(6))
    cluster = Cluster.parse("cpu:2")
    sliced = in_slices(graph, state, frozenset(), 6)
    forward = forward_of(sliced, 2)
    starts = layers_of(forward)
    pipeline = cut(sliced, forward, one_f_one_b(2, 2), [0, starts[2], starts[-1]], independent=False)
    plan = pipeline.plan(cluster, equal_sites(cluster, 2), PiecePlanner(), None)
    assert plan.slices == 6
    told = pipelined(graph, state, plan.schedule, plan.cuts, slices=plan.slices)
    told.check(plan)


def scanned(p, tokens):
    """No gradients: the logarithms per example, and the sizes of all layers."""

    def layer(h, xs):
        w, b = xs
        h = h + jnp.tanh(h @ w + b)
        return h, jnp.mean(jnp.square(h), axis=-1)

    h, sizes = jax.lax.scan(layer, p["embed"][tokens], (p["w"], p["b"].T))
    return jax.nn.log_softmax(h @ p["embed"].T), sizes.T


@pytest.mark.parametrize("layers", [LAYERS, pytest.param(3, marks=pytest.mark.slow)])
def test_weights_of_inference_stay_on_their_stages(layers):
    (p, _), tokens = arguments(layers)
    run = asd.parallelize(scanned, stages=2, microbatches=4)
    lies = run.shardings(p, tokens)[0]["w"]
    assert ("stages" in lies.mesh.axis_names) == (layers % 2 == 0)
    pipeline, plan = run.program(p, tokens).pipeline, run.plan(p, tokens)
    travels = travels_of(pipeline.sliced, pipeline.pieces, [each.topology.n_devices for each in plan.plans])
    assert [t.comes_back for t in travels] == [False] * (2 * (layers % 2))  # weights and biases
    lies = run.shardings(p, tokens)[0]
    for state in (p, jax.device_put(p, lies)):
        for x, y in zip(run(state, tokens), jax.jit(scanned)(p, tokens), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
