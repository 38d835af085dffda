"""Stages by prices: layers found, a table composed of few plans, uneven stages that give the numbers of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import autosharding as asd
import stage_dp
from autosharding.capture import capture
from autosharding.pipeline import PiecePlanner
from autosharding.pipeline.build import NO_LIMIT, Site, cut, forward_of
from autosharding.pipeline.layers import layers_of
from autosharding.pipeline.parts import Parts
from autosharding.pipeline.prices import Pricer, Way
from autosharding.pipeline.same import OnceForSame
from autosharding.pipeline.slices import in_slices
from autosharding.pipeline.stages import SEARCHED
from autosharding.pipeline.tally import price_of
from autosharding.run_graph import Plain
from cost_model import Cluster

WIDTH, BATCH = 16, 8


def blocks(p, x):
    """Equal blocks between an embedding and a head."""
    x = x @ p["embed"]
    for w in p["blocks"]:
        x = x + jnp.tanh(x @ w[0]) @ w[1]
    return jnp.mean(jnp.square(x @ p["head"]))


def step(p, x):
    value, grads = jax.value_and_grad(blocks)(p, x)
    return jax.tree.map(lambda w, g: w - 0.1 * g, p, grads), value


def arguments(n_blocks, width=WIDTH, batch=BATCH):
    rng = np.random.default_rng(0)
    draw = lambda *shape: (rng.standard_normal(shape) / shape[-1]).astype(np.float32)  # noqa: E731
    p = {"blocks": [[draw(width, 4 * width), draw(4 * width, width)] for _ in range(n_blocks)]}
    return p | {"embed": draw(width, width), "head": draw(width, 4 * width)}, draw(batch, width)


def graph_of(*args):
    leaves, tree = jax.tree.flatten(args)
    graph = capture(lambda *xs: jax.tree.leaves(step(*jax.tree.unflatten(tree, xs))), leaves)
    return graph, leaves, {i: i for i in range(len(leaves) - 1)}


def pricer_of(n_blocks, microbatches, **sizes):
    graph, _, state = graph_of(*arguments(n_blocks, **sizes))
    sliced = in_slices(graph, state, frozenset(), 1)
    forward = forward_of(sliced, microbatches)
    return sliced, forward, Pricer(forward, OnceForSame(PiecePlanner()), splits_backward=False)


def test_blocks_are_layers_and_equal_ones_are_known():
    *_, pricer = pricer_of(6, 4)
    assert pricer.kinds.count(pricer.commonest) >= 5
    assert len(set(pricer.kinds)) <= 4


def test_a_range_costs_what_its_layers_cost():
    sliced, forward, pricer = pricer_of(5, 4, width=1024, batch=2048)
    submeshes = stage_dp.submesh_shapes(1, 2)
    table = pricer.table(Cluster.parse("v100:1x2"), submeshes, None)
    n, k = len(pricer.kinds), submeshes.index(stage_dp.Submesh(1, 2))
    starts = [pricer.starts[i] for i in (0, 1, n - 1, n)]
    pieces = cut(sliced, forward, stage_dp.one_f_one_b(3, 4), starts, independent=False)
    for way, price in zip(table.ways[1, n - 1, k], table.layers.fronts[1, n - 1, k], strict=True):
        plan = PiecePlanner()(pieces.pieces[1], way.topology, NO_LIMIT, way.rent)
        direct = price_of(Parts(pieces.pieces[1], plan, pieces.assignment.rounds), 4)
        for name in ("forward", "backward", "after", "state_bytes"):
            assert getattr(price, name) == pytest.approx(getattr(direct, name), rel=0.03)
        for in_flight in (1, 3):
            assert price.bytes(in_flight) == pytest.approx(direct.bytes(in_flight), rel=0.03)


def test_rent_buys_memory():
    *_, pricer = pricer_of(3, 4, width=64, batch=8192)
    (mesh,) = Cluster.parse("v100:1x4").logical_meshes(1)
    free, rented = (pricer._common(Way(mesh, rent)) for rent in (0.0, 1e-6))
    assert rented.state_bytes < free.state_bytes
    assert 4 * rented.seconds + rented.step_seconds >= (4 * free.seconds + free.step_seconds) * (1 - 2e-3)


def test_stages_of_different_sizes_give_the_numbers_of_one_device():
    graph, leaves, state = graph_of(*arguments(3))
    cluster = Cluster.parse("cpu:8")
    sliced = in_slices(graph, state, frozenset(), 3)
    forward = forward_of(sliced, 4)
    starts = layers_of(forward)
    begins = [starts[0], starts[1], starts[2], starts[-1]]
    pipeline = cut(sliced, forward, stage_dp.one_f_one_b(3, 4), begins, independent=False)
    sites = [Site(4, cluster.group(1)), Site(0, cluster.group(4)), Site(6, cluster.group(2))]
    plan = pipeline.plan(cluster, sites, PiecePlanner(), None)
    assert plan.firsts == (4, 0, 6)
    devices = jax.devices()
    runner = pipeline.runner(plan, [devices[s.first : s.first + s.n_devices] for s in sites])
    plain = jax.jit(Plain(graph).outputs)
    one, many = list(leaves), list(leaves)
    for _ in range(2):
        a, b = plain(one + list(graph.constants)), runner([*many, *graph.constants])
        for x, y in zip(a, b, strict=True):
            np.testing.assert_allclose(np.asarray(y), np.asarray(x), rtol=0, atol=1e-5)
        one, many = [*a[:-1], leaves[-1]], [*b[:-1], leaves[-1]]


def test_stages_are_chosen_by_prices_and_replayed(tmp_path):
    args = arguments(4, width=256, batch=64)
    chosen = asd.plan(step, *args, cluster="cpu:4", stages=2, microbatches=4)
    assert chosen.firsts == (0, 2)
    chosen.save(tmp_path / "plan.json")
    loaded = asd.load_plan(tmp_path / "plan.json")
    assert loaded == chosen
    run = asd.parallelize(step, plan=loaded, devices=jax.devices()[:4])
    (p, loss), (q, other) = jax.jit(step)(*args), run(*args)
    np.testing.assert_allclose(other, loss, rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6), p, q)


def test_chunks_are_chosen_by_prices():
    args = arguments(6, width=256, batch=64)
    given = {"stages": 2, "microbatches": 4}
    run = asd.parallelize(step, **given, schedule="interleaved", devices=jax.devices()[:2], cluster="cpu:2")
    chosen = run.plan(*args)
    assert chosen.schedule.n_chunks >= 2
    fixed = asd.plan(step, *args, cluster="cpu:2", **given, schedule="interleaved", chunks=2)
    assert fixed.schedule.n_chunks == 2
    assert chosen.seconds <= fixed.seconds
    (p, loss), (q, other) = jax.jit(step)(*args), run(*args)
    np.testing.assert_allclose(other, loss, rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6), p, q)


def test_chunks_that_prices_cannot_choose_are_alike_and_it_is_said():
    args, said = arguments(1), []
    given = {"cluster": "cpu:2", "stages": 2, "microbatches": 2, "schedule": "interleaved", "chunks": 3}
    assert asd.plan(step, *args, **given, progress=said.append).schedule.n_pieces == 6
    assert any("not chosen by prices" in text for text in said)


def test_the_schedule_is_chosen_by_prices():
    args = arguments(6, width=256, batch=64)
    given = {"cluster": "cpu:2", "stages": 2, "microbatches": 4}
    found = {name: asd.plan(step, *args, **given, schedule=name) for name in (*SEARCHED, "auto")}
    best = min((found[name] for name in SEARCHED), key=lambda plan: plan.seconds)
    assert found["auto"].schedule.name == best.schedule.name
    assert found["auto"].seconds == pytest.approx(best.seconds)
