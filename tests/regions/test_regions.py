"""Control flow planned inside: the numbers of `jax.jit`, the plan's collectives, prices by how often things run."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from region_models import MODELS, llama_shapes, llama_step, normal

import autosharding as asd
from autosharding.capture import capture
from autosharding.capture_regions import ASSUMED_TRIPS
from autosharding.compare import compare
from autosharding.graph import Lane, Port, Region

MESH = {"x": 2, "y": 4}


@functools.cache
def model(name):
    """The step, its arguments, and what one device makes of two steps."""
    step, (state, *rest) = MODELS[name]()
    alone = jax.jit(step)
    first = alone(state, *rest)
    return step, (state, *rest), (first, alone(first[0], *rest))


def close(ours, theirs):
    """Equal up to the order of sums."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=2e-4, atol=2e-5)


@functools.cache
def planned_is_run(name, method):
    """Plan, compile, compare; run two steps beside one device. Returns the comparison and the plan."""
    fn, (state, *rest), (first, second) = model(name)
    step = asd.parallelize(fn, method=method, mesh=MESH)
    plan = step.plan(state, *rest)
    compared = compare(plan, step.compile(state, *rest))
    assert compared.agrees, str(compared)
    assert not plan.unresolved
    ours = step(state, *rest)
    close(ours, first)
    close(step(ours[0], *rest), second)
    return compared, plan


@pytest.mark.parametrize("method", ["auto", "fsdp", "megatron"])
@pytest.mark.parametrize("name", ["llama", "lstm", "loops", "loss_scaling", "decode"])
def test_numbers_and_collectives(name, method):
    _, plan = planned_is_run(name, method)
    assert any(any(s.factors) for s in plan.steps if s.times > 1 or name == "loss_scaling")


@pytest.mark.parametrize("name", ["until", "nested", "branches", "updates", "rows"])
def test_numbers_and_collectives_of_more_steps(name):
    planned_is_run(name, "auto")


@pytest.mark.parametrize("method", ["auto", "fsdp", "megatron"])
def test_what_is_recomputed_is_kept_and_draws_the_same_numbers(method):
    def block(w, x, key):
        return jnp.tanh(x @ w) * jax.random.bernoulli(key, 0.5, (x.shape[0], w.shape[1]))

    def step(block, w, x, key):
        def loss(w):
            keys = jax.random.split(key)
            return jnp.mean(block(w[1], block(w[0], x, keys[0]), keys[1]) ** 2)

        return jax.tree.map(lambda w, g: w - 0.1 * g, w, jax.grad(loss)(w))

    args = [normal(16, 64), normal(64, 16)], normal(32, 16), jax.random.key(7)
    products = []
    for kind in (block, jax.checkpoint(block)):
        one = functools.partial(step, kind)
        parallel = asd.parallelize(one, method=method, mesh=MESH)
        close(parallel(*args), jax.jit(one)(*args))
        text = parallel.lower(*args).as_text()
        assert ("optimization_barrier" in text) == (kind is not block)
        products.append(text.count("stablehlo.dot_general"))
    assert products[1] == products[0] + 2  # of each block once more


def test_data_parallel_layers_stay_split_and_gradients_are_reduced_once():
    compared, plan = planned_is_run("lstm", "data")
    body = [s for s in plan.steps if s.times == 6 and s.op == "dot_general"]
    assert len(body) >= 4
    assert all(("x", "y") in dict(s.factors).values() for s in body)
    reduced = [c for c in plan.collectives if c.kind in ("all-reduce", "reduce-scatter") and "[16,64]" in c.value]
    assert reduced
    assert all(c.times == 1 for c in reduced)
    assert 0.8 < compared.memory_ratio < 1.25


def test_memory_of_scanned_layers_is_near_what_xla_takes():
    compared, _ = planned_is_run("llama", "megatron")
    assert 0.8 < compared.memory_ratio < 1.25


# ---- the graph ---------------------------------------------------------------------------------------------------

F32 = jax.ShapeDtypeStruct((8, 4), jnp.float32)


def names(graph):
    return [op.name for op in graph.ops]


