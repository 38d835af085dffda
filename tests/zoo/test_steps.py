import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autosharding import zoo
from autosharding.zoo.moe import top2

QUICK = {"xla_backend_optimization_level": 0}  # halves XLA's time; the steps are tiny
FAMILIES = ["mlp", "gpt", "llama", "moe", "wresnet"]


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request):
    """A tiny model of each family, its states and losses over some steps on one batch."""
    model = zoo.build(f"{request.param}:tiny")
    batch = model.make_batch(jax.random.key(1))
    states, losses = [jax.jit(model.init)(jax.random.key(0))], []
    step = jax.jit(model.step).lower(states[0], batch).compile(QUICK)
    for _ in range(6):
        state, loss = step(states[-1], batch)
        states.append(state)
        losses.append(float(loss))
    return model, states, losses


def test_loss_falls(trained):
    _, _, losses = trained
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.95 * losses[0]


def test_state_keeps_its_shapes(trained):
    model, states, _ = trained
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (states[0], states[-1]))
    assert abstract == (model.args[0], model.args[0])
    assert states[-1].step == len(states) - 1


def test_batch_has_the_promised_shapes(trained):
    model, _, _ = trained
    batch = model.make_batch(jax.random.key(2))
    assert jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), batch) == model.args[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_remat_is_optional(family):
    plain, saving = (zoo.build(f"{family}:tiny", remat=remat) for remat in (False, True))
    jaxprs = [jax.make_jaxpr(model.step)(*model.args) for model in (plain, saving)]
    regions = [sum(e.primitive.name in ("checkpoint", "remat2") for e in jaxpr.eqns) for jaxpr in jaxprs]
    assert regions[0] == 0
    assert regions[1] > 0


@pytest.mark.parametrize("name", ["gpt:1.3b", "llama:8b", "moe:2.4b", "wresnet:1b", "mlp"])
def test_full_size_is_traced_without_arrays(name):
    model = zoo.build(name)
    state, loss = jax.eval_shape(model.step, *model.args)
    assert state == model.args[0]
    assert (loss.shape, loss.dtype) == ((), jnp.float32)


def test_master_weights_are_float32_and_compute_is_bfloat16():
    model = zoo.build("gpt:tiny", remat=False)
    assert {leaf.dtype for leaf in jax.tree.leaves(model.args[0].params)} == {jnp.dtype(jnp.float32)}
    products = [e for e in jax.make_jaxpr(model.step)(*model.args).eqns if e.primitive.name == "dot_general"]
    assert {e.outvars[0].aval.dtype for e in products} == {jnp.dtype(jnp.bfloat16)}


def test_top2_against_a_loop():
    gates = np.asarray(jax.nn.softmax(jax.random.normal(jax.random.key(0), (2, 16, 4)), axis=-1))
    capacity = 6
    expected = np.zeros((2, 16, 4, capacity))
    for g in range(2):
        order = np.argsort(-gates[g], axis=-1)
        used, slots = np.zeros(4, int), [dict() for _ in range(16)]
        for choice in range(2):
            for s in range(16):
                e = order[s, choice]
                if used[e] < capacity:
                    slots[s][e] = used[e]
                    used[e] += 1
        for s in range(16):
            total = sum(gates[g, s, e] for e in slots[s])
            for e, c in slots[s].items():
                expected[g, s, e, c] = gates[g, s, e] / total
    np.testing.assert_allclose(top2(jnp.asarray(gates), capacity), expected, atol=1e-6)
