"""What differs between two plans, of which one at least is a pipeline's: schedule, seconds, bytes, who holds what."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

from autosharding.pipeline.plan_tables import (
    Layer,
    axes_text,
    devices_text,
    groups_text,
    layers_of,
    layers_text,
    runs_text,
)
from autosharding.plan import Plan
from autosharding.plan_diff import change
from autosharding.plan_tables import mesh_text
from autosharding.table import InTables, Table
from stage_dp.text import show_bytes, show_seconds

if TYPE_CHECKING:
    from autosharding.pipeline.plan import PipelinePlan


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two plans.

    Attributes:
        name: the step's name.
        schedule: with its stages and microbatches.
        devices: how many of which, stage by stage.
        seconds: predicted, of a step.
        idle: share of them in which devices wait.
        memory: predicted peak on the fullest device, in bytes.
        stages: (devices, meshes of its pieces, peak in bytes) of each.
        holders: path of each parameter -> the stages that read it.
    """

    name: str
    schedule: str
    devices: str
    seconds: float
    idle: float
    memory: int
    stages: tuple[tuple[str, str, int], ...]
    holders: tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class Difference(InTables):
    """Plan a against plan b.

    Attributes:
        a, b: the plans.
        ops: how many ops of each piece split otherwise; None where the pieces are not the same programs.
    """

    a: Side
    b: Side
    ops: tuple[int, ...] | None

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return self.a != self.b or self.ops is None or any(self.ops)

    def _tables(self) -> Iterable[Table]:
        yield self._totals()
        yield self._stages()
        if rows := tuple(self._moved()):
            yield Table("parameters of other stages", ("path", "arrays", "a: stage", "b: stage"), rows, (1, 2, 3))

    def _totals(self) -> Table:
        a, b = self.a, self.b
        names = a.name if a.name == b.name else f"{a.name} and {b.name}"
        rows = (
            ("schedule", a.schedule, b.schedule, ""),
            ("devices", a.devices, b.devices, ""),
            ("time", show_seconds(a.seconds), show_seconds(b.seconds), change(a.seconds, b.seconds)),
            ("idle", f"{a.idle:.1%}", f"{b.idle:.1%}", ""),
            ("memory", show_bytes(a.memory), show_bytes(b.memory), change(a.memory, b.memory)),
        )
        ops = "other programs: the ops cannot be compared"
        if self.ops is not None:
            ops = f"{sum(self.ops)} ops split otherwise"
        return Table(f"difference of two plans of {names}", ("", "a", "b", "change"), rows, (3,), ops)

    def _stages(self) -> Table:
        rows = []
        for n, pair in enumerate(zip_longest(self.a.stages, self.b.stages)):
            cells = [(s[0], s[1], show_bytes(s[2])) if s is not None else ("", "", "") for s in pair]
            rows.append((str(n), *cells[0], *cells[1]))
        header = ("stage", "a: devices", "mesh", "peak", "b: devices", "mesh", "peak")
        return Table("stages", header, tuple(rows), (3, 6))

    def _moved(self) -> Iterable[tuple[str, ...]]:
        """One row for layers that move alike."""
        before, after = dict(self.a.holders), dict(self.b.holders)
        layer_of = layers_of([*before, *after])
        alike: dict[tuple[str, str, str], list[Layer]] = {}
        for name, layer in layer_of.items():
            a, b = (runs_text(side.get(name, ())) for side in (before, after))
            if a != b:
                alike.setdefault((layer.path, a, b), []).append(layer)
        for (_, a, b), layers in alike.items():
            yield layers_text(layers), str(len(layers)), a, b


def diff(a: Plan | PipelinePlan, b: Plan | PipelinePlan) -> Difference:
    """What differs from plan a to plan b; a plan of one mesh is one stage."""
    pairs = list(zip_longest(*(_plans(p) for p in (a, b))))
    known = [None if x is None or y is None else x.diff(y).ops for x, y in pairs]
    ops = tuple(n for n in known if n is not None)
    return Difference(_side(a), _side(b), ops if len(ops) == len(known) else None)


def _plans(plan: Plan | PipelinePlan) -> tuple[Plan, ...]:
    return (plan,) if isinstance(plan, Plan) else plan.plans


def _side(plan: Plan | PipelinePlan) -> Side:
    if isinstance(plan, Plan):
        where, peak = f"0-{plan.topology.n_devices - 1}", plan.memory.peak
        schedule = f"one mesh, {plan.microbatches} microbatch{'es' * (plan.microbatches > 1)}"
        devices = f"1 x {plan.topology.n_devices} x {plan.topology.device.name}"
        stages = ((where, mesh_text(plan), peak),)
        return Side(plan.name, schedule, devices, plan.seconds, 0.0, peak, stages, _holders((plan,), 1))
    n, total = plan.schedule.n_stages, len(plan.plans)
    meshes = [" ".join(axes_text(plan, p) for p in range(s, total, n)) for s in range(n)]
    return Side(
        plan.name,
        str(plan.schedule),
        groups_text(plan),
        plan.seconds,
        plan.timeline.bubble(),
        max(plan.peaks),
        tuple((devices_text(plan, s), meshes[s], plan.peaks[s]) for s in range(n)),
        _holders(plan.plans, n),
    )


def _holders(plans: Sequence[Plan], n_stages: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    found: dict[str, set[int]] = {}
    for p, each in enumerate(plans):
        for i in each.inputs:
            if i.role == "parameter":
                found.setdefault(i.name, set()).add(p % n_stages)
    return tuple((path, tuple(sorted(at))) for path, at in found.items())
