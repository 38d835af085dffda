"""What a task of a piece does beside its program: what it gets from wires, puts into them, sums, keeps and lets go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autosharding.pipeline.channel import Wire
from autosharding.pipeline.parts import AFTER, Key
from autosharding.pipeline.programs import Programs


@dataclass(frozen=True)
class Recipe:
    """What a task of a piece does, beside its program.

    Attributes:
        receives: (what the body sees, where it arrives).
        counters: what the body sees of the microbatch's number.
        sends: (what the program gives, where it is put: once for each receiver).
        sums: what the program gives -> the sum that it is now.
        stacks: what the program gives that is put together after the loop.
        done: what no later task of the microbatch reads.
    """

    receives: tuple[tuple[Key, Wire], ...]
    counters: tuple[Key, ...]
    sends: tuple[tuple[Key, tuple[Wire, ...]], ...]
    sums: Mapping[Key, Key]
    stacks: tuple[Key, ...]
    done: tuple[Key, ...]


def recipe_of(
    programs: Programs, part: int, receives: Sequence[tuple[Key, Wire]], leave: Mapping[int, Sequence[Wire]]
) -> Recipe:
    """What the tasks of one part of a piece do.

    Args:
        programs: of the piece.
        part: which.
        receives: (what the body sees, where it arrives).
        leave: id of each value that is sent -> the wires of its receivers.
    """
    flow = programs.parts.flows.get(part)
    gives = set(flow.gives) if flow is not None else set()
    counters, sends, sums, stacks = [], [], {}, []
    for lane in programs.parts.lanes:
        if lane.kind == "counter" and lane.inside:
            counters.append(lane.inside)
        elif lane.leaves in gives and lane.leaves is not None:
            if lane.kind == "sent" and lane.port is not None:
                sends.append((lane.leaves, tuple(leave.get(programs.parts.piece.outputs[lane.port].of, ()))))
            elif lane.kind == "sum" and lane.inside:
                sums[lane.leaves] = lane.inside
            elif lane.kind == "stacked":
                stacks.append(lane.leaves)
    flows = programs.parts.flows
    later = {k for p, other in flows.items() if part < p < AFTER for k in other.takes}
    at_hand = {*gives, *(flow.takes if flow is not None else ()), *(k for k, _ in receives)} - sums.keys()
    return Recipe(tuple(receives), tuple(counters), tuple(sends), sums, tuple(stacks), tuple(sorted(at_hand - later)))
