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


@pytest.mark.parametrize(
    ("name", "jit", "method", "steps"),
    [
        ("train_equinox", eqx.filter_jit, "auto", 5),
        ("train_equinox", eqx.filter_jit, "fsdp", 5),
        ("train_nnx", nnx.jit, "data", 4),
        pytest.param("train_nnx", nnx.jit, "auto", 4, marks=pytest.mark.slow),
        ("train_resnet", jax.jit, "data", 3),
        pytest.param("train_resnet", jax.jit, "auto", 3, marks=pytest.mark.slow),
        *(
            pytest.param("train_gpt", jax.jit, m, 20, marks=pytest.mark.slow)
            for m in ("auto", "fsdp", "zero1", "zero2")
        ),
    ],
)
def test_the_numbers_are_those_of_one_device(name, jit, method, steps):
    example = load(name)
    step = asd.parallelize(example.train_step, method=method)
    np.testing.assert_allclose(example.run(step, steps), example.run(jit(example.train_step), steps), rtol=1e-4)
    plan = step.plan(*example.make()[1])
    assert plan.unresolved == ()
    assert {i.role for i in plan.inputs} >= {"parameter", "optimizer", "batch"}


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
