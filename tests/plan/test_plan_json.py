"""A plan goes to a file and comes back the same; what is no plan is refused with a paragraph."""

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from small_plan import other_plan, small_plan

import autosharding.plan_json
from autosharding.errors import PlanError
from autosharding.pipeline import load_plan
from autosharding.plan_json import dumps, save_plan, to_json
from autosharding.plan_load import from_json

SCHEMA = json.loads(Path(autosharding.plan_json.__file__).with_name("plan.schema.json").read_text())


@pytest.mark.parametrize("plan", [small_plan(), other_plan(), replace(small_plan(), bound=float("-inf"))])
def test_there_and_back(plan, tmp_path):
    path = tmp_path / "plan.json"
    save_plan(plan, path)
    assert load_plan(path) == plan
    assert load_plan(path).topology == plan.topology
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    jsonschema.validate(json.loads(path.read_text()), SCHEMA)


def test_specs_and_moves_stand_once():
    data = to_json(small_plan())
    assert len(data["specs"]) == len({json.dumps(s) for s in data["specs"]})
    assert [s["operands"] for s in data["steps"]][1] == [data["inputs"][0]["spec"]]
    assert "NaN" not in dumps(small_plan())


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    save_plan(small_plan(), path)

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        save_plan(other_plan(), path)
    assert load_plan(path) == small_plan()


def damaged(**changes):
    return {**json.loads(dumps(small_plan())), **changes}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no plan file, or only a part of one"),
        (dumps(small_plan())[:1000], "only a part"),
        ("[1, 2]", "JSON but no plan"),
        ('{"cells": []}', "JSON but no plan"),
        (json.dumps(damaged(version=4)), "version 4"),
        (json.dumps(damaged(steps=3)), "steps: 3 stands where list"),
        (json.dumps(damaged(bound="fast")), "bound: 'fast'"),
        (json.dumps(damaged(extra=1)), "'extra' does not belong"),
        (json.dumps(damaged(topology={})), "topology"),
        (json.dumps(damaged(moves=[])), r"copies\[0\]: moves\[0\]: 0 is no entry of moves"),
        (json.dumps(damaged(specs=[])), "no entry of specs"),
        (json.dumps({k: v for k, v in damaged().items() if k != "copies"}), "'copies' is missing"),
        (json.dumps({k: v for k, v in damaged().items() if k != "specs"}), "'specs' is missing"),
        (json.dumps(damaged(copies=[])), "reads copy 0"),
        ("[" * 100_000, "no plan file"),
    ],
)
def test_what_is_no_plan(text, says, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(PlanError, match=says) as error:
        load_plan(path)
    assert str(path) in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(PlanError, match="cannot be read: No such file"):
        load_plan(tmp_path / "none.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match="it is not text"):
        load_plan(tmp_path / "binary")


@pytest.mark.parametrize("key", sorted(to_json(small_plan())))
@pytest.mark.parametrize("junk", [None, "x", -7, [], [None], [{}], {}])
def test_no_junk_gets_past(key, junk):
    data = damaged(**{key: junk})
    try:
        from_json(data)
    except PlanError:
        return
    assert junk == [] or key in ("name", "fingerprint", "method", "bound", "unlimited")
