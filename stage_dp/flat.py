"""The price table as flat arrays, for one objective: what the compiled loops read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stage_dp.objective import Objective
from stage_dp.price import Front, Layers

UNLIMITED = np.iinfo(np.int32).max
"""Microbatches in flight where they take no memory or memory has no limit."""


class Entries(NamedTuple):
    """Ways to run a stage, those that start at layer a at positions at[a] to at[a + 1], by submesh, then end."""

    at: np.ndarray
    first: np.ndarray
    end: np.ndarray
    submesh: np.ndarray
    size: np.ndarray
    """Devices."""
    point: np.ndarray
    """Position in the front."""
    cap: np.ndarray
    """Microbatches in flight that memory allows."""
    period: np.ndarray
    """t_i seconds."""
    fill: np.ndarray
    """f_i seconds, of the first stage already f_0."""
    step: np.ndarray
    """D_i seconds."""


class Links(NamedTuple):
    """What stands before a stage: [cut, class of sending submeshes, receiving submesh]."""

    class_of: np.ndarray
    """Submeshes of one class send at equal prices everywhere."""
    seconds: np.ndarray
    """x_i, there and back."""
    period: np.ndarray
    """Added to the stage's own when `charged`, else a period of its own."""
    charged: bool


@dataclass(frozen=True, slots=True, eq=False)
class Flat:
    """All that a search needs."""

    n_layers: int
    n_devices: int
    entries: Entries
    links: Links


def flatten(layers: Layers, objective: Objective) -> Flat:
    """Lay the table out; ways that cannot hold one microbatch, or that another betters, are left out."""
    columns = _columns(layers, objective)
    order = np.lexsort((columns[3], columns[2], columns[1], columns[0]))
    first, submesh, end, point, cap, period, fill, step = (column[order] for column in columns)
    sizes = np.array([shape.devices for shape in layers.submeshes], dtype=np.int64)
    at = np.searchsorted(first, np.arange(layers.n_layers + 1))
    entries = Entries(at, first, end, submesh, sizes[submesh], point, cap, period, fill, step)
    return Flat(layers.n_layers, layers.devices, entries, _links(layers, objective))


def only(entries: Entries, mask: np.ndarray) -> Entries:
    """Those of `entries` that `mask` takes."""
    first = entries.first[mask]
    at = np.searchsorted(first, np.arange(len(entries.at)))
    return Entries(at, first, *(column[mask] for column in entries[2:]))


def _columns(layers: Layers, objective: Objective) -> list[np.ndarray]:
    """First layer, submesh, end, point, cap, period, fill, step of every entry. Equal fronts are read once."""
    rows: dict[tuple[int, bool], np.ndarray] = {}
    keys, blocks = [], []
    for (first, end, k), front in layers.fronts.items():
        at = (id(front), first == 0)
        if at not in rows:
            rows[at] = _front_rows(front, objective, layers.memory, first == 0)
        block = rows[at]
        keys += [(first, k, end)] * len(block)
        blocks.append(block)
    ints = np.array(keys, dtype=np.int64).reshape(-1, 3)
    table = np.concatenate(blocks) if blocks else np.zeros((0, 5))
    whole = table[:, :2].astype(np.int64)
    return [ints[:, 0], ints[:, 1], ints[:, 2], whole[:, 0], whole[:, 1], table[:, 2], table[:, 3], table[:, 4]]


def _front_rows(front: Front, objective: Objective, memory: int | None, is_first: bool) -> np.ndarray:
    """Point, cap, period, fill and step of those of a front that are worth having: float64 [n, 5]."""
    fill = objective.first_fill if is_first else objective.fill
    rows = [
        (point, _cap(price.bytes(0), price.microbatch_bytes, memory), objective.period(price), fill(price),
         objective.step(price))
        for point, price in enumerate(front)
    ]  # fmt: skip
    rows = [row for row in rows if row[1] >= objective.in_flight[0]]
    kept: list[tuple[float, ...]] = []
    for row in sorted(rows, key=lambda row: (row[2], row[3], row[4], -row[1], row[0])):
        if not any(k[1] >= row[1] and k[2] <= row[2] and k[3] <= row[3] and k[4] <= row[4] for k in kept):
            kept.append(row)
    return np.array(kept, dtype=np.float64).reshape(-1, 5)


def _cap(fixed: int, each: int, memory: int | None) -> int:
    """How many microbatches of `each` bytes fit beside `fixed` bytes."""
    if memory is None:
        return int(UNLIMITED)
    if fixed > memory:
        return 0
    return min((memory - fixed) // each, int(UNLIMITED)) if each else int(UNLIMITED)


def _links(layers: Layers, objective: Objective) -> Links:
    forward, backward = layers.transfers.forward, layers.transfers.backward
    seconds = forward + backward if objective.trains else forward
    period = seconds if objective.charged or not objective.trains else np.maximum(forward, backward)
    both = np.concatenate([seconds, period], axis=2).transpose(1, 0, 2).reshape(len(layers.submeshes), -1)
    members, class_of = np.unique(both, axis=0, return_index=True, return_inverse=True)[1:]
    seconds, period = (np.ascontiguousarray(sent[:, members]) for sent in (seconds, period))
    seconds[0] = period[0] = 0.0  # nothing is sent to the first stage
    if not objective.fills:
        seconds[:] = 0.0
    return Links(class_of.reshape(-1).astype(np.int64), seconds, period, objective.charged)
