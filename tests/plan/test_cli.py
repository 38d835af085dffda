"""The command line: a plan made, shown, compared, verified; and what is wrong said in a paragraph."""

import json
import subprocess
import sys

import jsonschema
import pytest
from small_plan import other_plan, small_plan
from test_plan_json import SCHEMA

from autosharding.cli import main
from autosharding.pipeline import load_plan

STEP = """
import jax
import jax.numpy as jnp


def step(state, x):
    def loss(w):
        return jnp.mean(jnp.square(jnp.tanh(x @ w["a"]) @ w["b"]))

    value, g = jax.value_and_grad(loss)(state["w"])
    key, noise = jax.random.split(state["key"])
    w = jax.tree.map(lambda w, g: w - 0.1 * g, state["w"], g)
    return {"w": w, "key": key, "n": state["n"] + 1}, value + 0 * jax.random.normal(noise)


def make():
    w = {"a": jnp.full((32, 64), 0.1), "b": jnp.full((64, 16), 0.1)}
    return step, ({"w": w, "key": jax.random.key(0), "n": 0}, jnp.ones((64, 32)))


def broken():
    return step, 1 / 0


def nothing():
    return 3
"""


@pytest.fixture
def run(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as leaving:
            main([str(a) for a in arguments])
        out = capsys.readouterr()
        return leaving.value.code or 0, out.out, out.err

    return run


@pytest.fixture
def step_file(tmp_path):
    path = tmp_path / "my_step.py"
    path.write_text(STEP)
    return path


@pytest.fixture
def files(tmp_path):
    small_plan().save(tmp_path / "a.json")
    other_plan().save(tmp_path / "b.json")
    return tmp_path / "a.json", tmp_path / "b.json"


def test_show(run, files):
    assert run("show", files[0]) == (0, str(small_plan()) + "\n", "")
    code, text, _ = run("show", files[0], "--format", "json")
    jsonschema.validate(json.loads(text), SCHEMA)
    assert code == 0
    assert "partial = sum[1]" in run("show", files[0], "--format", "mlir")[1]
    assert "<table>" in run("show", files[0], "--format", "html")[1]


def test_diff(run, files):
    code, text, _ = run("diff", *files)
    assert code == 0
    assert text == str(small_plan().diff(other_plan())) + "\n"


def test_plan_of_the_zoo(run, tmp_path):
    path = tmp_path / "plan.json"
    code, text, _ = run("plan", "mlp:64x2", "--batch", 64, "--cluster", "cpu:8", "--mesh", "x=2,y=4", "-o", path)
    assert code == 0, text
    plan = load_plan(path)
    assert plan.mesh == {"x": 2, "y": 4}
    assert text.startswith(str(plan))
    assert f"written to {path}" in text


def test_plan_of_a_file(run, step_file):
    code, text, err = run("plan", f"{step_file}:make", "--cluster", "h100:1x8", "--mesh", "x=8", "--method", "data")
    assert code == 0, err
    assert "[0]['w']['a']" in text
    assert "method     data" in text


def test_verify(run, step_file, tmp_path):
    path = tmp_path / "plan.json"
    target = f"{step_file}:make"
    assert run("plan", target, "--cluster", "cpu:8", "--mesh", "x=2,y=4", "--method", "fsdp", "-o", path)[0] == 0
    code, text, err = run("verify", target, "--plan", path, "--steps", 2)
    assert code == 0, text + err
    assert "the collectives are the plan's" in text
    assert "numbers after 2 steps" in text


def test_rules(run):
    code, text, _ = run("rules")
    assert code == 0
    assert "dot_general" in text


def test_as_a_module(files):
    done = subprocess.run(
        [sys.executable, "-m", "autosharding", "show", files[0]], capture_output=True, text=True, check=True
    )
    assert done.stdout == str(small_plan()) + "\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["plan", "gpt:9000b", "--cluster", "cpu:8"], "no model 'gpt:9000b'"),
        (["plan", "mlp:64x2", "--cluster", "abacus:8"], "abacus"),
        (["plan", "mlp:64x2", "--cluster", "cpu:8", "--mesh", "x=3"], "8"),
        (["plan", "mlp:64x2", "--cluster", "cpu:8", "--mesh", "x:8"], "Write it as x=2,y=4"),
        (["plan", "mlp:64x2", "--cluster", "cpu:8", "--method", "best"], "There is no method 'best'"),
        (["plan", "mlp:64x2", "--cluster", "cpu:8", "--memory", "lots"], "no amount of memory"),
        (["plan", "mlp:64x2", "--cluster", "cpu:8", "--memory", "1KiB"], "error: "),
        (["plan", "nowhere.py:make", "--cluster", "cpu:8"], "There is no file 'nowhere.py'"),
        (["plan", "STEP", "--cluster", "cpu:8"], "does not say which callable"),
        (["plan", "STEP:other", "--cluster", "cpu:8"], "has no 'other'; it has step, make"),
        (["plan", "STEP:broken", "--cluster", "cpu:8"], "ZeroDivisionError: division by zero (my_step.py:22)"),
        (["plan", "STEP:nothing", "--cluster", "cpu:8"], "returns int, not (step, example_args)"),
        (["plan", "STEP:make", "--cluster", "cpu:8", "--batch", "4"], "are for models of the zoo"),
        (["show", "nowhere.json"], "cannot be read: No such file"),
        (["show", "STEP"], "no plan file"),
        (["diff", "STEP", "STEP"], "no plan file"),
        (["verify", "STEP:make", "--plan", "OTHER"], "This plan was made for the step 'step<T>'"),
        (["verify", "STEP:make", "--devices", "3"], "3"),
    ],
)
def test_what_is_wrong(run, step_file, files, arguments, says):
    named = [a.replace("STEP", str(step_file)).replace("OTHER", str(files[0])) for a in arguments]
    code, out, err = run(*named)
    assert code == 1
    assert out == ""
    assert err.startswith("error: ")
    assert says in err
    assert "Traceback" not in err
