"""Training in a pipeline is training on one device: models, stages, microbatches and schedules, in all combinations."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

import autosharding as asd
from autosharding.keys import is_key
from tests.pipeline.models import MODELS, Model

STEPS = 3
SCHEDULES = ("gpipe", "1f1b", "interleaved", "zero-bubble")
EVERY = [
    (m, s, n, schedule)
    for m in MODELS
    for s in (2, 4)
    for n in (1, 4, 8)
    for schedule in SCHEDULES
    if schedule != "interleaved" or n % s == 0
]
QUICK = {
    ("gpt2 in nnx", 2, 4, "1f1b"),
    ("llama in a scan", 4, 4, "1f1b"),
    ("residual net", 2, 8, "gpipe"),
    ("experts", 2, 4, "zero-bubble"),
    ("tied, a sum loss", 4, 8, "zero-bubble"),
    ("clipped by the global norm", 2, 4, "interleaved"),
    ("dropout", 2, 1, "gpipe"),
}


@pytest.fixture(autouse=True)
def compiled_quickly():
    """What is looked at are numbers, not speed; and what many programs map into memory is let go of."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


def trained(model: Model, run):
    """The losses, and the leaves of the state after the last step."""
    state, losses = model.state(), []
    for seed in range(STEPS):
        found = run(*state, model.batch(seed))
        if isinstance(found, tuple):
            *state, found = found
        losses.append(np.asarray(found))
    leaves = jax.tree.leaves([nnx.state(x) if isinstance(x, nnx.Object) else x for x in state])
    return losses, [np.asarray(jax.random.key_data(x) if is_key(x.dtype) else x) for x in leaves]


@functools.cache
def on_one_device(name: str):
    model = MODELS[name]
    jit = nnx.jit if "nnx" in name else jax.jit
    return trained(model, jit(model.step))


@pytest.mark.parametrize(
    ("name", "stages", "microbatches", "schedule"),
    [pytest.param(*c, marks=() if c in QUICK else pytest.mark.slow) for c in EVERY],
)
def test_loss_and_new_state_are_those_of_one_device(name, stages, microbatches, schedule):
    model = MODELS[name]
    chunks = 2 if schedule == "interleaved" else 1
    step = asd.parallelize(model.step, stages=stages, microbatches=microbatches, schedule=schedule, chunks=chunks)
    (losses, state), (expected, one) = trained(model, step), on_one_device(name)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    for x, y in zip(state, one, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-4 * np.max(np.abs(y), initial=1e-6))


@pytest.mark.parametrize("options", [{"donate_argnums": 0}, {"method": "fsdp"}], ids=["donated", "fsdp"])
def test_a_donated_state_and_a_method(options):
    name = "tied, a sum loss"
    step = asd.parallelize(MODELS[name].step, stages=2, microbatches=4, **options)
    (losses, state), (expected, one) = trained(MODELS[name], step), on_one_device(name)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    for x, y in zip(state, one, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-4 * np.max(np.abs(y)))


def test_interleaving_takes_microbatches_in_groups():
    model = MODELS["dropout"]
    step = asd.parallelize(model.step, stages=2, microbatches=1, schedule="interleaved", chunks=2)
    with pytest.raises(asd.StageError, match="do not divide into groups of 2"):
        step(*model.state(), model.batch(0))
