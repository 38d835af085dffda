"""What differs between two plans: inputs, collectives, seconds, bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autosharding.plan_tables import common_name, mesh_text, pattern
from autosharding.table import InTables, Table
from cost_model import show_bytes, show_seconds

if TYPE_CHECKING:
    from autosharding.plan import Plan


@dataclass(frozen=True, slots=True)
class InputChange:
    """An input that lies otherwise, or that only one plan has (the other side is "")."""

    name: str
    role: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Traffic:
    """All collectives of one kind over the same axes, in both plans: how many, bytes, seconds."""

    kind: str
    axes: tuple[str, ...]
    count: tuple[int, int]
    bytes: tuple[int, int]
    seconds: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Difference(InTables):
    """Plan a against plan b; pairs are (a, b).

    Attributes:
        name: the step's name; both names where they differ.
        method: how they were asked for.
        mesh: on which they are.
        same_program: whether both are of one graph.
        seconds, compute, communication: predicted.
        memory: predicted peak on one device.
        inputs: that lie otherwise.
        traffic: collectives by (kind, axes), those that are equal included.
        ops: how many ops split otherwise; None where the programs differ.
    """

    name: str
    method: tuple[str, str]
    mesh: tuple[str, str]
    same_program: bool
    seconds: tuple[float, float]
    compute: tuple[float, float]
    communication: tuple[float, float]
    memory: tuple[int, int]
    inputs: tuple[InputChange, ...]
    traffic: tuple[Traffic, ...]
    ops: int | None

    def __bool__(self) -> bool:
        """Whether anything differs."""
        moved = any(a != b for t in self.traffic for a, b in (t.count, t.bytes, t.seconds))
        pairs = (self.method, self.mesh, self.seconds, self.compute, self.communication, self.memory)
        return not self.same_program or bool(self.inputs or self.ops) or moved or any(a != b for a, b in pairs)

    def _tables(self) -> Iterable[Table]:
        yield self._totals()
        if self.inputs:
            yield Table("inputs that lie otherwise", ("path", "", "role", "a", "b"), _grouped(self.inputs))
        if self.traffic:
            yield self._traffic()

    def _totals(self) -> Table:
        rows = [
            ("method", *self.method, ""),
            ("mesh", *self.mesh, ""),
            *(
                (label, show_seconds(a), show_seconds(b), change(a, b))
                for label, (a, b) in (
                    ("time", self.seconds),
                    ("compute", self.compute),
                    ("communication", self.communication),
                )
            ),
            ("memory", *map(show_bytes, self.memory), change(*self.memory)),
        ]
        other = "other programs: the ops cannot be compared" if self.ops is None else f"{self.ops} ops split otherwise"
        return Table(f"difference of two plans of {self.name}", ("", "a", "b", "change"), tuple(rows), (3,), other)

    def _traffic(self) -> Table:
        rows = []
        for t in self.traffic:
            cells = [
                (str(n), show_bytes(size), show_seconds(s))
                for n, size, s in zip(t.count, t.bytes, t.seconds, strict=True)
            ]
            rows.append((t.kind, ",".join(t.axes), *cells[0], *cells[1]))
        header = ("kind", "axes", "a: count", "bytes", "time", "b: count", "bytes", "time")
        return Table("collectives", header, tuple(rows), (2, 3, 4, 5, 6, 7))


def diff(a: Plan, b: Plan) -> Difference:
    """What differs from plan a to plan b."""
    same = a.fingerprint == b.fingerprint and len(a.steps) == len(b.steps)
    return Difference(
        name=a.name if a.name == b.name else f"{a.name} and {b.name}",
        method=(a.method, b.method),
        mesh=(mesh_text(a), mesh_text(b)),
        same_program=same,
        seconds=(a.seconds, b.seconds),
        compute=(a.compute_seconds, b.compute_seconds),
        communication=(a.communication_seconds, b.communication_seconds),
        memory=(a.memory.peak, b.memory.peak),
        inputs=tuple(_inputs(a, b)),
        traffic=_traffic(a, b),
        ops=_ops(a, b) if same else None,
    )


def _inputs(a: Plan, b: Plan) -> Iterable[InputChange]:
    before, after = ({i.name: i for i in p.inputs} for p in (a, b))
    for name in dict.fromkeys([*before, *after]):
        sides = before.get(name), after.get(name)
        texts = [i.spec.annotate(i.dtype, i.shape) if i else "" for i in sides]
        if texts[0] != texts[1]:
            known = next(i for i in sides if i)
            yield InputChange(name, known.role, *texts)


def _traffic(a: Plan, b: Plan) -> tuple[Traffic, ...]:
    keys = sorted({(c.kind, c.axes) for p in (a, b) for c in p.collectives})
    return tuple(
        Traffic(
            kind,
            axes,
            count=(sum(c.times for c in of_a), sum(c.times for c in of_b)),
            bytes=(sum(c.bytes for c in of_a), sum(c.bytes for c in of_b)),
            seconds=(sum(c.seconds for c in of_a), sum(c.seconds for c in of_b)),
        )
        for kind, axes in keys
        for of_a, of_b in [[[c for c in p.collectives if (c.kind, c.axes) == (kind, axes)] for p in (a, b)]]
    )


def _ops(a: Plan, b: Plan) -> int:
    return sum(
        (x.factors, x.operands, x.results) != (y.factors, y.operands, y.results)
        for x, y in zip(a.steps, b.steps, strict=True)
    )


def _grouped(changes: Iterable[InputChange]) -> tuple[tuple[str, ...], ...]:
    """One row for changes that are alike but for numbers in their paths."""
    alike: dict[tuple[str, ...], list[InputChange]] = {}
    for c in changes:
        alike.setdefault((pattern(c.name), c.role, c.before, c.after), []).append(c)
    return tuple(
        (common_name([c.name for c in group]), f"x {len(group)}" if len(group) > 1 else "", role, before, after)
        for (_, role, before, after), group in alike.items()
    )


def change(a: float, b: float) -> str:
    """`+12.5%` from a to b; "" where they are equal."""
    return "" if a == b else f"{b / a - 1:+.1%}" if a else "new"
