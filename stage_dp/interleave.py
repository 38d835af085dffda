"""Interleaved 1F1B: all submeshes equal, each with several stages that lie apart in the program."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from stage_dp.objective import Objective
from stage_dp.price import Layers, Transfers
from stage_dp.schedule import Kind, Schedule
from stage_dp.schedules import interleaved
from stage_dp.search import Search, Split
from stage_dp.stages import Stage, Stages
from stage_dp.submesh import Submesh, place

MOST_CHUNKS = 4
"""Stages per group that are tried: the bubble shrinks with their number, transfers grow with it."""

SHARES = 8
"""Steps in which the memory that each stage of a group may hold is cut down from all to an equal part."""


def split_interleaved(
    layers: Layers, n_stages: int | None, ceiling: float, n_chunks: int | None = None
) -> Stages | None:
    """The best split into `n_stages` groups (None: any number) that takes less than `ceiling` seconds.

    Tried are all submeshes that divide the devices into a number of groups that divides the microbatches, with
    2 to `MOST_CHUNKS` stages each, or `n_chunks`. Exact while the memory of a group, all its stages together, holds
    the best split that each stage's memory by itself allows; else what each stage may hold is cut down until it
    does, and `bound` tells what the best may be.
    """
    best, bound = None, math.inf
    for k, groups in _groups(layers, n_stages):
        most = layers.n_layers // groups
        for chunks in range(2, min(MOST_CHUNKS, most) + 1) if n_chunks is None else [n_chunks] * (n_chunks <= most):
            tasks = interleaved(groups, layers.microbatches, chunks)
            least, found = _split(layers, k, tasks, ceiling)
            bound = min(bound, least)
            if found is not None:
                best, ceiling = found, found.seconds
    return best and replace(best, bound=min(bound, best.seconds))


def _groups(layers: Layers, n_stages: int | None) -> Iterator[tuple[int, int]]:
    """Index of a submesh, and how many groups of it there are."""
    for k, shape in enumerate(layers.submeshes):
        groups, left = divmod(layers.devices, shape.devices)
        whole = shape.nodes == 1 or layers.nodes % shape.nodes == 0
        if not left and whole and groups > 1 and layers.microbatches % groups == 0 and n_stages in (None, groups):
            yield k, groups


def _split(layers: Layers, k: int, tasks: Schedule, ceiling: float) -> tuple[float, Stages | None]:
    """(no split takes less, the best found), both only if below `ceiling`; inf and None otherwise."""
    alike = _one_device_each(layers, k, tasks.n_pieces)
    held = _held_by_piece(tasks)[::-1]
    in_flight = np.concatenate([held, np.full(layers.n_layers + 1 - len(held), held[-1])])
    weight = tasks.n_chunks * (layers.microbatches - tasks.n_stages) + tasks.n_stages - 1.0
    objective = Objective(weight, True, False, True, 1.0, in_flight, tasks.n_pieces)
    bound = math.inf
    for memory in _shares(layers.memory, tasks.n_chunks):
        split = Search(alike, objective, tasks.n_pieces, False, memory).best(ceiling)
        if split is None:
            break
        stages = _stages(layers, k, tasks, split, held[::-1], split.seconds(weight))
        bound = min(bound, stages.seconds)
        if layers.memory is None or stages.peak_bytes <= layers.memory:
            return bound, stages
    return bound, None


def _shares(memory: int | None, chunks: int) -> list[int | None]:
    """What each stage of a group may hold: all of the memory first, an equal part last (then they surely fit)."""
    if memory is None:
        return [None]
    steps = range(SHARES, -1, -1)
    return list(dict.fromkeys(memory // chunks + (memory - memory // chunks) * step // SHARES for step in steps))


def _one_device_each(layers: Layers, k: int, pieces: int) -> Layers:
    """The same layers where only submesh k has prices, and counts as one device of `pieces`."""
    fronts = {(first, end, 0): front for (first, end, j), front in layers.fronts.items() if j == k}
    transfers = Transfers(layers.transfers.forward[:, k, k, None, None], layers.transfers.backward[:, k, k, None, None])
    return Layers(layers.n_layers, 1, pieces, (Submesh(1, 1),), fronts, layers.microbatches, transfers, None)


def _held_by_piece(tasks: Schedule) -> np.ndarray:
    """Most microbatches that each piece, by itself, has in flight: int64 [pieces]."""
    most, now = np.zeros((2, tasks.n_pieces), dtype=np.int64)
    for task in (task for one in tasks.lists for task in one if task.kind is not Kind.UPDATE):
        piece = tasks.piece(task)
        now[piece] += 1 if task.kind is Kind.FORWARD else -1
        most[piece] = max(most[piece], now[piece])
    return most


def _stages(layers: Layers, k: int, tasks: Schedule, split: Split, held: np.ndarray, seconds: float) -> Stages:
    shape = layers.submeshes[k]
    places = place(layers.nodes, layers.per_node, [shape] * tasks.n_stages)
    stages = []
    for i, (first, end, _, point) in enumerate(split.stages):
        sent = (float(layers.transfers.forward[first, k, k]), float(layers.transfers.backward[first, k, k]))
        price = layers.fronts[first, end, k][point]
        where = places[i % tasks.n_stages]
        stages.append(Stage(first, end, shape, where, point, price, sent if i else (0.0, 0.0), int(held[i])))
    return Stages(
        "interleaved",
        layers.microbatches,
        tuple(stages),
        seconds,
        seconds,
        split.longest,
        0,
        layers.memory,
        tasks.n_chunks,
    )
