"""Arrays in slices that no sharding lays over all stages: what it takes that they travel in every step.

Such an array lies whole with its first slice (see `stacks`). Before the loop the slices of other stages go there, after
it the new ones come back, if there are any; its stage holds, beside its own slices, the whole array and what goes to
others, and in the end the new ones too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from autosharding.pipeline.parts import Parts
from autosharding.pipeline.piece import Piece
from autosharding.pipeline.slices import InSlices
from cost_model import Link
from stage_dp import Price


@dataclass(frozen=True, slots=True)
class Travel:
    """The slices of one array.

    Attributes:
        inputs: what they are among the inputs of the step on slices.
        stages: where each is at home.
        comes_back: whether the step makes new ones.
    """

    inputs: range
    stages: tuple[int, ...]
    comes_back: bool = True

    @property
    def first(self) -> int:
        """The stage where the array lies whole."""
        return self.stages[0]

    def held(self, parts: Sequence[Parts]) -> int:
        """Bytes per device of the first stage that the whole array and the slices of others take; `parts`: its own."""
        of = self.inputs.start
        each, i = next(
            (e, i) for e in parts for i, port in enumerate(e.piece.inputs) if (port.kind, port.of) == ("step", of)
        )
        v = each.graph.inputs[i]
        away = sum(stage != self.first for stage in self.stages)
        return (len(self.stages) + away) * each.plan.inputs[i].spec.local_bytes(v.shape, v.itemsize, each.plan.mesh)


def travels_of(sliced: InSlices, pieces: Sequence[Piece], devices: Sequence[int]) -> tuple[Travel, ...]:
    """The arrays whose slices travel.

    Args:
        sliced: the step on slices.
        pieces: of it.
        devices: how many each stage has.
    """
    home: dict[int, int] = {}
    for p, piece in enumerate(pieces):
        home.update((piece.inputs[i].of, p % len(devices)) for i in piece.state.values())
    for p, piece in enumerate(pieces):
        for port in piece.inputs:
            if port.kind == "step":
                home.setdefault(port.of, p % len(devices))
    new = set(sliced.state.values())
    all_slices = [Travel(p.indices, tuple(home.get(i, 0) for i in p.indices), p.first in new) for p in sliced.inputs]
    return tuple(t for t in all_slices if len(set(t.stages)) > 1 and not _lies_over_all(t.stages, devices))


def _lies_over_all(stages: Sequence[int], devices: Sequence[int]) -> bool:
    """Whether each of the stages has an equal run of the slices, and as many devices."""
    runs = [(stage, len(list(same))) for stage, same in groupby(stages)]
    return (
        len({length for _, length in runs}) == 1
        and len({devices[stage] for stage, _ in runs}) == 1
        and len({stage for stage, _ in runs}) == len(runs)
    )


def holding(price: Price, travels: Sequence[Travel], stage: int, parts: Sequence[Parts]) -> Price:
    """The price of the first piece of a stage, with what it holds of arrays that travel."""
    own = [(t.held(parts), t.comes_back) for t in travels if t.first == stage]
    held, new = sum(size for size, _ in own), sum(size for size, comes_back in own if comes_back)
    return replace(price, state_bytes=price.state_bytes + held, outside_bytes=price.outside_bytes + held + new)


def seconds_of(
    travels: Sequence[Travel], sizes: Sequence[int], devices: Sequence[int], links: Sequence[Sequence[Link]]
) -> list[float]:
    """For each stage the seconds until its slices are there; it takes as many until the new ones are back.

    Args:
        travels: the arrays.
        sizes: bytes of each input of the step on slices.
        devices: how many each stage has.
        links: between each two stages. What leaves one stage goes one after another.
    """
    busy, found = [0.0] * len(devices), [0.0] * len(devices)
    for t in travels:
        for i, stage in zip(t.inputs, t.stages, strict=True):
            if stage != t.first:
                link = links[t.first][stage]
                busy[t.first] += link.latency + sizes[i] / min(devices[t.first], devices[stage]) / link.bandwidth
                found[stage] = busy[t.first]
    return found
