"""The plans found are the known ones: by their specs, not only by their costs."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import pytest

from autosharding.capture import capture
from autosharding.errors import AutoshardingError, Infeasible
from autosharding.microbatch import batch_of
from autosharding.plan_mlir import plan_mlir
from autosharding.planner import METHODS, plan_graph
from autosharding.planner.roles import roles
from autosharding.rules import rule_for
from autosharding.spec import Spec
from autosharding.strategies import strategies
from cost_model import Cluster, Topology

pytestmark = pytest.mark.core

CLUSTER = Cluster.parse("h100:1x8")


def block(batch, hidden, *, layers=2):
    """A step of `layers` pairs of dense layers, 4 x wide in the middle, plain gradient descent."""
    params = [
        (
            jax.ShapeDtypeStruct((hidden, 4 * hidden), jnp.bfloat16),
            jax.ShapeDtypeStruct((4 * hidden, hidden), jnp.bfloat16),
        )
        for _ in range(layers)
    ]
    data = jax.ShapeDtypeStruct((batch, hidden), jnp.bfloat16)

    def loss(params, x, y):
        for up, down in params:
            x = x + jax.nn.relu(x @ up) @ down
        return jnp.mean((x - y).astype(jnp.float32) ** 2)

    def step(params, x, y):
        return jax.tree.map(lambda p, g: p - g, params, jax.grad(loss)(params, x, y))

    leaves, tree = jax.tree.flatten((params, data, data))
    graph = capture(lambda *a: jax.tree.leaves(step(*jax.tree.unflatten(tree, a))), leaves, name="block")
    state = {i: i for i in range(2 * layers)}
    return graph, {"state": state, "donated": frozenset(state)}


def forward_splits(plan):
    return [dict(s.factors) for s in plan.steps if s.op == "dot_general" and s.phase == "forward"]


def test_a_large_batch_gives_data_parallelism():
    graph, options = block(1 << 17, 1024)
    plan = plan_graph(graph, CLUSTER, mesh={"x": 8}, **options)
    assert all(split == {"i0": ("x",)} for split in forward_splits(plan))
    assert {c.kind for c in plan.collectives if c.bytes > 1024} <= {"reduce-scatter", "all-gather", "all-reduce"}


def test_the_weights_of_a_step_without_gradient_are_parameters():
    def step(cache, weights, tokens, at):
        def layer(x, stacked):
            w, kept = stacked
            x = jnp.tanh(x @ w)
            return x, jax.lax.dynamic_update_slice(kept, x[:, None], (0, at, 0))

        x, cache = jax.lax.scan(layer, weights["embed"][tokens], (weights["layers"], cache))
        return [cache, x @ weights["embed"].T + weights["bias"]]

    weights = {"bias": jnp.zeros(32), "embed": jnp.zeros((32, 16)), "layers": jnp.zeros((8, 16, 16))}
    args, tree = jax.tree.flatten((jnp.zeros((8, 8, 4, 16)), weights, jnp.zeros(8, jnp.int32), 0))
    graph = capture(lambda *a: step(*jax.tree.unflatten(tree, a)), args)
    assert roles(graph, {0: 0}) == ("state", *["parameter"] * 3, "batch", "batch")
    plan = plan_graph(graph, CLUSTER, mesh={"x": 2, "y": 4}, state={0: 0}, method="megatron")
    products = [dict(s.factors) for s in plan.steps if s.op == "dot_general"]
    assert all(split.pop("i0") == ("x",) and list(split.values()) == [("y",)] for split in products)


def adapted(state, frozen, image, labels):
    """Adapters alone are trained; as many examples as the model is wide."""
    adapters, ema = state

    def loss(adapters):
        layout = ("NHWC", "HWIO", "NHWC")
        h = jax.lax.conv_general_dilated(image, frozen["window"], (1, 1), "SAME", dimension_numbers=layout).mean((1, 2))
        for w, a in zip(frozen["layers"], adapters, strict=True):
            h = jnp.maximum(h, jnp.zeros(16)) + jnp.zeros((16, 1))
            h = h + jnp.tanh(h @ w * frozen["scale"] + h @ a @ a.T) + frozen["table"][labels]
        return -jnp.take_along_axis(jax.nn.log_softmax(h @ frozen["head"]), labels[:, None], -1).mean()

    adapters = jax.tree.map(lambda a, g: a - g, adapters, jax.grad(loss)(adapters))
    return adapters, jax.tree.map(lambda e, a: 0.9 * e + 0.1 * a, ema, adapters)


def test_weights_that_are_not_trained_are_parameters():
    """Whether or not their first dim has as many elements as there are examples."""
    frozen = {"head": (16, 16), "layers": [(16, 16)] * 2, "scale": (16,), "table": (16, 16), "window": (3, 3, 3, 16)}
    adapters = [jnp.zeros((16, 2))] * 2
    images, labels = jnp.zeros((16, 8, 8, 3)), jnp.zeros(16, jnp.int32)
    weights = jax.tree.map(jnp.zeros, frozen, is_leaf=lambda shape: isinstance(shape, tuple))
    args, tree = jax.tree.flatten(((adapters, adapters), weights, images, labels))
    graph = capture(lambda *a: jax.tree.leaves(adapted(*jax.tree.unflatten(tree, a))), args)
    state = {i: i for i in range(4)}
    assert roles(graph, state) == (*["parameter"] * 2, *["optimizer"] * 2, *["parameter"] * 6, "batch", "batch")
    assert batch_of(graph, state) == 16


def test_without_gradient_and_without_a_batch_in_the_results_all_is_batch():
    graph = capture(lambda w, x: [w + (x @ w).sum(0), x.sum()], [jnp.zeros((8, 8)), jnp.zeros((64, 8))])
    assert roles(graph, {0: 0}) == ("state", "batch")


def test_large_weights_and_a_small_batch_give_megatron_pairs():
    graph, options = block(16, 8192)
    plan = plan_graph(graph, CLUSTER, mesh={"x": 8}, **options)
    assert forward_splits(plan) == [{"j0": ("x",)}, {"k0": ("x",)}] * 2
    for i in plan.inputs:
        if i.role == "parameter":
            assert i.spec in (Spec(((), ("x",))), Spec((("x",), ())))


def test_a_memory_limit_below_replicated_state_gives_zero():
    graph, options = block(1 << 15, 2048)
    whole = plan_graph(graph, CLUSTER, mesh={"x": 8}, method="data", **options)
    weights = sum(i.spec.local_bytes(i.shape, i.itemsize, whole.mesh) for i in whole.inputs if i.role == "parameter")
    limit = whole.memory.peak - weights * 3 // 4
    plan = plan_graph(graph, CLUSTER, mesh={"x": 8}, memory=limit, **options)
    assert plan.memory.peak <= limit
    assert all(i.spec.is_replicated for i in whole.inputs if i.role == "parameter")
    assert sum(not i.spec.is_replicated for i in plan.inputs if i.role == "parameter") >= 3
    assert all(split == {"i0": ("x",)} for split in forward_splits(plan))
    assert {"all-gather", "reduce-scatter"} <= {c.kind for c in plan.collectives}


def test_cost_never_falls_as_memory_falls():
    graph, options = block(4096, 1024)
    free = plan_graph(graph, CLUSTER, mesh={"x": 8}, **options)
    costs = [free.seconds]
    for percent in (95, 90, 80, 70, 60):
        try:
            plan = plan_graph(graph, CLUSTER, mesh={"x": 8}, memory=free.memory.peak * percent // 100, **options)
        except Infeasible:
            break
        costs.append(plan.seconds)
    assert all(b >= a * (1 - 2e-3) for a, b in pairwise(costs))
    with pytest.raises(Infeasible, match=r"does not fit.*Largest there.*Try"):
        plan_graph(graph, CLUSTER, mesh={"x": 8}, memory=1 << 10, **options)


@pytest.mark.parametrize(("batch", "hidden"), [(256, 512), (8192, 1024)])
def test_auto_is_never_dearer_than_a_method(batch, hidden):
    graph, options = block(batch, hidden)
    costs = {m: plan_graph(graph, CLUSTER, method=m, **options).seconds for m in METHODS}
    assert all(costs["auto"] <= c * (1 + 1e-3) for c in costs.values()), costs


def test_an_unknown_method_is_named():
    graph, options = block(8, 8)
    with pytest.raises(AutoshardingError, match=r"no method 'ddp'.*fsdp"):
        plan_graph(graph, CLUSTER, method="ddp", **options)


def test_meshes_are_tried_and_listed():
    graph, options = block(256, 512)
    plan = plan_graph(graph, CLUSTER, **options)
    tried = {a.mesh for a in plan.alternatives} | {",".join(f"{a}={n}" for a, n in plan.mesh.items())}
    assert {"x=8", "x=2,y=4"} <= tried
    assert all(a.seconds is None or a.seconds >= plan.seconds for a in plan.alternatives)


def test_state_leaves_as_it_came_and_plans_are_deterministic():
    graph, options = block(512, 512)
    plan = plan_graph(graph, CLUSTER, **options)
    assert all(o.spec == plan.inputs[o.state_of].spec for o in plan.outputs if o.state_of is not None)
    assert plan == plan_graph(graph, CLUSTER, **options)


def batched_matmul():
    a = jax.ShapeDtypeStruct((32, 1000, 4096), jnp.float32)
    b = jax.ShapeDtypeStruct((32, 4096, 8192), jnp.float32)
    return capture(lambda a, b: [jnp.einsum("bmk,bkn->bmn", a, b)], [a, b])


def test_the_seed_example():
    """Batch on axis 0, contraction on axis 1: the result is split over axis 0 and a partial sum over axis 1."""
    op = batched_matmul().ops[0]
    wanted = (Spec((("x",), (), ("y",))), Spec((("x",), ("y",), ())))
    found = strategies(op, rule_for(op), {"x": 4, "y": 8}, ["sum", "sum"], ["sum"])
    (strategy,) = [s for s in found if s.operands == wanted]
    assert strategy.results == (Spec((("x",), (), ()), ("y",)),)


def test_the_seed_example_in_mlir():
    topology = Topology.alpa((4, 8))
    specs = {0: Spec((("x",), (), ("y",))), 1: Spec((("x",), ("y",), ()))}
    plan = plan_graph(batched_matmul(), topology=topology, specs=specs)
    assert plan.steps[0].results == (Spec((("x",), (), ()), ("y",)),)
    text = plan_mlir(plan)
    assert "<@mesh, [[0], [], [1]]>, <@mesh, [[0], [1]]>" in text
    assert "-> <@mesh, [[0]], partial = sum[1]>" in text
