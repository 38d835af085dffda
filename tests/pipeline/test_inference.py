"""Steps without a backward pass: microbatches through stages, one after another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import autosharding as asd
from autosharding.errors import StageError
from tests.pipeline.test_memory import arguments, block, step


def infer(p, tokens):
    """Per token the logarithms of the probabilities, and one number of the whole batch."""
    x = p["embed"][tokens[:, :-1]]
    for each in p["blocks"]:
        x = block(each, x)
    return jax.nn.log_softmax(x @ p["head"]), {"size": jnp.mean(jnp.square(x))}


def weights_and_tokens():
    (p, _), tokens = arguments()
    return p, tokens


@pytest.mark.parametrize(("stages", "microbatches", "schedule"), [(2, "auto", "1f1b"), (4, 8, "latency")])
def test_inference_in_stages_is_that_of_one_device(stages, microbatches, schedule):
    args = weights_and_tokens()
    run = asd.parallelize(infer, stages=stages, microbatches=microbatches, schedule=schedule)
    plan = run.plan(*args)
    assert (plan.schedule.name, plan.schedule.n_stages) == ("forward", stages)
    for x, y in zip(jax.tree.leaves(run(*args)), jax.tree.leaves(jax.jit(infer)(*args)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


def test_stages_are_chosen_for_throughput_or_latency(tmp_path):
    args = weights_and_tokens()
    given = {"cluster": "cpu:8", "stages": 4, "microbatches": 8}
    soon, many = (asd.plan(infer, *args, **given, schedule=name) for name in ("latency", "throughput"))
    passes = lambda plan: [p.forward for p in plan.prices]  # noqa: E731
    assert max(passes(many)) < max(passes(soon))
    assert sum(passes(soon)) < sum(passes(many))
    soon.save(tmp_path / "plan.json")
    assert asd.load_plan(tmp_path / "plan.json") == soon


def test_a_step_with_a_backward_pass_has_no_such_schedule():
    with pytest.raises(StageError, match="has a backward pass, and 'latency' is for steps that have none"):
        asd.plan(step, *arguments(), cluster="cpu:4", stages=2, schedule="latency")
