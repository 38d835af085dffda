"""The public format of the ASPLOS 2025 contest (IOPDDL), read and written without loss.

{"problem": {"name", "nodes": {"intervals": [[lo, hi]], "costs": [[..]], "usages": [[..]]},
 "edges": {"nodes": [[u, v]], "costs": [[row-major k_u x k_v]]}, "usage_limit"}}, plain or gzipped; one interval per
node, [0, 0) where it holds nothing. 1e18 and more means forbidden. A node with several memory rows is written as
followers of itself: one more node per row, tied by an edge that forbids all but equal strategies.
Source: github.com/google/iopddl (iopddl.h, iopddl.cc).
"""

from __future__ import annotations

import gzip
import json
import marshal
import os
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from ilp.collector import collector_paused
from ilp.problem import Edge, Memory, Problem, ProblemError

__all__ = ["FORBIDDEN", "load_json", "read_problem", "read_solution", "write_problem", "write_solution"]

FORBIDDEN = 10**18
"""The format's way to write an infinite cost."""

MARSHAL = 2
"""Version of Python's own byte format in which equal values are equal bytes: later ones write shared objects once."""


@collector_paused()
def read_problem(path: str | Path) -> Problem:
    """Read a problem; ProblemError says in words what is wrong with a damaged file."""
    path = Path(path)
    data = load_json(path)
    body = data.get("problem") if isinstance(data, dict) else None
    if not isinstance(body, dict):
        raise ProblemError(f'{path}: not an IOPDDL problem: the top level must be {{"problem": {{...}}}}.')
    try:
        problem = _problem(path, body)
        problem.verify()
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, ProblemError):
            said = str(error)
            raise error if said.startswith(str(path)) else ProblemError(f"{path}: {said}") from error
        raise ProblemError(f"{path}: not a well-formed IOPDDL problem: {_said(error)}.") from error
    return problem


