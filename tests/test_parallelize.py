"""`parallelize` gives the numbers of `jax.jit`, whatever the arguments are."""

import functools
import itertools
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.interpreters import mlir
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import autosharding as asd

pytestmark = pytest.mark.core

data = functools.partial(asd.parallelize, method="data")


def close(a, b, rtol=1e-5, atol=1e-6):
    """Both trees are equal up to the order of sums."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert x.dtype == y.dtype
        np.testing.assert_allclose(np.asarray(x, np.float64), np.asarray(y, np.float64), rtol=rtol, atol=atol)


def weights(*sizes, dtype=np.float32):
    random = np.random.default_rng(0)
    pairs = itertools.pairwise(sizes)
    return [(random.standard_normal(s) / s[0] ** 0.5).astype(dtype) for s in pairs]


def rows(n, width, seed=1):
    return np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)


def loss_fn(params, x, y):
    for w in params[:-1]:
        x = jnp.tanh(x @ w)
    return jnp.mean(jnp.square(x @ params[-1] - y))


def sgd(params, x, y, rate=0.1):
    """One step of gradient descent."""
    loss, gradients = jax.value_and_grad(loss_fn)(params, x, y)
    return jax.tree.map(lambda p, g: p - rate * g, params, gradients), loss


ARGS = (weights(16, 32, 8), rows(16, 16), rows(16, 8, seed=2))


# ---- the same numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["auto", "data", "fsdp", "megatron"])
def test_methods_give_the_same_numbers_over_steps(method):
    step = asd.parallelize(sgd, method=method)
    ours, theirs = ARGS[0], ARGS[0]
    for seed in range(3):
        x, y = rows(16, 16, seed), rows(16, 8, seed + 9)
        (ours, loss), (theirs, other) = step(ours, x, y), jax.jit(sgd)(theirs, x, y)
        close((ours, loss), (theirs, other))
    assert len(step._programs) == 1


def test_one_device():
    step = asd.parallelize(sgd, devices=jax.devices()[:1])
    close(step(*ARGS), jax.jit(sgd)(*ARGS))


def test_some_devices():
    step = data(sgd, devices=jax.devices()[4:])
    (params, loss) = step(*ARGS)
    close((params, loss), jax.jit(sgd)(*ARGS))
    assert params[0].sharding.device_set == set(jax.devices()[4:])


def test_bare_decorator_keeps_name_and_docs():
    @asd.parallelize
    def square(x):
        """Square."""
        return x * x

    assert (square.__name__, square.__doc__) == ("square", "Square.")
    close(square(rows(8, 8)), rows(8, 8) ** 2)


def test_decorator_with_options():
    @asd.parallelize(method="data", donate_argnums=0)
    def step(w, x):
        return w - 0.1 * (x.T @ (x @ w)), jnp.sum(x)

    w = step(rows(16, 8), rows(32, 16))[0]
    again, _ = step(w, rows(32, 16))
    assert w.is_deleted()
    assert not again.is_deleted()


def test_method_of_a_class():
    class Model:
        @asd.parallelize(method="data")
        def apply(self, x):
            return x * self.factor

        factor = 3.0

    close(Model().apply(rows(8, 4)), rows(8, 4) * 3)


def test_keywords_and_python_scalars():
    step = data(sgd)
    for rate in (0.1, 0.2, np.float32(0.3), 1):
        close(step(ARGS[0], y=ARGS[2], x=ARGS[1], rate=rate), jax.jit(sgd)(*ARGS, rate=rate))


def test_python_scalars_stay_weak():
    def f(x, factor):
        return x * factor

    x = rows(8, 4).astype(jnp.bfloat16)
    assert data(f)(x, 2.5).dtype == jnp.bfloat16


def test_static_arguments():
    def f(x, power, *, negate=False):
        for _ in range(power - 1):
            x = x * x
        return -x if negate else x

    step = data(f, static_argnums=1, static_argnames="negate")
    x = rows(8, 4)
    close(step(x, 3), jax.jit(f, static_argnums=1)(x, 3))
    close(step(x, power=3), jax.jit(f, static_argnums=1)(x, 3))
    close(step(x, 2), x * x)
    close(step(x, 2, negate=True), -x * x)
    close(step(x, 2, negate=True), -x * x)


def test_unhashable_static_argument_is_explained():
    step = data(lambda x, n: x, static_argnums=1)
    with pytest.raises(asd.UnsupportedProgram, match="hashable"):
        step(rows(8, 4), [1])


def test_functions_and_strings_among_the_leaves():
    def f(config, x):
        y = config["act"](x) if config["name"] == "on" else x
        return {"y": y, "act": config["act"], "name": "out"}

    step = data(f)
    for act in (jnp.tanh, jnp.sin, jnp.tanh):
        out = step({"act": act, "name": "on", "none": None}, rows(8, 4))
        assert out["act"] is act
        assert out["name"] == "out"
        close(out["y"], act(rows(8, 4)))


def test_typed_keys_and_random_numbers():
    def f(key, x):
        key, use = jax.random.split(key)
        return key, x + jax.random.normal(use, x.shape)

    close(data(f)(jax.random.key(3), rows(16, 4)), jax.jit(f)(jax.random.key(3), rows(16, 4)))


def test_bfloat16():
    args = (weights(16, 32, 8, dtype=jnp.bfloat16), *(a.astype(jnp.bfloat16) for a in ARGS[1:]))
    close(data(sgd)(*args), jax.jit(sgd)(*args), rtol=3e-2, atol=1e-2)


def test_constants_are_placed():
    table = jnp.asarray(rows(16, 4))

    def f(x):
        return x @ table

    step = data(f)
    close(step(rows(8, 16)), rows(8, 16) @ table)
    close(step(rows(8, 16, 5)), rows(8, 16, 5) @ table)


def test_debug_print(capfd):
    def f(x):
        jax.debug.print("sum {}", x.sum())
        return x + 1

    close(data(f)(np.ones((8, 2), np.float32)), np.full((8, 2), 2, np.float32))
    jax.effects_barrier()
    assert capfd.readouterr().out == "sum 16.0\n"


def test_ordered_print_is_refused():
    def f(x):
        jax.debug.print("{}", x, ordered=True)
        return x

    with pytest.raises(asd.UnsupportedProgram, match="ordered"):
        data(f)(rows(8, 2))


def test_a_primitive_without_a_rule_runs_whole_and_is_listed():
    cumulate = jax.extend.core.Primitive("cumulate_by_a_stranger")
    cumulate.def_abstract_eval(lambda x: jax.core.ShapedArray(x.shape, x.dtype))
    mlir.register_lowering(cumulate, mlir.lower_fun(lambda x: jnp.cumsum(x, axis=0) * x[::-1], multiple_results=False))

    def f(w, x):
        return cumulate.bind(x @ w).sum(axis=1)

    step = data(f)
    args = weights(16, 32)[0], rows(8, 16)
    close(step(*args), jax.jit(f)(*args))
    (listed,) = step.plan(*args).unresolved
    assert "cumulate_by_a_stranger" in listed.where
    assert "without a rule" in listed.reason
    assert "cumulate_by_a_stranger" in str(step.plan(*args))


def test_inside_another_transformation_the_step_is_itself():
    step = data(lambda x: jnp.sum(x * x))
    step(rows(8, 4))
    close(jax.grad(step)(rows(8, 4)), jax.grad(step.fn)(rows(8, 4)))
    assert jax.eval_shape(step, rows(8, 4)).shape == ()


def test_indivisible_shapes():
    args = (weights(7, 13, 3), rows(11, 7), rows(11, 3))
    close(asd.parallelize(sgd)(*args), jax.jit(sgd)(*args))


def test_new_shapes_are_planned_anew():
    step = data(sgd)
    for n in (16, 24, 16, 24):
        args = (ARGS[0], rows(n, 16), rows(n, 8))
        close(step(*args), jax.jit(sgd)(*args))
    assert len(step._programs) == 2


# ---- frameworks ------------------------------------------------------------------------------------------------


def test_train_state():
    def step(state, x, y):
        loss, gradients = jax.value_and_grad(lambda p: loss_fn(p["layers"], x, y))(state.params)
        return state.apply_gradients(grads=gradients), loss

    tx = optax.adamw(1e-2)
    ours, theirs = (TrainState.create(apply_fn=loss_fn, params={"layers": ARGS[0]}, tx=tx) for _ in range(2))
    par, jit = data(step, donate_argnums=0), jax.jit(step)
    for _ in range(3):
        (ours, a), (theirs, b) = par(ours, *ARGS[1:]), jit(theirs, *ARGS[1:])
    close((ours, a), (theirs, b))
    assert len(par._programs) == 1
    plan = par.plan(ours, *ARGS[1:])
    assert sum(i.becomes is not None for i in plan.inputs) == len(plan.inputs) - 2


def test_equinox():
    optimizer = optax.adam(1e-2)

    def step(model, state, x, y):
        loss, gradients = eqx.filter_value_and_grad(lambda m: jnp.mean((jax.vmap(m)(x) - y) ** 2))(model)
        updates, state = optimizer.update(gradients, state)
        return eqx.apply_updates(model, updates), state, loss

    model = eqx.nn.MLP(16, 8, 32, depth=1, key=jax.random.key(0))
    state = optimizer.init(eqx.filter(model, eqx.is_array))
    ours, ours_state, loss = data(step)(model, state, *ARGS[1:])
    theirs, theirs_state, other = eqx.filter_jit(step)(model, state, *ARGS[1:])
    assert ours.activation == model.activation
    close((eqx.filter(ours, eqx.is_array), ours_state, loss), (eqx.filter(theirs, eqx.is_array), theirs_state, other))


def test_equinox_with_numbers_it_branches_on():
    model = eqx.nn.Dropout(0.5)

    def f(model, x, key):
        return model(x, key=key)

    x, key = rows(8, 4), jax.random.key(0)
    close(data(f)(model, x, key), f(model, x, key))
    close(data(f)(eqx.nn.inference_mode(model), x, key), x)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.wide = nnx.Linear(16, 32, rngs=rngs)
        self.norm = nnx.BatchNorm(32, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.narrow = nnx.Linear(32, 8, rngs=rngs)

    def __call__(self, x):
        return self.narrow(self.dropout(nnx.relu(self.norm(self.wide(x)))))


def net_step(net, optimizer, x, y):
    loss, gradients = nnx.value_and_grad(lambda n: jnp.mean((n(x) - y) ** 2))(net)
    optimizer.update(net, gradients)
    return loss, net


def test_nnx_is_changed_in_place():
    def run(step):
        net = Net(nnx.Rngs(0))
        optimizer = nnx.Optimizer(net, optax.sgd(1e-2, momentum=0.9), wrt=nnx.Param)
        for _ in range(3):
            loss, same = step(net, optimizer, *ARGS[1:])
        assert same is net
        return nnx.state(net), nnx.state(optimizer), loss

    step = data(net_step)
    close(run(step), run(nnx.jit(net_step)), rtol=1e-4, atol=1e-5)
    assert len(step._programs) == 1


def test_nnx_module_made_inside():
    def f(x):
        net = nnx.Linear(16, 8, rngs=nnx.Rngs(0))
        return net, net(x)

    net, y = data(f)(ARGS[1])
    close(net(ARGS[1]), y)


def test_nnx_modes_are_programs_of_their_own():
    net = Net(nnx.Rngs(0))
    step = data(lambda n, x: n(x))
    step(net, ARGS[1])
    net.eval()
    close(step(net, ARGS[1]), net(ARGS[1]), rtol=1e-4, atol=1e-5)
    assert len(step._programs) == 2


def test_nnx_module_that_holds_what_has_no_hash():
    @dataclass
    class Config:
        scale: float

    class Scaled(nnx.Module):
        def __init__(self, config):
            self.config = config
            self.linear = nnx.Linear(16, 8, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.linear(x) * self.config.scale

    step = data(lambda model, x: model(x))
    for scale in 2.0, 3.0, 2.0:
        model = Scaled(Config(scale))
        close(step(model, ARGS[1]), model(ARGS[1]), rtol=1e-4, atol=1e-5)
    assert len(step._programs) == 2


# ---- where things lie ------------------------------------------------------------------------------------------


def test_state_leaves_as_it_came():
    step = asd.parallelize(sgd, method="fsdp")
    params, _ = step(*ARGS)
    plan = step.plan(*ARGS)
    assert [o.state_of for o in plan.outputs] == [0, 1, None]
    want, *_ = step.shardings(*ARGS)
    assert [p.sharding for p in params] == want


def test_placed_arguments_are_respected():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))
    x = jax.device_put(ARGS[1], NamedSharding(mesh, P("b")))
    step = asd.parallelize(sgd)
    plan = step.plan(ARGS[0], x, ARGS[2])
    assert dict(plan.mesh) == {"a": 2, "b": 4}
    assert str(plan.inputs[2].spec) == "[@b,-]"
    close(step(ARGS[0], x, ARGS[2]), jax.jit(sgd)(*ARGS))


def test_arguments_that_lie_elsewhere_are_placed():
    step = data(sgd)
    here = jax.device_put(ARGS[1], jax.devices()[3])
    for x in (here, ARGS[1], here):
        close(step(ARGS[0], x, ARGS[2]), jax.jit(sgd)(*ARGS))


def test_explicit_meshes_do_not_disturb():
    mesh = jax.make_mesh((8,), ("a",), axis_types=(AxisType.Explicit,))
    step = data(sgd)
    x = jax.device_put(ARGS[1], NamedSharding(mesh, P("a")))
    with jax.set_mesh(mesh):
        close(step(*ARGS), jax.jit(sgd)(*ARGS))
    close(step(ARGS[0], x, ARGS[2]), jax.jit(sgd)(*ARGS))


def test_own_sharding_constraints_give_the_mesh():
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("rows", "columns"))

    def f(w, x):
        h = jax.lax.with_sharding_constraint(x @ w, NamedSharding(mesh, P("rows", "columns")))
        return jnp.tanh(h)

    step = asd.parallelize(f)
    plan = step.plan(rows(16, 8), rows(16, 16))
    assert dict(plan.mesh) == {"rows": 4, "columns": 2}
    constrained = next(s for s in plan.steps if s.op == "sharding_constraint")
    assert str(constrained.results[0]) == "[@rows,@columns]"
    close(step(rows(16, 8), rows(16, 16)), np.tanh(rows(16, 16) @ rows(16, 8)))


def test_constraints():
    for path in ("[0][0]", "params[0]", "[0]*0]"):
        step = asd.parallelize(sgd, mesh={"a": 2, "b": 4}, constraints={path: P(None, "b"), "x": P("a")})
        plan = step.plan(*ARGS)
        assert str(plan.inputs[0].spec) == "[-,@b]"
        assert str(plan.inputs[2].spec) == "[@a,-]"
        close(step(*ARGS), jax.jit(sgd)(*ARGS))


@pytest.mark.parametrize(
    ("constraints", "words"),
    [
        ({"[0][7]": P("a")}, r"\[0\]\[0\]"),
        ({"[0][0]": P("z")}, "axes are a, b"),
        ({"[0][1]": P(None, "b"), "[2]": P(("a", "b"))}, "divide"),
        ({"[0][0]": P("a", "a")}, "twice"),
        ({"[0][0]": P("a", None, "b")}, "2 dims"),
        ({"[0][0]": "a"}, "PartitionSpec"),
    ],
)
def test_constraints_that_cannot_be_met(constraints, words):
    args = (weights(16, 32, 8), rows(18, 16), rows(18, 8))
    with pytest.raises(asd.ConstraintError, match=words):
        asd.parallelize(sgd, mesh={"a": 2, "b": 4}, constraints=constraints).plan(*args)


def test_meshes():
    close(asd.parallelize(sgd, mesh={"a": 8})(*ARGS), jax.jit(sgd)(*ARGS))
    mesh = Mesh(np.array(jax.devices())[::-1].reshape(4, 2), ("a", "b"))
    params, _ = asd.parallelize(sgd, mesh=mesh, method="fsdp")(*ARGS)
    assert list(params[0].sharding.mesh.devices.flat) == jax.devices()[::-1]
    with pytest.raises(asd.MeshMismatch, match="multiply to 8"):
        asd.parallelize(sgd, mesh={"a": 3})(*ARGS)
    with pytest.raises(asd.MeshMismatch, match="16 devices"):
        asd.parallelize(sgd, cluster="cpu:16")(*ARGS)
    with pytest.raises(asd.AutoshardingError, match="megatron"):
        asd.parallelize(sgd, method="tensor")


def test_donation():
    step = data(lambda p, b: (jax.tree.map(lambda x: x + 1, p), b["x"].sum()), donate_argnums=(0, 1))
    params = {"w": jnp.ones((8, 8)), "v": jnp.ones(3)}
    batch = {"x": jnp.ones((16, 4))}
    params, _ = step(params, batch)
    after, _ = step(params, batch)
    assert params["w"].is_deleted()
    assert not batch["x"].is_deleted()
    close(after["v"], np.full(3, 3, np.float32))


def test_init_makes_the_state_where_it_belongs():
    optimizer = optax.adam(1e-2)

    def make(key):
        params = [jax.random.normal(key, (16, 32)), jnp.zeros((32, 8))]
        return params, optimizer.init(params)

    def train(state, x, y):
        params, moments = state
        loss, gradients = jax.value_and_grad(loss_fn)(params, x, y)
        updates, moments = optimizer.update(gradients, moments)
        return (optax.apply_updates(params, updates), moments), loss

    step = asd.parallelize(train, method="fsdp")
    batch = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in ARGS[1:]]
    state = step.init(make, jax.random.key(0), rest=batch)
    close(state, jax.jit(make)(jax.random.key(0)), atol=1e-5)
    assert jax.tree.map(lambda a: a.sharding, state) == step.shardings(state, *batch)[0]
    close(step(state, *ARGS[1:]), jax.jit(train)(state, *ARGS[1:]))
    assert not step._last.places


def test_init_of_nnx():
    def make():
        net = Net(nnx.Rngs(0))
        return net, nnx.Optimizer(net, optax.adam(1e-2), wrt=nnx.Param)

    step = asd.parallelize(net_step, method="fsdp")
    net, optimizer = step.init(make, argnums=(0, 1), rest=ARGS[1:])
    assert len(net.wide.kernel[...].sharding.device_set) == 8
    loss, _ = step(net, optimizer, *ARGS[1:])
    other, _ = nnx.jit(net_step)(*make(), *ARGS[1:])
    close(loss, other)


# ---- ahead of time ---------------------------------------------------------------------------------------------


def test_ahead_of_time():
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), ARGS)
    step = data(sgd)
    lowered = step.lower(*shapes)
    assert "all_reduce" in lowered.as_text()
    compiled = lowered.compile()
    assert "all-reduce" in compiled.as_text()
    assert compiled.memory_analysis().argument_size_in_bytes > 0
    assert compiled.plan == step.plan(*shapes)
    close(compiled(*ARGS), jax.jit(sgd)(*ARGS))
    close(step(*ARGS), jax.jit(sgd)(*ARGS))
    with pytest.raises(asd.PlanMismatch):
        compiled(ARGS[0][0], *ARGS[1:])


def test_plan_for_hardware_that_is_not_here():
    plan = asd.plan(sgd, *ARGS, cluster="h100:2x8", memory="70GiB")
    assert plan.topology.n_devices == 16
    assert plan.memory.budget == 70 << 30
    with pytest.raises(asd.MeshMismatch, match="amount of memory"):
        asd.plan(sgd, *ARGS, cluster="h100:2x8", memory="lots")


def test_plan_is_replayed_without_the_solver(monkeypatch):
    plan = asd.plan(sgd, *ARGS, cluster="cpu:8", method="fsdp")
    monkeypatch.setattr("autosharding.choose.plan_graph", None)
    step = asd.parallelize(sgd, plan=plan)
    close(step(*ARGS), jax.jit(sgd)(*ARGS))
    assert step.plan(*ARGS) is plan
    with pytest.raises(asd.PlanMismatch, match="f32"):
        step(ARGS[0], rows(24, 16), rows(24, 8))
    with pytest.raises(asd.MeshMismatch, match="8 devices"):
        asd.parallelize(sgd, plan=plan, devices=jax.devices()[:4])(*ARGS)
