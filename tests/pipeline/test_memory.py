"""What the stages of a running pipeline hold is what the plan says: microbatches in flight, and bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import autosharding as asd
from tests.pipeline.meter import measured

WIDTH, BATCH, SEQUENCE, VOCABULARY, HEADS, LAYERS = 64, 32, 32, 128, 4, 4

TIGHT = 0.75
"""Share of what stages hold without a limit."""


def arguments():
    rng = np.random.default_rng(0)
    draw = lambda *shape: (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)  # noqa: E731
    shapes = {
        "qkv": (WIDTH, 3 * WIDTH),
        "out": (WIDTH, WIDTH),
        "wide": (WIDTH, 4 * WIDTH),
        "narrow": (4 * WIDTH, WIDTH),
    }
    blocks = [{k: draw(*s) for k, s in shapes.items()} for _ in range(LAYERS)]
    p = {"embed": draw(VOCABULARY, WIDTH), "head": draw(WIDTH, VOCABULARY), "blocks": blocks}
    return (p, jax.tree.map(np.zeros_like, p)), rng.integers(0, VOCABULARY, (BATCH, SEQUENCE + 1)).astype(np.int32)


def norm(x):
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-5)


def block(p, x):
    q, k, v = jnp.split((norm(x) @ p["qkv"]).reshape(*x.shape[:2], 3 * HEADS, WIDTH // HEADS), 3, axis=2)
    scores = jnp.einsum("bsnd,btnd->bnst", q, k) / 4
    weights = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((SEQUENCE, SEQUENCE), bool)), scores, -1e9))
    x = x + jnp.einsum("bnst,btnd->bsnd", weights, v).reshape(x.shape) @ p["out"]
    return x + jax.nn.gelu(norm(x) @ p["wide"]) @ p["narrow"]


def step(state, tokens):
    def loss(p):
        x = p["embed"][tokens[:, :-1]]
        for each in p["blocks"]:
            x = block(each, x)
        found = jax.nn.log_softmax(x @ p["head"])
        return -jnp.take_along_axis(found, tokens[:, 1:, None], -1).mean()

    p, moments = state
    value, grads = jax.value_and_grad(loss)(p)
    moments = jax.tree.map(lambda m, g: 0.9 * m + g, moments, grads)
    return (jax.tree.map(lambda w, m: w - 0.1 * m, p, moments), moments), value


@pytest.mark.parametrize(
    ("stages", "microbatches", "schedule", "donated"),
    [
        (4, 8, "1f1b", ()),
        pytest.param(4, 8, "1f1b", 0, marks=pytest.mark.slow),
        pytest.param(2, 4, "gpipe", (), marks=pytest.mark.slow),
        pytest.param(2, 4, "1f1b-eager", (), marks=pytest.mark.slow),
        pytest.param(4, 8, "zero-bubble", (), marks=pytest.mark.slow),
        pytest.param(2, 4, "interleaved", (), marks=pytest.mark.slow),
    ],
)
def test_stages_hold_what_the_plan_says(stages, microbatches, schedule, donated):
    chunks = 2 if schedule == "interleaved" else 1
    options = {"stages": stages, "microbatches": microbatches, "schedule": schedule, "chunks": chunks}
    run, args = asd.parallelize(step, **options, donate_argnums=donated), arguments()
    plan, program = run.plan(*args), run.program(*args)
    leaves = [jax.device_put(x, s) for x, s in zip(jax.tree.leaves(args), program.shardings, strict=True)]
    found = measured(program.runner, [*leaves, *program.pipeline.graph.constants])
    assert found.in_flight == plan.schedule.in_flight
    np.testing.assert_allclose(found.peaks, plan.peaks, rtol=0.15)
    expected = jax.jit(step)(*args)
    for x, y in zip(found.results, jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-4 * np.max(np.abs(y)))


def test_no_stage_holds_more_than_is_allowed():
    given = {"cluster": "cpu:8", "stages": 4, "microbatches": 8, "donate_argnums": 0}
    free = asd.plan(step, *arguments(), **given)
    limit = int(TIGHT * max(free.peaks))
    plan = asd.plan(step, *arguments(), **given, memory=limit)
    assert max(plan.peaks) <= limit < max(free.peaks)
