"""A plan beside the program that XLA made of it: the same collectives, the same bytes, about the same memory.

XLA merges collectives of one kind and group, so bytes are summed by (kind, axes), each as often as it runs. A
collective-permute may leave some axes where they are, so permutes are summed over all axes. XLA:CPU reduces and gathers
bf16 as f32: then elements must agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

from autosharding import hlo
from autosharding.capture_regions import ASSUMED_TRIPS
from autosharding.plan import Copy, Plan
from autosharding.reshard import Move
from autosharding.table import InTables, Table
from cost_model import show_bytes

ANY_AXES = ("*",)
"""The axes of collective-permutes, summed over all axes."""


class CompiledProgram(Protocol):
    """What is asked of a compiled program; `jax.stages.Compiled` has it."""

    def as_text(self) -> str | None:
        """The program in HLO."""
        ...

    def memory_analysis(self) -> Any:
        """XLA's bytes per device."""
        ...


@dataclass(frozen=True, slots=True)
class Total:
    """All collectives of one kind over the same axes: how many, bytes and elements on one device."""

    count: int = 0
    bytes: int = 0
    elements: int = 0

    def plus(self, bytes: int, elements: int, times: int) -> Total:
        """With one more, which runs so many times."""
        return Total(self.count + times, self.bytes + times * bytes, self.elements + times * elements)


@dataclass(frozen=True, slots=True)
class Line:
    """One kind over the same axes, as planned and as compiled.

    `axes` is `ANY_AXES` for collective-permutes, and None for groups that are not those of any mesh axes.
    """

    kind: str
    axes: tuple[str, ...] | None
    planned: Total
    compiled: Total

    @property
    def widened(self) -> bool:
        """Equal in elements, which XLA made wider than planned."""
        return self.planned.elements == self.compiled.elements and self.planned.bytes < self.compiled.bytes

    @property
    def agrees(self) -> bool:
        """Equal in bytes, or in elements where XLA made them wider."""
        return self.planned.bytes == self.compiled.bytes or self.widened


@dataclass(frozen=True, slots=True)
class XlaMemory:
    """XLA's own account, in bytes on one device."""

    arguments: int
    outputs: int
    temporaries: int
    aliased: int

    @property
    def peak(self) -> int:
        """Arguments + outputs + temporaries - aliased."""
        return self.arguments + self.outputs + self.temporaries - self.aliased


@dataclass(frozen=True, slots=True)
class Comparison(InTables):
    """A plan beside its compiled program.

    Attributes:
        name: the step's name.
        lines: collectives by (kind, axes).
        predicted: the plan's peak of memory on one device, in bytes.
        memory: XLA's; None where the backend does not tell.
    """

    name: str
    lines: tuple[Line, ...]
    predicted: int
    memory: XlaMemory | None

    @property
    def agrees(self) -> bool:
        """Whether the collectives of the program are the plan's."""
        return all(line.agrees for line in self.lines)

    @property
    def memory_ratio(self) -> float | None:
        """Predicted memory over XLA's; None where the backend does not tell."""
        return self.predicted / self.memory.peak if self.memory is not None and self.memory.peak else None

    def _tables(self) -> Iterable[Table]:
        rows = tuple(map(_row, self.lines)) or (("none", "", "0", "0", "", "", "", "", "equal"),)
        header = ("kind", "axes", "count: plan", "xla", "bytes: plan", "xla", "elements: plan", "xla", "")
        verdict = "the collectives are the plan's" if self.agrees else "the collectives are not the plan's"
        yield Table(f"{self.name}: planned and compiled", header, rows, (2, 3, 4, 5, 6, 7), verdict)
        if self.memory is not None:
            yield self._memory(self.memory)

    def _memory(self, xla: XlaMemory) -> Table:
        parts = f"{show_bytes(xla.arguments)} arguments + {show_bytes(xla.outputs)} outputs"
        parts += f" + {show_bytes(xla.temporaries)} temporaries - {show_bytes(xla.aliased)} aliased"
        rows = [("predicted", show_bytes(self.predicted)), ("xla", f"{show_bytes(xla.peak)} = {parts}")]
        if self.memory_ratio is not None:
            rows.append(("ratio", f"{self.memory_ratio:.3f}"))
        return Table("memory per device", (), tuple(rows))


def compare(plan: Plan, compiled: CompiledProgram) -> Comparison:
    """Set a plan beside the program compiled from it, `step.lower(*args).compile()`."""
    return Comparison(plan.name, collective_lines(plan, compiled.as_text() or ""), plan.memory.peak, _memory(compiled))


def collective_lines(plan: Plan, text: str) -> tuple[Line, ...]:
    """Collectives by (kind, axes): planned, and read in HLO text."""
    planned, compiled = _planned(plan), _compiled(text, plan.mesh)
    keys = sorted({*planned, *compiled}, key=lambda k: (k[0], k[1] is None, k[1] or ()))
    return tuple(Line(*k, planned.get(k, Total()), compiled.get(k, Total())) for k in keys)


Key = tuple[str, tuple[str, ...] | None]


def _planned(plan: Plan) -> dict[Key, Total]:
    mesh = plan.mesh
    totals: dict[Key, Total] = {}
    for copy in plan.copies:
        for move in copy.moves:
            axes = tuple(a for a in mesh if a in move.axes and mesh[a] > 1)
            if move.on_wire and axes:
                key = _key(move.kind, axes)
                totals[key] = totals.get(key, Total()).plus(move.bytes, _elements(copy, move, mesh), copy.times)
    for e, times in ((e, step.times) for step in plan.steps for e in step.exchanges):
        key = _key(e.kind, tuple(a for a in mesh if a in e.axes and mesh[a] > 1))
        totals[key] = totals.get(key, Total()).plus(e.bytes, e.elements, times)
    return totals


def _compiled(text: str, mesh: Mapping[str, int]) -> dict[Key, Total]:
    totals: dict[Key, Total] = {}
    for c in hlo.collectives(text, unknown_trips=ASSUMED_TRIPS):
        key = _key(c.kind, c.axes(mesh))
        totals[key] = totals.get(key, Total()).plus(c.bytes, c.elements, c.times)
    return totals


def _key(kind: str, axes: tuple[str, ...] | None) -> Key:
    return kind, ANY_AXES if kind == "collective-permute" else axes


def _elements(copy: Copy, move: Move, mesh: Mapping[str, int]) -> int:
    sizes = copy.type.rpartition("[")[2].rstrip("]")
    shape = tuple(int(n) for n in sizes.split(",") if n)
    counted = move.after if move.kind == "all-gather" else move.before
    return prod(counted.local_shape(shape, mesh))


def _memory(compiled: CompiledProgram) -> XlaMemory | None:
    stats = compiled.memory_analysis()
    if stats is None:
        return None
    return XlaMemory(
        stats.argument_size_in_bytes,
        stats.output_size_in_bytes,
        stats.temp_size_in_bytes,
        stats.alias_size_in_bytes,
    )


def _row(line: Line) -> tuple[str, ...]:
    axes = "other groups" if line.axes is None else "any" if line.axes == ANY_AXES else ",".join(line.axes)
    p, c = line.planned, line.compiled
    verdict = "DIFFERS" if not line.agrees else "widened" if line.widened else "equal"
    pairs = ((p.count, c.count), (p.bytes, c.bytes), (p.elements, c.elements))
    return (line.kind, axes, *(f"{n:,}" for pair in pairs for n in pair), verdict)
