"""What a reader is shown of a pipeline's plan: facts, pieces, who holds which parameters, the schedule as a chart."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from autosharding.table import Table
from stage_dp.text import show_bytes, show_seconds

if TYPE_CHECKING:
    from autosharding.pipeline.plan import PipelinePlan

WIDTH = 100
"""Characters of a line of the chart."""


def pipeline_tables(plan: PipelinePlan) -> tuple[Table, ...]:
    """All but the chart."""
    return tuple(t for t in (_facts(plan), _pieces(plan), _parameters(plan)) if t.rows)


def groups_text(plan: PipelinePlan) -> str:
    """`2 x 4 x V100`: how many stages have how many devices."""
    sizes = Counter(each.topology.n_devices for each in plan.plans[: plan.schedule.n_stages])
    groups = " + ".join(f"{count} x {size}" for size, count in sizes.items())
    return f"{groups} x {plan.plans[0].topology.device.name}"


def _facts(plan: PipelinePlan) -> Table:
    rows = (
        ("schedule", str(plan.schedule)),
        ("devices", groups_text(plan)),
        ("time", f"{show_seconds(plan.seconds)}, devices idle {plan.timeline.bubble():.1%} of it"),
        ("memory", f"{show_bytes(max(plan.peaks))} on the fullest device"),
    )
    return Table(f"pipeline of {plan.name}", (), rows)


def _pieces(plan: PipelinePlan) -> Table:
    n = plan.schedule.n_stages
    rows = []
    for p, price in enumerate(plan.prices):
        times = (price.forward, price.backward, price.before + price.after)
        held = (price.microbatch_bytes, plan.peaks[p % n])
        facts = str(p), str(p % n), devices_text(plan, p % n), axes_text(plan, p)
        rows.append((*facts, *map(show_seconds, times), *map(show_bytes, held)))
    head = ("piece", "stage", "devices", "mesh", "forward", "backward", "per step", "per microbatch", "peak")
    return Table("pieces", head, tuple(rows), tuple(range(4, len(head))))


def devices_text(plan: PipelinePlan, stage: int) -> str:
    """`4-7`: the devices of a stage."""
    first = plan.firsts[stage]
    return f"{first}-{first + plan.plans[stage].topology.n_devices - 1}"


def axes_text(plan: PipelinePlan, piece: int) -> str:
    """`x=2,y=4`: the mesh of a piece."""
    return ",".join(f"{a}={k}" for a, k in plan.plans[piece].mesh.items())


# ---- who holds what --------------------------------------------------------------------------------------


def _parameters(plan: PipelinePlan) -> Table:
    """For each piece its parameters, those of one layer together, and layers that follow on each other."""
    held = [[i for i in each.inputs if i.role == "parameter"] for each in plan.plans]
    layer_of = layers_of(i.name for inputs in held for i in inputs)
    rows = []
    for p, (inputs, each) in enumerate(zip(held, plan.plans, strict=True)):
        sizes: dict[str, list[int]] = defaultdict(list)
        for i in inputs:
            sizes[layer_of[i.name].path].append(i.spec.local_bytes(i.shape, i.itemsize, each.mesh))
        for path, own in sizes.items():
            layers = (layer for i in inputs if (layer := layer_of[i.name]).path == path)
            rows.append((str(p), layers_text(layers), str(len(own)), show_bytes(sum(own))))
    return Table("parameters", ("piece", "path", "arrays", "per device"), tuple(rows), (2, 3))


class Layer(NamedTuple):
    """Where a parameter belongs: `blocks[*]` and 3 for `blocks[3].w`; its own path and None without layers."""

    path: str
    number: int | None


def layers_of(names: Iterable[str]) -> Mapping[str, Layer]:
    """The layer of each parameter: told by the first number in its path that others have otherwise."""
    parts = {name: _parts(name) for name in names}
    numbers: dict[str, set[str]] = defaultdict(set)
    for each in parts.values():
        for k in range(1, len(each), 2):
            numbers["".join(each[:k])].add(each[k])
    return {name: _layer(name, each, numbers) for name, each in parts.items()}


def _layer(name: str, parts: Sequence[str], numbers: Mapping[str, Set[str]]) -> Layer:
    for k in range(1, len(parts), 2):
        path = "".join(parts[:k])
        if len(numbers[path]) > 1:
            closing = re.match(r"['\"]?\]", parts[k + 1])
            return Layer(f"{path}*{closing.group() if closing else ''}", int(parts[k]))
    return Layer(name, None)


def layers_text(layers: Iterable[Layer]) -> str:
    """`blocks[0-3, 7]`: layers of one path."""
    found = list(layers)
    numbers = sorted({layer.number for layer in found if layer.number is not None})
    return found[0].path.replace("*", runs_text(numbers), 1) if numbers else found[0].path


def _parts(name: str) -> list[str]:
    """Text and numbers of a path by turns; a number within a slice, `[0:2]`, is text."""
    return re.split(r"(?<![:\d])(\d+)(?![:\d])", name)


def runs_text(numbers: Sequence[int]) -> str:
    """`0-3, 7`: numbers in order, those that follow on each other as one."""
    runs = (list(run) for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]))
    return ", ".join(str(run[0][1]) if len(run) == 1 else f"{run[0][1]}-{run[-1][1]}" for run in runs)


# ---- the schedule ----------------------------------------------------------------------------------------


def chart(plan: PipelinePlan) -> str:
    """Which task runs when, a line for each stage."""
    rows = [[" "] * WIDTH for _ in range(plan.schedule.n_stages)]
    for span in plan.timeline.spans:
        a, b = (round(t / plan.seconds * WIDTH) if plan.seconds else 0 for t in (span.start, span.end))
        text = f"{span.task.kind}{span.task.microbatch}".ljust(b - a, "." if span.task.kind == "F" else "-")
        rows[span.task.stage][a:b] = text[: b - a]
    lines = [f"  stage {i} |{''.join(r)}|" for i, r in enumerate(rows)]
    return "\n".join([f"schedule, {show_seconds(plan.seconds)} across", *lines])