def test_a_body_lies_between_its_borders():
    def f(x):
        c, y = jax.lax.scan(lambda c, x: (jnp.sin(c), c * x), jnp.zeros(4), x)
        return [c, y]

    graph = capture(f, [F32])
    assert names(graph) == ["broadcast_in_dim", "scan", "sin", "mul", "scan.end"]
    assert graph.depths == (0, 0, 1, 1, 0)
    assert graph.op_times == (1, 1, 8, 8, 8)
    assert [str(lane.lane) for lane in graph.lanes] == ["0.0,1.0>0.0,1.0", "0.1*>0.1", "1.1>1.1*"]
    assert [lane.lane.is_carried for lane in graph.lanes] == [True, False, False]


def test_what_nobody_needs_leaves_no_lane():
    def f(x):
        (_, b), y = jax.lax.scan(lambda c, x: ((jnp.sin(c[0]), c[1] + x), (jnp.cos(c[0]), x * 2)), (x[0], x[0]), x)
        return [b, y[1]]

    graph = capture(f, [F32])
    assert "sin" not in names(graph)
    assert "cos" not in names(graph)
    assert len(graph.lanes) == 3


def test_a_carry_that_another_carry_needs_stays():
    def f(x):
        return [jax.lax.scan(lambda c, x: ((jnp.sin(c[0]), c[1] + c[0] * x), None), (x[0], x[0]), x)[0][1]]

    assert names(capture(f, [F32])).count("sin") == 1


def test_broadcasts_are_made_inside():
    def f(x, w):
        wide = jnp.broadcast_to(w, (64, 8, 4))
        return [jax.lax.scan(lambda c, x: (c + jnp.sum(wide * x), None), 0.0, x)[0]]

    graph = capture(f, [F32, jax.ShapeDtypeStruct((4,), jnp.float32)])
    at = names(graph).index("broadcast_in_dim")
    assert graph.depths[at] == 1
    assert max(v.size for v in graph.ops[names(graph).index("scan")].values) == F32.size


@pytest.mark.parametrize(
    ("start", "goes_on", "by", "known"),
    [
        (0, lambda i: i < 10, 3, True),
        (2, lambda i: i <= 10, 2, True),
        (9, lambda i: i > 0, -2, True),
        (9, lambda i: i >= -1, -5, True),
        (5, lambda i: i < 5, 1, True),
        (0, lambda i: i * i < 40, 1, False),
    ],
)
def test_trip_counts(start, goes_on, by, known):
    def f(x):
        return jax.lax.while_loop(lambda s: goes_on(s[0]), lambda s: (s[0] + by, s[1] + 1), (start, x))[1:]

    graph = capture(f, [jax.ShapeDtypeStruct((), jnp.int32)])
    runs = int(f(jnp.int32(0))[0])
    inside = graph.ops[graph.borders[0][1]].outputs
    assert {graph.times[v.id] for v in inside} == {runs if known else ASSUMED_TRIPS}


def test_a_loop_bound_that_moves_is_not_known():
    def f(x):
        return jax.lax.while_loop(lambda s: s[0] < s[1], lambda s: (s[0] + 2, s[1] + 1, s[2] + x), (0, 9, x))[2:]

    graph = capture(f, [jax.ShapeDtypeStruct((), jnp.int32)])
    assert max(graph.times) == ASSUMED_TRIPS


def test_closed_over_arrays_reach_inner_bodies_once():
    table = jnp.asarray(np.ones((4, 4), np.float32))

    def f(x):
        def outer(c, _):
            c, _ = jax.lax.scan(lambda c, _: (jnp.cos(c @ table), None), c, None, length=2)
            return c @ table, None

        return [jax.lax.scan(outer, x, None, length=3)[0]]

    graph = capture(f, [F32])
    assert len(graph.constants) == 1
    assert max(graph.times) == 6


def test_phases_inside_a_body_are_those_of_its_op():
    def f(w, x):
        return [jax.grad(lambda w: jax.lax.scan(lambda c, _: (jnp.sin(c @ w), None), x, None, length=3)[0].sum())(w)]

    graph = capture(f, [jax.ShapeDtypeStruct((4, 4), jnp.float32), F32])
    spans = [{op.phase for op in graph.ops[a : b + 1]} for a, b in (graph.borders[o] for o in graph.borders)]
    assert spans == [{"forward"}, {"backward"}]


