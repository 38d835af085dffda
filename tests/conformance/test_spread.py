"""A fixed spread of JAX's harnesses in every run of the tests; all of them by `python -m tests.conformance`."""

from __future__ import annotations

from dataclasses import replace

import jax
import pytest

from autosharding.rules import REGISTRY
from tests.conformance.catalog import groups, harnesses, spread
from tests.conformance.report import markdown, summary
from tests.conformance.run import MESHES, run

COUNT = 600
GROUPS = sorted({h.group_name for h in spread(COUNT)})


@pytest.mark.parametrize("group", GROUPS)
def test_group(group: str) -> None:
    mine = [h for h in spread(COUNT) if h.group_name == group]
    outcomes = [run(h, [MESHES[i % len(MESHES)]]) for i, h in enumerate(mine)]  # each mesh in turn, to be quick
    assert [o.reason for o in outcomes if o.status == "failed"] == []


def test_every_group_is_in_the_spread() -> None:
    assert set(GROUPS) == set(groups())
    assert COUNT <= len(spread(COUNT)) < len(harnesses())


def test_a_wrong_rule_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = next(h for h in harnesses() if h.group_name == "cumsum")
    monkeypatch.setitem(REGISTRY, "cumsum", lambda op, right=REGISTRY["cumsum"]: replace(right(op), run=None))
    outcome = run(harness, MESHES[:1])
    assert outcome.status == "failed"
    assert "cumsum" in outcome.reason
    assert "1 failed" in summary([outcome])
    assert "| cumsum | 0 | 1 | 0 | - |" in markdown([outcome], jax.__version__)
