"""Layers: the forward pass parted where little is sent, into what stages are put together from.

A cut is worth having where no cut near it sends much less. What lies between two such cuts is a layer: a block of a
transformer or of a residual net, whatever it is called in the program. Where there are more than can be priced one by
one, neighbours are put together (`stage_dp.cluster_layers`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise

from autosharding.pipeline.forward import Forward
from stage_dp import NoStages, cluster_layers

MOST_LAYERS = 64
"""More than so many are put together by twos, threes, ..."""

NARROW = ((1 / 32, 1.5), (1 / 4, 4.0))
"""(share of the work, times): cuts so near, before and after, send no fewer bytes times so much."""

SMALL = 0.1
"""What has less than this share of the work of the largest part is no layer by itself."""

SLACK = 0.5
"""By how much layers that are put together may cost more than their mean, at first; doubled until it is possible."""


def layers_of(forward: Forward) -> tuple[int, ...]:
    """Where the layers begin among the cuttable units, and the number of these at the end."""
    starts = _without_small(_narrow(forward.work, forward.sent), forward.work)
    count = len(starts) - 1
    if count <= MOST_LAYERS:
        return tuple(starts)
    work = [sum(forward.work[a:b]) for a, b in pairwise(starts)]
    sent = [forward.sent[a] for a in starts[:-1]]
    count = -(-count // -(-count // MOST_LAYERS))
    slack = SLACK
    while True:
        try:
            return tuple(starts[i] for i in cluster_layers(work, sent, count, slack))
        except NoStages:
            slack *= 2


def _narrow(work: Sequence[float], sent: Sequence[int]) -> list[int]:
    """The cuts worth having; first 0, last the number of units."""
    done = [0.0, *accumulate(work)]
    end = bisect_right(done, done[-1] * (1 - SMALL / MOST_LAYERS))  # what follows a loss sends next to nothing
    found = [0]
    for i in range(1, end):
        for share, times in NARROW:
            near = bisect_left(done, done[i] - share * done[-1]), bisect_right(done, done[i] + share * done[-1])
            if sent[i] > times * min(sent[max(1, near[0]) : min(end, near[1])]):
                break
        else:
            found.append(i)
    return [*found, len(work)]


def _without_small(starts: Sequence[int], work: Sequence[float]) -> list[int]:
    """Small parts joined to the one after, the last to the one before."""
    parts = [sum(work[a:b]) for a, b in pairwise(starts)]
    least = SMALL * max(parts)
    found, so_far = [0], 0.0
    for end, part in zip(starts[1:], parts, strict=True):
        so_far += part
        if so_far >= least:
            found.append(end)
            so_far = 0.0
    return [*(found if so_far == 0.0 else found[:-1]), starts[-1]] if found[-1] != starts[-1] else found
