"""Why there is no split, and the nearest choice for which there is one."""

from __future__ import annotations

import math
from collections.abc import Iterator

from stage_dp.objective import objectives
from stage_dp.price import Layers
from stage_dp.search import Search
from stage_dp.text import show_bytes

MEMORY_STEPS = 1000
"""The smallest memory that works is sought to one part in this many."""


def explain(layers: Layers, schedule: str, n_stages: int | None, may_idle: bool) -> str:
    """A paragraph: what was asked, what stands in the way, what to try."""
    asked = _asked(layers, schedule, n_stages)
    if n_stages is not None and not 1 <= n_stages <= layers.n_layers:
        return (
            f"{asked} A stage runs at least one layer, so there are 1 to {layers.n_layers} stages; "
            f"the nearest choice is {min(max(n_stages, 1), layers.n_layers)}."
        )
    if n_stages is not None and n_stages > layers.devices:
        return f"{asked} A stage runs on at least one device; the nearest choice is {layers.devices} stages."
    if schedule == "interleaved":
        return f"{asked} {_not_interleaved(layers)}"
    if not layers.fronts:
        return f"{asked} The price table is empty: no range of layers can run on any submesh."
    if not _possible(layers, schedule, n_stages, may_idle, memory=None):
        return f"{asked} {_devices_do_not_divide(layers, schedule, n_stages, may_idle)}"
    return f"{asked} {_memory_too_small(layers, schedule, n_stages, may_idle)}"


def _asked(layers: Layers, schedule: str, n_stages: int | None) -> str:
    stages = "stages" if n_stages is None else f"{n_stages} stages"
    return (
        f"{layers.n_layers} layers cannot be cut into {stages} on {layers.nodes}x{layers.per_node} devices "
        f"({schedule}, {layers.microbatches} microbatches)."
    )


def _not_interleaved(layers: Layers) -> str:
    groups = sorted({layers.devices // shape.devices for shape in layers.submeshes} - {0, 1})
    fit = [n for n in groups if layers.microbatches % n == 0 and 2 * n <= layers.n_layers]
    return (
        "Interleaving wants equal submeshes, at least two, with two or more stages each, and microbatches in groups "
        f"of as many as there are submeshes. With these devices there can be {_list(groups)} submeshes; microbatches "
        f"and layers allow {_list(fit)} of these, and then memory or a range without a price stands in the way. "
        "Try 1f1b, which asks for none of it."
    )


def _list(counts: list[int]) -> str:
    return ", ".join(map(str, counts)) if counts else "none"


def _devices_do_not_divide(layers: Layers, schedule: str, n_stages: int | None, may_idle: bool) -> str:
    """Without a memory limit there is no split either: the submeshes do not add up, or ranges have no price."""
    shapes = ", ".join(map(str, layers.submeshes))
    number = "stages" if n_stages is None else f"{n_stages} stages"
    text = f"No {number} on submeshes of {shapes}, of those that have prices, cover all layers"
    if not may_idle:
        text = f"{text} and use all {layers.devices} devices"
    remedies = _other_counts(layers, schedule, n_stages, may_idle, memory=None)
    used = 0 if may_idle else _used(layers, schedule, n_stages)
    if used:
        remedies.append(f"may_idle=True, with which {used} of {layers.devices} devices can be used")
    return f"{text}. Try {' or '.join(remedies or ['prices for more ranges or for other submeshes'])}."


def _memory_too_small(layers: Layers, schedule: str, n_stages: int | None, may_idle: bool) -> str:
    limit = layers.memory or 0
    low, high = limit, int((layers.columns.bytes @ [1, layers.microbatches, 1]).max())
    while high - low > max(1, low // MEMORY_STEPS):
        middle = (low + high) // 2
        enough = _possible(layers, schedule, n_stages, may_idle, middle)
        low, high = (low, middle) if enough else (middle, high)
    remedies = [*_other_counts(layers, schedule, n_stages, may_idle, limit), "more devices", "smaller microbatches"]
    if schedule == "gpipe":
        remedies.insert(0, "1f1b, which keeps fewer in flight")
    if not may_idle and _possible(layers, schedule, n_stages, True, limit):
        remedies.insert(0, "may_idle=True, which fits")
    return (
        f"No split fits {show_bytes(limit)} per device with the microbatches that the schedule keeps in flight; "
        f"the nearest that does needs {show_bytes(high)} ({high} bytes). Try {' or '.join(remedies)}."
    )


def _other_counts(layers: Layers, schedule: str, n_stages: int | None, may_idle: bool, memory: int | None) -> list[str]:
    """A remedy: the nearest number of stages that works, if `n_stages` were asked for and does not."""
    if n_stages is None:
        return []
    others = _outward(n_stages, layers.n_layers)
    near = next((n for n in others if _possible(layers, schedule, n, may_idle, memory)), None)
    return [] if near is None else [f"{near} stages, the nearest number that works"]


def _outward(middle: int, most: int) -> Iterator[int]:
    """The other numbers from 1 to `most`, nearest to `middle` first, the smaller of two before the larger."""
    yield from sorted((n for n in range(1, most + 1) if n != middle), key=lambda n: (abs(n - middle), n))


def _possible(layers: Layers, schedule: str, n_stages: int | None, may_idle: bool, memory: int | None) -> bool:
    """Whether there is a split."""
    return any(
        Search(layers, objective, n_stages, may_idle, memory).possible()
        for objective in objectives(layers, schedule, n_stages)
    )


def _used(layers: Layers, schedule: str, n_stages: int | None) -> int:
    """Devices that a split uses when some may stand idle; 0 if there is none."""
    for objective in objectives(layers, schedule, n_stages):
        split = Search(layers, objective, n_stages, True, None).under(math.inf)
        if split is not None:
            return sum(layers.submeshes[k].devices for _, _, k, _ in split.stages)
    return 0
