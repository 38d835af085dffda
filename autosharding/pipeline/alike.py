"""Pieces that do the same: known by their ops and by how these hang together, before any piece is traced."""

from __future__ import annotations

import hashlib
from typing import Any

from autosharding.graph import Literal, Value
from autosharding.pipeline.assign import Assignment


def classes_of(assignment: Assignment) -> tuple[int, ...]:
    """For each piece the first piece that does the same; scalars written into the program may differ."""
    first: dict[bytes, int] = {}
    return tuple(first.setdefault(_signature(assignment, p), p) for p in range(assignment.n_pieces))


def _signature(assignment: Assignment, piece: int) -> bytes:
    """A hash of the ops of a piece in program order, values numbered as they come."""
    labels, graph = assignment.labels, assignment.labels.graph
    received = {v for place in ("loop", "after") for v in assignment.received(piece, place)}
    sent = {v for place in ("loop", "after") for v in assignment.sent(piece, place)}
    returned = {a.id for a in graph.outputs if isinstance(a, Value)}
    spans = {u.first: u.last for u in assignment.units}
    places = {u.first: u.place for u in assignment.units_of(piece)}
    before = assignment.before(piece, ())
    numbers: dict[int, int] = {}
    digest = hashlib.sha256()

    def said(v: Value) -> Any:
        if graph.is_free(v):
            return "free", v.type
        if v.id in numbers:
            return numbers[v.id]
        numbers[v.id] = len(numbers)
        kind = "received" if v.id in received else "given" if graph.producer[v.id] is None else "made"
        return numbers[v.id], kind, v.type, v.id in sent, v.id in returned, type(labels.states[v.id]).__name__

    for first in sorted({*places, *before}):
        if graph.ops[first].is_free:
            continue
        for op in graph.ops[first : spans[first] + 1]:
            reads = [a.dtype if isinstance(a, Literal) else said(a) for a in op.inputs]
            what = (op.name, places.get(first, "before"), op.border, str(op.region), sorted(op.params.items()))
            digest.update(repr((what, reads, [said(v) for v in op.outputs])).encode())
    return digest.digest()
