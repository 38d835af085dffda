"""The way from prices to stages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from stage_dp.errors import NoStages, StageError
from stage_dp.interleave import split_interleaved
from stage_dp.nearest import explain
from stage_dp.objective import Objective, objectives, optimistic
from stage_dp.price import Layers
from stage_dp.search import ROUNDING, Search, Split
from stage_dp.stages import Stage, Stages
from stage_dp.submesh import place


def split_layers(
    layers: Layers,
    schedule: str = "1f1b",
    n_stages: int | None = None,
    may_idle: bool = True,
    n_chunks: int | None = None,
) -> Stages:
    """The best split of `layers`; exact (see `objective` for what is minimised and `search` for how).

    schedule: gpipe, 1f1b, 1f1b-eager, zero-bubble, interleaved (see `interleave`); or latency, throughput for
    inference, which count forward seconds and one microbatch in flight. n_stages: exactly so many (groups of
    devices, if interleaved); free when None. may_idle: devices may be left out where that is faster, or nothing
    else fits; else all are used. n_chunks: stages of each group where they are interleaved; None: as many as are
    best. No split: `NoStages`.
    """
    return split_best([layers], (schedule,), n_stages, may_idle, n_chunks)


def split_best(
    candidates: Iterable[Layers],
    schedules: Sequence[str] = ("1f1b",),
    n_stages: int | None = None,
    may_idle: bool = True,
    n_chunks: int | None = None,
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
            found = _best(layers, schedule, n_stages, may_idle, ceiling, n_chunks)
            if found is not None:
                best = found
            elif best is None:
                refused.append((layers, schedule))
    if best is None:
        if not refused:
            raise StageError("Nothing was given to split: pass at least one set of layers and one schedule.")
        raise NoStages(" ".join(dict.fromkeys(explain(*one, n_stages, may_idle) for one in refused)))
    return best


def _best(
    layers: Layers, schedule: str, n_stages: int | None, may_idle: bool, ceiling: float, n_chunks: int | None
) -> Stages | None:
    """The best split for one schedule, if it takes less than `ceiling` seconds."""
    if schedule == "interleaved":
        return split_interleaved(layers, n_stages, ceiling, n_chunks)
    if schedule == "zero-bubble" and n_stages is None:
        return _zero_bubble(layers, may_idle, ceiling)
    objective = objectives(layers, schedule, n_stages)[0]
    found = Search(layers, objective, n_stages, may_idle, layers.memory).best(ceiling)
    if found is None:
        return None
    if schedule == "throughput":
        latency = objectives(layers, "latency")[0]
        least = Search(layers, latency, n_stages, may_idle, layers.memory).under(found.longest)
        found = found if least is None else replace(least, rest=0.0)
    return _stages(layers, schedule, objective, found)


def _zero_bubble(layers: Layers, may_idle: bool, ceiling: float) -> Stages | None:
    """The best over all numbers that stages may not exceed, likely ones first, until none can be better."""
    guess = Search(layers, optimistic(layers), None, may_idle, layers.memory).best(ceiling)
    if guess is None:
        return None
    best, bound = None, guess.seconds(layers.microbatches - 1)
    for objective in sorted(_distinct(layers), key=lambda o: abs(o.max_stages - len(guess.stages))):
        found = Search(layers, objective, None, may_idle, layers.memory).best(ceiling)
        if found is not None:
            best, ceiling = (objective, found), found.seconds(objective.weight)
        if ceiling <= bound * (1 + ROUNDING):
            break
    return best and _stages(layers, "zero-bubble", *best)


def _distinct(layers: Layers) -> Iterator[Objective]:
    """Zero-bubble's objectives, without those that the next one, of one stage more, covers.

    It does when the microbatch more that it holds still fits wherever one fewer does.
    """
    for this, following in pairwise([*objectives(layers, "zero-bubble"), None]):
        if this and (following is None or _fitting(layers, this) != _fitting(layers, following)):
            yield this


def _fitting(layers: Layers, objective: Objective) -> int:
    """Ways to run a stage that memory holds."""
    if layers.memory is None:
        return len(layers.columns.bytes)
    state, microbatch, working = layers.columns.bytes.T
    return int((state + int(objective.in_flight[0]) * microbatch + working <= layers.memory).sum())


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
    seconds = split.seconds(objective.weight)
    idle = layers.devices - sum(shape.devices for shape in shapes)
    return Stages(schedule, layers.microbatches, tuple(stages), seconds, seconds, split.longest, idle, layers.memory)
