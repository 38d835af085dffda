"""The way from prices to stages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from stage_dp.errors import NoStages, StageError
from stage_dp.nearest import explain
from stage_dp.objective import Objective, objectives
from stage_dp.price import Layers
from stage_dp.search import Search, Split
from stage_dp.stages import Stage, Stages
from stage_dp.submesh import place


def split_layers(layers: Layers, schedule: str = "1f1b", n_stages: int | None = None, may_idle: bool = True) -> Stages:
    """The best split of `layers`; exact (see `objective` for what is minimised and `search` for how).

    schedule: gpipe, 1f1b, 1f1b-eager, zero-bubble; or latency, throughput for inference, which count forward
    seconds and one microbatch in flight. n_stages: exactly so many; free when None. may_idle: devices may be
    left out where that is faster, or nothing else fits; else all are used. No split: `NoStages`.
    """
    return split_best([layers], (schedule,), n_stages, may_idle)


def split_best(
    candidates: Iterable[Layers],
    schedules: Sequence[str] = ("1f1b",),
    n_stages: int | None = None,
    may_idle: bool = True,
) -> Stages:
    """The best split over several numbers of microbatches, each with prices of its own, and several schedules.

    Of equal ones the first. Candidates that cannot be split are passed over; `NoStages` when none can.
    """
    best: Stages | None = None
    refused: list[tuple[Layers, str]] = []
    for layers in candidates:
        layers.verify()
        for schedule in schedules:
            ceiling = math.inf if best is None else best.seconds
            found = _best(layers, schedule, n_stages, may_idle, ceiling)
            if found is not None:
                best = _stages(layers, schedule, *found)
            elif best is None:
                refused.append((layers, schedule))
    if best is None:
        if not refused:
            raise StageError("Nothing was given to split: pass at least one set of layers and one schedule.")
        raise NoStages(" ".join(dict.fromkeys(explain(*one, n_stages, may_idle) for one in refused)))
    return best


def _best(
    layers: Layers, schedule: str, n_stages: int | None, may_idle: bool, ceiling: float
) -> tuple[Objective, Split] | None:
    """The best split under any of the schedule's objectives, if it takes less than `ceiling` seconds."""
    best = None
    for objective in _distinct(layers, schedule, n_stages):
        search = Search(layers, objective, n_stages, may_idle)
        found = search.best(ceiling)
        if found is None:
            continue
        best, ceiling = (objective, found), objective.weight * found.longest + found.rest
    if best is None or schedule != "throughput":
        return best
    latency = next(objectives(layers, "latency"))
    least = Search(layers, latency, n_stages, may_idle).under(best[1].longest)
    return best if least is None else (best[0], replace(least, rest=0.0))


def _distinct(layers: Layers, schedule: str, n_stages: int | None) -> Iterator[Objective]:
    """The schedule's objectives, without those that the next one, of one stage more, covers.

    It does when the microbatch more that it holds still fits wherever one fewer does.
    """
    mine = list(objectives(layers, schedule))
    if n_stages is not None:
        yield from [objective for objective in mine if objective.max_stages >= n_stages][:1]
        return
    for this, following in pairwise([*mine, None]):
        if this and (following is None or _signature(layers, this) != _signature(layers, following)):
            yield this


def _signature(layers: Layers, objective: Objective) -> tuple[float, int]:
    """Equal for objectives that differ in nothing but the number of stages."""
    if layers.memory is None:
        return objective.weight_share, 0
    held, limit = int(objective.in_flight[0]), layers.memory
    fronts = {id(front): front for front in layers.fronts.values()}.values()
    return objective.weight_share, sum(price.bytes(held) <= limit for front in fronts for price in front)


def _stages(layers: Layers, schedule: str, objective: Objective, split: Split) -> Stages:
    """The split in full."""
    shapes = [layers.submeshes[k] for _, _, k, _ in split.stages]
    places = place(layers.nodes, layers.per_node, shapes)
    stages = []
    for i, (first, end, k, point) in enumerate(split.stages):
        sent = (0.0, 0.0)
        if i:
            pair = (first, split.stages[i - 1][2], k)
            sent = (float(layers.transfers.forward[pair]), float(layers.transfers.backward[pair]))
        price = layers.fronts[first, end, k][point]
        held = int(objective.in_flight[len(split.stages) - 1 - i])
        stages.append(Stage(first, end, layers.submeshes[k], places[i], point, price, sent, held))
    seconds = objective.weight * split.longest + split.rest
    idle = layers.devices - sum(shape.devices for shape in shapes)
    return Stages(schedule, layers.microbatches, tuple(stages), seconds, seconds, split.longest, idle, layers.memory)
