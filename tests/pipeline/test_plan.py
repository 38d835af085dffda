"""The plan of a pipeline as a reader sees it: text, HTML, one piece of it, beside another plan."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import autosharding as asd
from autosharding.cli import main
from autosharding.pipeline.plan_tables import layers_of, layers_text, runs_text
from tests.pipeline.test_memory import arguments, step

PLANS = {"two": {"stages": 2}, "four": {"stages": 4}, "mesh": {"stages": 1}}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plans")
    for name, options in PLANS.items():
        asd.plan(step, *arguments(), cluster="cpu:4", microbatches=4, **options).save(folder / f"{name}.json")
    return {name: folder / f"{name}.json" for name in PLANS}


@pytest.fixture
def run(capsys):
    def run(*words):
        with pytest.raises(SystemExit) as leaving:
            main(list(map(str, words)))
        out = capsys.readouterr()
        return (leaving.value.code or 0), out.out + out.err

    return run


def test_layers_are_told_by_the_first_number_that_differs():
    names = ["[0].h[0].w", "[0].h[1].w", "[0].h[1].norm_1", "[0].h[1].norm_2", "[0].out", "[0]['s'][0:2]"]
    layers = layers_of(names)
    assert [layers[n].path for n in names] == ["[0].h[*]"] * 4 + names[4:]
    assert layers_text([layers[n] for n in names[:4]]) == "[0].h[0-1]"
    assert layers_text([layers["[0].out"]]) == "[0].out"
    assert runs_text([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"


def test_it_says_which_layers_a_piece_has(files, run):
    code, text = run("show", files["two"])
    assert code == 0
    rows = re.findall(r"^  (\d) +\[0\]\[0\]\['blocks'\]\[([\d, -]+)\]", text, re.M)
    plan = asd.load_plan(files["two"])
    held = [
        sorted({int(n) for i in p.inputs for n in re.findall(r"^\[0\]\[0\]\['blocks'\]\[(\d+)", i.name)})
        for p in plan.plans
    ]
    assert rows == [(str(p), runs_text(numbers)) for p, numbers in enumerate(held) if numbers]
    assert sum(map(len, held)) == len(arguments()[0][0]["blocks"])
    assert f"<pre>schedule, {text.split('schedule, ')[1][:4]}" in run("show", files["two"], "--format", "html")[1]


def test_a_piece_alone(files, run):
    code, text = run("show", files["two"], "--piece", 1)
    assert code == 0
    assert text == f"{asd.load_plan(files['two']).plans[1]}\n"
    for words, says in (
        (["two", "--piece", 2], "a pipeline of 2 pieces: there is no piece 2"),
        (["mesh", "--piece", 0], "a plan of one mesh"),
        (["two", "--format", "mlir"], "say which, --piece 0"),
    ):
        code, text = run("show", files[words[0]], *words[1:])
        assert (code, says in text) == (1, True), text


@pytest.mark.parametrize("pair", [("two", "four"), ("mesh", "two"), ("four", "mesh")])
def test_two_plans_beside_each_other(files, run, pair):
    a, b = (asd.load_plan(files[name]) for name in pair)
    code, text = run("diff", files[pair[0]], files[pair[1]])
    assert code == 0
    assert f"{b.seconds / a.seconds - 1:+.1%}" in text
    assert "other programs" in text
    last = max(map(int, re.findall(r"^  (\d) ", text.split("\nstages\n")[1].split("\n\n")[0], re.M)))
    assert last + 1 == max(PLANS[name]["stages"] for name in pair)
    assert "parameters of other stages" in text


def test_equal_plans(files):
    plan = asd.load_plan(files["two"])
    assert not plan.diff(plan)
    assert "0 ops split otherwise" in str(plan.diff(plan))


def test_inputs_of_a_piece_are_what_they_are_to_the_step():
    """A weight that two stages read is a weight on both, a constant no batch, and neither is split by the batch."""

    def tied(state, tokens):
        def loss(w):
            h = jnp.tanh(w["embed"][tokens] @ w["layer"]) + np.linspace(0, 1, 32, dtype=np.float32).reshape(8, 4)
            return jnp.mean(jax.nn.logsumexp(h @ w["embed"].T, -1))

        value, grads = jax.value_and_grad(loss)(state)
        return jax.tree.map(lambda w, g: w - 0.1 * g, state, grads), value

    state = {"embed": np.ones((16, 4), np.float32), "layer": np.ones((4, 4), np.float32)}
    plan = asd.plan(tied, state, np.zeros((8, 8), np.int32), cluster="cpu:4", stages=2, microbatches=2, method="fsdp")
    roles = [{i.name: i.role for i in p.inputs} for p in plan.plans]
    assert [r["[0]['embed']"] for r in roles] == ["parameter"] * 2
    assert {role for r in roles for name, role in r.items() if name.startswith("after")} == {"handed"}
    assert {role for r in roles for name, role in r.items() if name.startswith("[1]")} == {"batch"}
    assert "constant" in {role for r in roles for role in r.values()}


def test_what_the_compiler_adds_has_no_line_of_its_own():
    plan = asd.plan(step, *arguments(), cluster="cpu:4", stages=2, microbatches=4)
    lines = {s.source for p in plan.plans for s in p.steps}
    assert lines
    assert {line.split(":")[0] for line in lines} <= {"test_memory.py", ""}
