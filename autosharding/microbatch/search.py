"""How many microbatches: as few as the memory allows, as long as more do not pay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from typing import Literal

from autosharding.errors import Infeasible, MicrobatchError
from autosharding.graph import Graph
from autosharding.microbatch.split import batch_of, microbatched
from autosharding.plan import Plan

Microbatches = int | Literal["auto"]

WORTH = 2e-3
"""Relative gain in seconds below which two plans are as good: twice the gap at which the solver stops."""

WORSE = 2
"""After so many plans that are no better the search ends."""


def planned(
    graph: Graph,
    state: Mapping[int, int],
    microbatches: Microbatches,
    plan: Callable[[Graph], Plan],
    tell: Callable[[str], None],
    *,
    independent: bool = False,
) -> tuple[Graph, Plan]:
    """(the graph that runs, its plan).

    "auto" doubles the number of microbatches as long as the memory limit costs time. More of them never make a step
    faster by themselves, so a plan that is as fast as memory without limit allows is the end.

    Args:
        graph: the step on the full batch.
        state: result index -> index of the input whose new state it is.
        microbatches: how many, or "auto".
        plan: plans a graph; raises `Infeasible`.
        tell: called with a line of text at each number tried.
        independent: whether a microbatch may take the statistics of its own examples for those of the batch.

    Raises:
        Infeasible: where no number fits.
        MicrobatchError: where the number asked for cannot be had.
    """
    if microbatches != "auto":
        return _attempt(graph, state, microbatches, plan, independent)
    best: tuple[Graph, Plan] | None = None
    reason: Infeasible | None = None
    no_better = 0
    for m in _numbers(graph, state):
        if m > 1:
            tell(f"the memory limit costs time: trying {m} microbatches")
        try:
            found = _attempt(graph, state, m, plan, independent)
        except Infeasible as error:
            reason = reason or error
            continue
        except MicrobatchError as error:
            if best is None and reason is not None:
                raise Infeasible(f"{reason} Smaller pieces of the batch do not help: {error}") from error
            break
        if best is None or found[1].seconds < best[1].seconds * (1 - WORTH):
            best, no_better = found, 0
        else:
            no_better += 1
        if found[1].seconds <= found[1].unlimited * (1 + WORTH) or no_better == WORSE:
            break
    if best is None:
        assert reason is not None
        raise reason
    return best


def _attempt(
    graph: Graph, state: Mapping[int, int], microbatches: int, plan: Callable[[Graph], Plan], independent: bool
) -> tuple[Graph, Plan]:
    if microbatches == 1:
        return graph, plan(graph)
    pieces = microbatched(graph, state, microbatches, independent=independent)
    return pieces, replace(plan(pieces), microbatches=microbatches, independent=independent)


def _numbers(graph: Graph, state: Mapping[int, int]) -> list[int]:
    """1, 2, 4, ... as long as they divide the examples."""
    examples = batch_of(graph, state) or 1
    found = []
    for k in count():
        if examples % 2**k:
            return found
        found.append(2**k)
    return found
