"""The price table as flat arrays, for one objective: what the compiled loops read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stage_dp.objective import Objective
from stage_dp.price import Layers

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


def flatten(layers: Layers, objective: Objective, memory: int | None) -> Flat:
    """Lay the table out; ways that cannot hold one microbatch, or that another betters, are left out."""
    columns = layers.columns
    cap = _caps(columns.bytes, memory)
    merits = np.stack([objective.periods(columns), objective.fills_of(columns), objective.steps(columns), -cap], axis=1)
    order = np.lexsort((*merits.T[::-1], columns.end, columns.submesh, columns.first))
    order = order[cap[order] >= objective.least_in_flight[0]]
    keys = np.stack([columns.first, columns.submesh, columns.end], axis=1)[order]
    order = order[_worth_having(keys, merits[order])]
    sizes = np.array([shape.devices for shape in layers.submeshes], dtype=np.int64)
    first, submesh = columns.first[order], columns.submesh[order]
    at = np.searchsorted(first, np.arange(layers.n_layers + 1))
    period, fill, step = np.ascontiguousarray(merits[order, :3].T)
    entries = Entries(
        at, first, columns.end[order], submesh, sizes[submesh], columns.point[order], cap[order], period, fill, step
    )
    return Flat(layers.n_layers, layers.devices, entries, _links(layers, objective))


def only(entries: Entries, mask: np.ndarray) -> Entries:
    """Those of `entries` that `mask` takes."""
    first = entries.first[mask]
    at = np.searchsorted(first, np.arange(len(entries.at)))
    return Entries(at, first, *(column[mask] for column in entries[2:]))


def _caps(held: np.ndarray, memory: int | None) -> np.ndarray:
    """How many microbatches fit beside what is held anyway: int64 [n]."""
    if memory is None:
        return np.full(len(held), UNLIMITED, dtype=np.int64)
    room = memory - held[:, 0] - held[:, 2]
    each = np.maximum(held[:, 1], 1)
    fit = np.where(held[:, 1] > 0, np.minimum(room // each, UNLIMITED), UNLIMITED)
    return np.where(room >= 0, fit, 0)


def _worth_having(keys: np.ndarray, merits: np.ndarray) -> np.ndarray:
    """Mask of rows that none before with equal `keys` equals or betters in all `merits`; rows are sorted by both."""
    kept = np.ones(len(keys), dtype=bool)
    group = np.concatenate([[0], np.cumsum((keys[1:] != keys[:-1]).any(1))]) if len(keys) else np.zeros(0, dtype=int)
    longest = int(np.bincount(group).max(initial=0))
    for distance in range(1, longest):
        same = group[distance:] == group[:-distance]
        kept[distance:] &= ~(same & (merits[:-distance] <= merits[distance:]).all(1))
    return kept


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