def _said(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"the key {error} is missing"
    return str(error).strip(".") or type(error).__name__


def load_json(path: Path) -> Any:
    """What a file holds, plain or gzipped; ProblemError says what is wrong with a damaged one."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ProblemError(f"{path}: cannot be read: {error.strerror or error}.") from error
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as error:
            raise ProblemError(f"{path}: the gzip stream is damaged or cut short ({error}); fetch it again.") from error
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ProblemError(f"{path}: not JSON ({error}).") from error


def _problem(path: Path, body: dict[str, Any]) -> Problem:
    nodes = body["nodes"]
    intervals, costs, usages = nodes["intervals"], nodes["costs"], nodes["usages"]
    if not len(intervals) == len(costs) == len(usages):
        raise ProblemError(
            f"{path}: {len(intervals)} intervals, {len(costs)} cost lists and {len(usages)} usage lists; "
            "there must be one of each per node."
        )
    prices = _Prices(path)
    vectors = tuple(prices.vector(cost, f"the costs of node {u}") for u, cost in enumerate(costs))
    memory = []
    for u, (span, usage) in enumerate(zip(intervals, usages, strict=True)):
        lo, hi = _pair(path, span, f"the interval of node {u}")
        if lo < hi:
            memory.append(Memory(u, lo, hi, prices.usage(usage, f"the usages of node {u}")))
        elif lo > hi:
            raise ProblemError(f"{path}: the interval of node {u} runs backwards: [{lo}, {hi}].")
    edges = body.get("edges", {"nodes": [], "costs": []})
    if len(edges["nodes"]) != len(edges["costs"]):
        raise ProblemError(f"{path}: {len(edges['nodes'])} edges, but {len(edges['costs'])} edge cost lists.")
    joined = []
    for at, (ends, cost) in enumerate(zip(edges["nodes"], edges["costs"], strict=True)):
        where = f"edge {at}"
        u, v = _pair(path, ends, where)
        if not (0 <= u < len(vectors) and 0 <= v < len(vectors)):
            raise ProblemError(f"{path}: {where} joins nodes {u} and {v}; there are nodes 0 to {len(vectors) - 1}.")
        joined.append(Edge(u, v, prices.matrix(cost, len(vectors[u]), len(vectors[v]), where)))
    limit = body.get("usage_limit")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 0):
        raise ProblemError(f"{path}: usage_limit is {limit!r}; it must be a whole number of bytes, not negative.")
    name = body.get("name", path.name)
    return Problem(str(name), vectors, tuple(joined), tuple(memory), limit)


def _pair(path: Path, pair: Any, where: str) -> tuple[int, int]:
    if not isinstance(pair, list) or len(pair) != 2 or not all(type(x) is int for x in pair):
        raise ProblemError(f"{path}: {where} is {pair!r}; it must be two whole numbers.")
    return pair[0], pair[1]


class _Prices:
    """Lists to arrays; equal lists to one array, of which each is made once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.made: dict[tuple[bytes, tuple[int, ...], str], np.ndarray] = {}
        self.seen: dict[tuple[bytes, tuple[int, ...], str], np.ndarray] = {}

    def vector(self, values: Any, where: str) -> np.ndarray:
        return self._made(values, (), lambda: self._vector(values, where))

    def usage(self, values: Any, where: str) -> np.ndarray:
        return self._made(values, (), lambda: self._usage(values, where), "bytes")

    def matrix(self, values: Any, rows: int, columns: int, where: str) -> np.ndarray:
        return self._made(values, (rows, columns), lambda: self._matrix(values, rows, columns, where))

    def _made(
        self, values: Any, shape: tuple[int, ...], make: Callable[[], np.ndarray], kind: str = "seconds"
    ) -> np.ndarray:
        """Files repeat few lists many times: a list is known by its bytes."""
        key = (marshal.dumps(values, MARSHAL), shape, kind)
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def _vector(self, values: Any, where: str) -> np.ndarray:
        return self._shared(self._numbers(values, where).astype(np.float64), forbid=True)

    def _usage(self, values: Any, where: str) -> np.ndarray:
        numbers = self._numbers(values, where)
        if numbers.dtype.kind != "i":
            raise ProblemError(f"{self.path}: {where} must be whole numbers of bytes.")
        return self._shared(numbers, forbid=False)

    def _matrix(self, values: Any, rows: int, columns: int, where: str) -> np.ndarray:
        numbers = self._numbers(values, f"the costs of {where}")
        if len(numbers) != rows * columns:
            raise ProblemError(
                f"{self.path}: {where} has {len(numbers)} costs; its nodes have {rows} and {columns} strategies, "
                f"so there must be {rows * columns}."
            )
        return self._shared(numbers.astype(np.float64).reshape(rows, columns), forbid=True)

    def _numbers(self, values: Any, where: str) -> np.ndarray:
        if not isinstance(values, list):
            raise ProblemError(f"{self.path}: {where} must be a list of numbers, got {type(values).__name__}.")
        array = np.array(values)
        if array.ndim != 1 or (array.dtype.kind not in "iuf" and len(values)):
            raise ProblemError(f"{self.path}: {where} must be a flat list of numbers.")
        return array.astype(np.int64) if array.dtype.kind == "u" or not len(values) else array

    def _shared(self, array: np.ndarray, forbid: bool) -> np.ndarray:
        if forbid:
            array[array >= FORBIDDEN] = np.inf
        return self.seen.setdefault((array.tobytes(), array.shape, array.dtype.str), array)


def write_problem(problem: Problem, path: str | Path) -> None:
    """Write a problem; gzipped when the name ends in .gz. Nothing is left half-written."""
    problem.verify()
    costs = [_plain(cost) for cost in problem.costs]
    spans = [[0, 0] for _ in costs]
    usages = [[0] * len(cost) for cost in costs]
    ends = [[edge.u, edge.v] for edge in problem.edges]
    matrices = [_plain(edge.cost.ravel()) for edge in problem.edges]
    for row in problem.memory:
        node, k = row.node, len(row.usage)
        if spans[node] != [0, 0]:
            ends.append([node, len(costs)])
            matrices.append(_plain(np.where(np.eye(k, dtype=bool), 0.0, np.inf).ravel()))
            node = len(costs)
            costs.append([0] * k)
            spans.append([0, 0])
            usages.append([])
        if row.lo < row.hi:
            spans[node] = [row.lo, row.hi]
        usages[node] = row.usage.tolist()
    body: dict[str, Any] = {
        "name": problem.name,
        "nodes": {"intervals": spans, "costs": costs, "usages": usages},
        "edges": {"nodes": ends, "costs": matrices},
    }
    if problem.limit is not None:
        body["usage_limit"] = problem.limit
    _store(Path(path), {"problem": body})


def _plain(prices: np.ndarray) -> list[int | float]:
    """Whole numbers as such; others in full precision; infinities as the format writes them."""
    values = prices.tolist()
    return [FORBIDDEN if v == np.inf else int(v) if v.is_integer() and abs(v) < 2**53 else v for v in values]


def read_solution(path: str | Path) -> tuple[int, ...]:
    """Read a choice: a JSON list of strategy indices, or one inside {"solution": [...]}."""
    data = load_json(Path(path))
    data = data.get("solution") if isinstance(data, dict) else data
    if not isinstance(data, list) or not all(type(k) is int for k in data):
        raise ProblemError(f"{path}: not a solution: it must be a JSON list of strategy indices, one per node.")
    return tuple(data)


def write_solution(choice: tuple[int, ...], path: str | Path) -> None:
    """Write a choice as a JSON list."""
    _store(Path(path), list(choice))


def _store(path: Path, data: Any) -> None:
    """Write beside the target, then rename: an old file survives a failure."""
    raw = json.dumps(data).encode()
    if path.suffix == ".gz":
        raw = gzip.compress(raw, mtime=0)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
