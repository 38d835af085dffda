"""Reads a plan file: strictly, and with a paragraph for everything that is wrong with it.

The readers of the fields are made from the types that `plan` declares, so the two cannot drift apart.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from autosharding.errors import PlanError
from autosharding.plan import Plan
from autosharding.plan_json import FORMAT, VERSION
from autosharding.reshard import Move
from autosharding.spec import MONOIDS, Spec
from cost_model import ClusterError, Topology

Reader = Callable[[Any], Any]

_EXTRA = ("format", "version", "specs", "moves")
_REMEDY = "Plan the step again and save it with `plan.save(path)` or `autosharding plan TARGET -o plan.json`."


def read_file(path: str | os.PathLike[str]) -> Any:
    """What a file of JSON says.

    Raises:
        PlanError: when it is not there, or is no JSON.
    """
    shown = os.fspath(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise PlanError(f"The plan file {shown!r} cannot be read: {reason}. {_REMEDY}") from error
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PlanError(
            f"{shown!r} is no plan file, or only a part of one: it stops being JSON at {_place(error)}. {_REMEDY}"
        ) from error


def from_json(data: Any, source: str = "this") -> Plan:
    """Invert `plan_json.to_json`, and verify.

    Raises:
        PlanError: when it is no plan, is of another version, or is damaged.
    """
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise PlanError(f'{source!r} is JSON but no plan: a plan file says "format": "{FORMAT}". {_REMEDY}')
    if data.get("version") != VERSION:
        raise PlanError(
            f"{source!r} is a plan of version {data.get('version')!r}, and this release reads version {VERSION}. "
            "Read it with the release that wrote it, or plan the step again."
        )
    try:
        return _read(data).verify()
    except _Damaged as error:
        raise PlanError(f"The plan file {source!r} is damaged: {error}. {_REMEDY}") from error
    except (ClusterError, LookupError, ValueError) as error:
        raise PlanError(f"The plan file {source!r} is damaged: {error} {_REMEDY}") from error


def _place(error: Exception) -> str:
    return f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "a nesting that is too deep"


class _Damaged(Exception):
    """Where in the file, and what."""


def _read(data: Mapping[str, Any]) -> Plan:
    readers: dict[Any, Reader] = {}
    spec_row = _record(Spec, readers)
    specs = _items(data, "specs", spec_row)
    for i, s in enumerate(specs):
        if s.monoid not in MONOIDS:
            raise _Damaged(f"specs[{i}] has the unknown monoid {s.monoid!r}")
    readers[Spec] = _entry_of(specs, "specs")
    moves = _items(data, "moves", _record(Move, readers))
    readers[Move] = _entry_of(moves, "moves")
    readers[Topology] = Topology.from_json
    body = {k: v for k, v in data.items() if k not in _EXTRA}
    return _record(Plan, readers)(body)


def _items(data: Mapping[str, Any], key: str, reader: Reader) -> tuple[Any, ...]:
    if key not in data:
        raise _Damaged(f"{key!r} is missing")
    return _at(key, _list(reader), data[key])


def _entry_of(table: Sequence[Any], name: str) -> Reader:
    def read(data: Any) -> Any:
        if type(data) is not int or not 0 <= data < len(table):
            raise _Damaged(f"{data!r} is no entry of {name}, which has {len(table)}")
        return table[data]

    return read


def _reader(kind: Any, readers: dict[Any, Reader]) -> Reader:
    """The reader of a declared type; made once."""
    if kind not in readers:
        readers[kind] = _make(kind, readers)
    return readers[kind]


def _make(kind: Any, readers: dict[Any, Reader]) -> Reader:
    if kind is float:
        return _float
    if kind in (int, str, bool):
        return lambda data: _exactly(kind, data)
    if is_dataclass(kind):
        return _record(kind, readers)
    args = get_args(kind)
    if get_origin(kind) in (Union, UnionType) and NoneType in args:
        inner = _reader(next(a for a in args if a is not NoneType), readers)
        return lambda data: None if data is None else inner(data)
    if get_origin(kind) is tuple and args[-1] is Ellipsis:
        return _list(_reader(args[0], readers))
    if get_origin(kind) is tuple:
        return _row([_reader(a, readers) for a in args])
    raise TypeError(f"a plan cannot hold {kind}")


def _exactly(kind: type, data: Any) -> Any:
    if type(data) is not kind:
        raise _Damaged(f"{_short(data)} stands where {kind.__name__} is expected")
    return data


def _float(data: Any) -> float:
    if data in ("inf", "-inf", "nan"):
        return float(data)
    if type(data) not in (int, float):
        raise _Damaged(f"{_short(data)} stands where a number is expected")
    return float(data)


def _list(item: Reader) -> Reader:
    def read(data: Any) -> tuple[Any, ...]:
        _exactly(list, data)
        done: list[Any] = []
        try:
            for x in data:
                done.append(item(x))
        except _Damaged as error:
            raise _Damaged(_under(f"[{len(done)}]", error)) from error
        return tuple(done)

    return read


def _row(items: Sequence[Reader]) -> Reader:
    def read(data: Any) -> tuple[Any, ...]:
        if len(_exactly(list, data)) != len(items):
            raise _Damaged(f"{_short(data)} should have {len(items)} entries")
        return tuple(r(x) for r, x in zip(items, data, strict=True))

    return read


def _record(kind: Any, readers: dict[Any, Reader]) -> Reader:
    hints = get_type_hints(kind)
    of = {f.name: _reader(hints[f.name], readers) for f in fields(kind)}

    def read(data: Any) -> Any:
        _exactly(dict, data)
        if data.keys() != of.keys():
            missing, extra = sorted(of.keys() - data.keys()), sorted(data.keys() - of.keys())
            raise _Damaged(f"{missing[0]!r} is missing" if missing else f"{extra[0]!r} does not belong there")
        return kind(**{name: _at(name, reader, data[name]) for name, reader in of.items()})

    return read


def _at(name: str, reader: Reader, data: Any) -> Any:
    try:
        return reader(data)
    except _Damaged as error:
        raise _Damaged(_under(name, error)) from error


def _under(where: str, error: _Damaged) -> str:
    """`steps` and `[3]: reads: ...` are `steps[3]: reads: ...`."""
    text = str(error)
    return where + text if text.startswith("[") else f"{where}: {text}"


def _short(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 40 else text[:37] + "..."
