"""The examples run as they stand, and give the numbers of one device."""

import importlib.util
import re
from pathlib import Path

import equinox as eqx
import jax
import nbformat
import numpy as np
import pytest
from flax import nnx
from nbclient import NotebookClient

import autosharding as asd

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name):
    """The example as a module of its own."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


METHODS = ("auto", "data", "fsdp", "zero1", "zero2", "megatron")
IN_CI = {("train_equinox", "auto"), ("train_equinox", "fsdp"), ("train_nnx", "data"), ("train_resnet", "data")}


@pytest.mark.parametrize(
    ("name", "jit", "steps", "method"),
    [
        pytest.param(name, jit, steps, method, marks=() if (name, method) in IN_CI else pytest.mark.slow)
        for name, jit, steps in (
            ("train_equinox", eqx.filter_jit, 5),
            ("train_nnx", nnx.jit, 4),
            ("train_resnet", jax.jit, 3),
            ("train_gpt", jax.jit, 20),
        )
        for method in METHODS
    ],
)
def test_the_plan_is_what_runs_and_the_numbers_are_those_of_one_device(name, jit, steps, method):
    example = load(name)
    step = asd.parallelize(example.train_step, method=method).lower(*example.make()[1]).compile()
    np.testing.assert_allclose(example.run(step, steps), example.run(jit(example.train_step), steps), rtol=1e-4)
    assert step.plan.unresolved == ()
    assert {i.role for i in step.plan.inputs} >= {"parameter", "optimizer", "batch"}
    found = asd.compare(step.plan, step)
    assert found.agrees, str(found)
    assert 0.85 <= found.memory_ratio <= 1.15, str(found)


def test_gpt_main(capsys):
    load("train_gpt").main(["--steps", "3", "--method", "megatron"])
    out = capsys.readouterr().out
    assert "the collectives are the plan's" in out
    worst = re.search(r"first 3 steps: (\S+)", out)
    assert worst is not None
    assert float(worst[1]) < 1e-4


@pytest.mark.slow
def test_gpt_learns(capsys):
    load("train_gpt").main(["--steps", "200"])
    losses = re.findall(r"loss (\S+) nats", capsys.readouterr().out)
    assert float(losses[-1]) < 2.6


def test_notebook():
    notebook = nbformat.read(EXAMPLES / "explore.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": EXAMPLES}}).execute()
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    assert outputs[-1].text == "True\n"
