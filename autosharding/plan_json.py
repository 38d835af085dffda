"""A plan as JSON, without loss; `plan_load` reads it back. The schema is `plan.schema.json`, beside this file.

Specs and moves repeat by the thousand, so each stands once, in the tables `specs` and `moves`, and is a number
elsewhere. All else is as the dataclasses of `plan` have it: objects by field name, tuples as lists, infinity, which
JSON lacks, as "inf".
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autosharding.reshard import Move
from autosharding.spec import Spec
from cost_model import Topology

if TYPE_CHECKING:
    from autosharding.plan import Plan

FORMAT = "autosharding-plan"
VERSION = 3


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain JSON values."""
    tables = _Tables()
    body = {f.name: tables.encode(getattr(plan, f.name)) for f in fields(plan)}
    return {
        "format": FORMAT,
        "version": VERSION,
        "specs": [tables.encode_fields(s) for s in tables.specs],
        "moves": tables.move_rows,
        **body,
    }


def dumps(plan: Plan) -> str:
    """The plan as JSON text: one line for each entry of its lists, so that line tools work on it."""
    return "{\n" + ",\n".join(_entries(to_json(plan))) + "\n}\n"


def save_plan(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write the plan to a file, whole or not at all.

    Raises:
        OSError: when the file cannot be written.
    """
    target = Path(path)
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(dumps(plan), encoding="utf-8")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def _entries(data: dict[str, Any]) -> Iterator[str]:
    for key, value in data.items():
        if isinstance(value, list) and value and not isinstance(value[0], str | int):
            yield f"{json.dumps(key)}: [\n" + ",\n".join(map(_line, value)) + "\n]"
        else:
            yield f"{json.dumps(key)}: {_line(value)}"


def _line(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


class _Tables:
    """Specs and moves met so far, each with its number."""

    def __init__(self) -> None:
        self.specs: dict[Spec, int] = {}
        self.moves: dict[Move, int] = {}
        self.move_rows: list[dict[str, Any]] = []

    def encode(self, value: Any) -> Any:
        if isinstance(value, Spec):
            return self.specs.setdefault(value, len(self.specs))
        if isinstance(value, Move):
            return self._move(value)
        if isinstance(value, Topology):
            return value.to_json()
        if isinstance(value, tuple):
            return [self.encode(v) for v in value]
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else str(float(value))
        if is_dataclass(value):
            return self.encode_fields(value)
        return int(value) if isinstance(value, int) and not isinstance(value, bool) else value

    def encode_fields(self, value: Any) -> dict[str, Any]:
        return {f.name: self.encode(getattr(value, f.name)) for f in fields(value)}

    def _move(self, move: Move) -> int:
        if move not in self.moves:
            self.moves[move] = len(self.moves)
            self.move_rows.append(self.encode_fields(move))
        return self.moves[move]
