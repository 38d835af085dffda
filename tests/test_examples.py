"""The examples run as they stand, and give the numbers of one device."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE

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


TINY = ("--hidden", "16", "--sequence", "8", "--batch", "8")


def losses_in(text):
    return {int(i): float(x) for i, x in re.findall(r"step +(\d+)   loss (\S+) nats", text)}


@pytest.mark.slow
def test_half_of_the_devices_are_lost(capsys, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    load("elastic_restart").main(["--steps", "6", *TINY])
    out = capsys.readouterr().out
    assert "goes on from the checkpoint of step 2" in out
    assert float(out.split()[-1]) < 1e-4
    assert sorted(losses_in(out)) == list(range(6))


@pytest.mark.slow
def test_a_process_is_killed_and_the_training_goes_on_with_fewer(tmp_path):
    command = [sys.executable, EXAMPLES / "train_multihost.py", *TINY, "--every", "2", "--checkpoints", tmp_path]
    with subprocess.Popen([*command, "--steps", "1000"], stdout=PIPE, stderr=PIPE, text=True) as started:
        lines, pids = [], []
        for line in started.stdout:
            lines.append(line)
            if line.startswith("processes"):
                pids = list(map(int, line.split()[1:]))
            if line.startswith("step    4"):
                os.kill(pids[1], signal.SIGKILL)
                break
        began = time.monotonic()
        rest, errors = started.communicate(timeout=60)
        assert time.monotonic() - began < 60
    assert started.returncode == 1
    assert "process 1 of 2 was killed by SIGKILL" in errors
    assert not any(is_there(p) for p in pids)
    saved = sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit())
    done = subprocess.run(
        [*command, "--processes", "1", "--stages", "1", "--steps", str(saved[-1] + 3)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"goes on from the checkpoint of step {saved[-1]}" in done.stdout
    before, after = losses_in("".join(lines) + rest), losses_in(done.stdout)
    assert min(after) == saved[-1] + 1
    both = before.keys() & after.keys()
    np.testing.assert_allclose([after[i] for i in both], [before[i] for i in both], rtol=1e-4)
    assert max(after) == saved[-1] + 2


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_notebook():
    notebook = nbformat.read(EXAMPLES / "explore.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": EXAMPLES}}).execute()
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    assert outputs[-1].text == "True\n"
