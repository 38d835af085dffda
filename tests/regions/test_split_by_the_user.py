"""`shard_map` as the user wrote it, `custom_partitioning` by its rule: numbers of `jax.jit`, collectives planned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from region_models import normal

import autosharding as asd
from autosharding.compare import compare

MESH = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)


def planned_is_run(fn, *args, **options):
    step = asd.parallelize(fn, **options)
    plan = step.plan(*args)
    compared = compare(plan, step.compile(*args))
    assert compared.agrees, str(compared)
    assert not plan.unresolved
    for a, b in zip(jax.tree.leaves(step(*args)), jax.tree.leaves(jax.jit(fn)(*args)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
    return plan


def body(w, x):
    y = jax.lax.psum(x @ w, "y")
    gathered = jax.lax.all_gather(y, "x", axis=0, tiled=True)
    y, _ = jax.lax.scan(lambda c, _: (jnp.tanh(c + jax.lax.psum(c * 0.1, "y")), None), y, None, length=3)
    return y, jax.lax.ppermute(gathered, "x", [(0, 1), (1, 0)])


def loss(w, x):
    specs = (P("y", None), P("x", "y"))
    a, b = jax.shard_map(body, mesh=MESH, in_specs=specs, out_specs=(P("x", None), P("x", None)))(w, x)
    return (a**2).mean() + (b**3).mean()


def test_a_differentiated_shard_map_keeps_its_specs_and_its_collectives_are_planned():
    def step(w, x):
        value, gradient = jax.value_and_grad(loss)(w, x)
        return w - 0.1 * gradient, value

    plan = planned_is_run(step, normal(16, 8), normal(32, 16))
    assert plan.mesh == {"x": 2, "y": 4}
    first = next(s for s in plan.steps if s.op == "shard_map")
    assert [str(s) for s in first.operands] == ["[@y,-]", "[@x,@y]"]
    inside = {c.kind for c in plan.collectives if c.cause.startswith("inside shard_map")}
    assert inside == {"all-reduce", "all-gather", "collective-permute", "reduce-scatter"}


def test_a_shard_map_over_some_axes():
    def step(w, x):
        scale = jax.shard_map(
            lambda x: x * (1 + jax.lax.axis_index("x")),
            mesh=MESH,
            in_specs=P("x"),
            out_specs=P("x"),
            axis_names={"x"},
            check_vma=False,
        )
        return scale(x @ w).sum(0)

    planned_is_run(step, normal(16, 8), normal(32, 16))


def test_a_shard_map_for_another_mesh_is_refused():
    with pytest.raises(asd.UnsupportedProgram, match=r"shard_map.*'x': 2, 'y': 4.*pass that mesh"):
        asd.plan(loss, normal(16, 8), normal(32, 16), cluster="cpu:8", mesh={"x": 8})


def kernel(partition, sharding_rule, fn):
    made = custom_partitioning(fn)
    made.def_partition(partition=partition, infer_sharding_from_operands=lambda *a: None, sharding_rule=sharding_rule)
    return made


def test_custom_partitioning_by_its_rule():
    calls = []

    def partition(mesh, given, made):
        calls.append(tuple(str(a.sharding.spec) for a in given))
        return mesh, lambda x, w: jnp.tanh(x) @ w, made.sharding, tuple(a.sharding for a in given)

    product = kernel(partition, "i k, k j -> i j", lambda x, w: jnp.tanh(x) @ w)

    def step(w, x):
        return w + 0.1 * product(x, w).sum(0), x.sum()

    plan = planned_is_run(step, normal(64, 32), normal(512, 64), method="data", mesh={"x": 8})
    split = next(s for s in plan.steps if s.op == "custom_partitioning")
    assert dict(split.factors) == {"i": ("x",)}
    assert calls[-1][0] == str(P("x", None))


def test_custom_partitioning_without_a_rule_to_read_is_planned_inside():
    same = kernel(None, lambda *types: "... i -> ... i", lambda x: jnp.sin(x) * 2)
    plan = planned_is_run(lambda x: same(x).sum(), normal(512, 64), method="data", mesh={"x": 8})
    assert [s.op for s in plan.steps][:2] == ["sin", "mul"]
