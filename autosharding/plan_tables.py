"""What a reader is shown of a plan, as tables: `plan_text` and `plan_html` draw the same ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autosharding.table import Table
from cost_model import show_bytes, show_seconds

if TYPE_CHECKING:
    from autosharding.plan import Input, Plan

MOST_ROWS = 40
"""Rows shown of a list before the rest is summed up."""


def plan_tables(plan: Plan) -> tuple[Table, ...]:
    """Facts, inputs, collectives, memory, and what else there is to say."""
    sections = [
        _facts(plan),
        _inputs(plan),
        _collectives(plan),
        _largest(plan),
        _unresolved(plan),
        _alternatives(plan),
        Table("notes", ("note",), tuple((n,) for n in plan.notes)),
    ]
    return tuple(s for s in sections if s.rows)


def mesh_text(plan: Plan) -> str:
    """`x=2, y=4 on h100:1x8`."""
    axes = ", ".join(f"{a}={n}" for a, n in plan.mesh.items())
    return f"{axes} on {plan.topology.cluster}" if plan.topology.cluster else axes


def share(part: float) -> str:
    """0.0123 is `1.23%`."""
    return f"{part:.2%}"


def _facts(plan: Plan) -> Table:
    memory, steps = plan.memory, plan.steps
    at = f", reached at step {memory.peak_at}" if steps else ""
    if 0 <= memory.peak_at < len(steps):
        step = steps[memory.peak_at]
        at += f" ({', '.join(filter(None, (step.op, step.source)))})"
    budget = "no limit set" if memory.budget is None else f"of {show_bytes(memory.budget)}"
    proved = "proved optimal" if plan.gap == 0 else f"gap {share(plan.gap)}"
    own = ", each with its own statistics" if plan.independent else ""
    pieces = [("microbatches", f"{plan.microbatches}{own}")] if plan.microbatches > 1 else []
    rows = [
        ("method", plan.method),
        ("mesh", f"{mesh_text(plan)}: {plan.topology.n_devices} x {plan.topology.device.name}"),
        *pieces,
        (
            "time",
            f"{show_seconds(plan.seconds)} = {show_seconds(plan.compute_seconds)} compute "
            f"+ {show_seconds(plan.communication_seconds)} communication",
        ),
        ("bound", f"no such plan takes less than {show_seconds(max(0.0, plan.bound))}: {proved}"),
        ("memory", f"{show_bytes(memory.peak)} per device, {budget}{at}"),
        ("arguments", f"{show_bytes(memory.arguments)} per device in {len(plan.inputs)} arrays"),
    ]
    return Table(f"plan of {plan.name}, {len(steps)} ops", (), tuple(rows))


# ---- inputs ----------------------------------------------------------------------------------------------


def _inputs(plan: Plan) -> Table:
    """One row for inputs that are alike but for numbers in their paths."""
    alike: dict[tuple[str, ...], list[Input]] = {}
    for i in plan.inputs:
        key = (pattern(i.name), i.spec.annotate(i.dtype, i.shape), i.role)
        alike.setdefault(key, []).append(i)
    rows = []
    for (_, array, role), group in alike.items():
        one = group[0].spec.local_bytes(group[0].shape, group[0].itemsize, plan.mesh)
        count = f"x {len(group)}" if len(group) > 1 else ""
        rows.append((common_name([i.name for i in group]), count, array, role, show_bytes(one * len(group))))
    kept, more = _cut(rows, "kinds of inputs")
    return Table("inputs", ("path", "", "array", "role", "per device"), kept, (4,), more)


def pattern(name: str) -> str:
    """A path with a star for every number: what paths that differ in numbers have in common."""
    return re.sub(r"\d+", "*", name)


def common_name(names: Sequence[str]) -> str:
    """`a[0].w3`, `a[0].w4` are `a[0].w*`: a star for every number in which the names differ."""
    pieces = [re.split(r"(\d+)", n) for n in names]
    return "".join(c[0] if len(set(c)) == 1 else "*" for c in zip(*pieces, strict=True))


# ---- collectives -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Sum:
    count: int = 0
    bytes: int = 0
    seconds: float = 0.0


def _collectives(plan: Plan) -> Table:
    sums: dict[tuple[str, str, str, str, str], _Sum] = {}
    for c in plan.collectives:
        one = sums.setdefault((c.kind, ",".join(c.axes), c.phase, c.cause, c.line), _Sum())
        one.count += c.times
        one.bytes += c.bytes
        one.seconds += c.seconds
    ordered = sorted(sums.items(), key=lambda item: -item[1].seconds)
    rows = [
        (kind, axes, str(s.count), show_bytes(s.bytes), show_seconds(s.seconds), phase, line, cause)
        for (kind, axes, phase, cause, line), s in ordered
    ]
    kept, more = _cut(rows, "kinds of collectives")
    total = _Sum(
        sum(c.times for c in plan.collectives),
        sum(c.bytes for c in plan.collectives),
        sum(c.seconds for c in plan.collectives),
    )
    summed = f"{total.count} in all, {show_bytes(total.bytes)}, {show_seconds(total.seconds)}"
    header = ("kind", "axes", "count", "bytes", "time", "phase", "line", "cause")
    return Table("collectives", header, kept, (2, 3, 4), "; ".join(filter(None, (more, summed))))


# ---- the rest --------------------------------------------------------------------------------------------


def _largest(plan: Plan) -> Table:
    rows = tuple((h.what, show_bytes(h.bytes)) for h in plan.memory.largest)
    return Table("largest at the peak", ("array", "per device"), rows, (1,))


def _unresolved(plan: Plan) -> Table:
    rows, more = _cut([(str(u.op), u.where, u.reason) for u in plan.unresolved], "ops")
    return Table("run replicated, because nothing is known of them", ("op", "where", "reason"), rows, (0,), more)


def _alternatives(plan: Plan) -> Table:
    rows = (
        (a.mesh, show_seconds(a.seconds) if a.seconds is not None else "not solved", a.note) for a in plan.alternatives
    )
    return Table("tried and not taken", ("mesh", "time", "note"), tuple(rows), (1,))


def _cut(rows: Iterable[tuple[str, ...]], what: str) -> tuple[tuple[tuple[str, ...], ...], str]:
    rows = tuple(rows)
    left = len(rows) - MOST_ROWS
    return (rows, "") if left <= 0 else (rows[:MOST_ROWS], f"and {left} more {what}")