def test_a_region_whose_lanes_do_not_fit_is_refused():
    def f(x):
        return [jax.lax.scan(lambda c, x: (c + x, None), x[0], x)[0]]

    graph = capture(f, [F32])
    at = names(graph).index("scan")
    broken = Region("scan", 1, 8, (Lane((Port(0, 0),), (Port(0, 0),)),))
    ops = [*graph.ops]
    for i in graph.borders[at]:
        ops[i] = replace(graph.ops[i], region=broken)
    with pytest.raises(ValueError, match="lanes"):
        replace(graph, ops=tuple(ops)).verify()


# ---- prices and memory -------------------------------------------------------------------------------------------


def llama_plan(layers, *, unrolled, method, mesh):
    params = llama_shapes(layers, 8192, 8192, jnp.bfloat16)
    if unrolled:
        one = {n: jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for n, a in params["layers"].items()}
        params["layers"] = [one] * layers
    tokens = jax.ShapeDtypeStruct((64, 4097), jnp.int32)
    return asd.plan(llama_step, (params, (params, params)), tokens, cluster="h100:1x8", mesh=mesh, method=method)


@pytest.mark.parametrize(("method", "mesh"), [("auto", {"x": 8}), ("auto", MESH), ("megatron", MESH)])
def test_a_scanned_layer_costs_what_an_unrolled_one_does(method, mesh):
    scanned, unrolled = (
        [llama_plan(n, unrolled=u, method=method, mesh=mesh).seconds for n in (2, 4)] for u in (False, True)
    )
    assert scanned[1] - scanned[0] == pytest.approx(unrolled[1] - unrolled[0], rel=0.01)


def test_under_a_limit_weights_are_gathered_layer_by_layer():
    def step(w, x):
        def loss(w):
            return jnp.mean(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0] ** 2)

        return w - 0.1 * jax.grad(loss)(w)

    args = normal(8, 256, 256), normal(1024, 256)
    layers = args[0].shape[0]
    free = asd.parallelize(step, method="fsdp", mesh={"x": 8}).plan(*args)
    limited = asd.parallelize(step, method="fsdp", mesh={"x": 8}, memory=free.memory.peak * 3 // 4)
    plan = limited.plan(*args)
    assert plan.memory.peak <= free.memory.peak * 3 // 4
    assert layers in {c.times for c in plan.collectives if c.kind == "all-gather"}
    assert plan.communication_seconds == pytest.approx(sum(c.seconds for c in plan.collectives))
    compared = compare(plan, limited.compile(*args))
    assert compared.agrees, str(compared)
    close(limited(*args), jax.jit(step)(*args))


def test_a_constant_gathered_in_every_run_is_not_gathered_before_the_loop():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))

    def step(w, x):
        def body(c, _):
            part = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P("x")))
            whole = jax.lax.with_sharding_constraint(jnp.sin(part), NamedSharding(mesh, P()))
            return jnp.tanh(c @ whole), None

        return jax.lax.scan(body, x, None, length=5)[0]

    args = normal(16, 16), normal(32, 16)
    parallel = asd.parallelize(step, mesh=mesh)
    plan = parallel.plan(*args)
    assert [(c.kind, c.times) for c in plan.collectives if "[16,16]" in c.value] == [("all-gather", 5)]
    compared = compare(plan, parallel.compile(*args))
    assert compared.agrees, str(compared)
    close(parallel(*args), jax.jit(step)(*args))


def test_a_plan_with_loops_is_saved_and_replayed(tmp_path):
    fn, args, (first, _) = model("lstm")
    _, plan = planned_is_run("lstm", "megatron")
    plan.save(tmp_path / "plan.json")
    again = asd.load_plan(tmp_path / "plan.json")
    assert again == plan
    assert any(c.times == 6 for c in again.copies)
    close(asd.parallelize(fn, plan=again)(*args), first)
