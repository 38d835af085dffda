"""A step traced on arguments of one kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax

from autosharding.capture import capture
from autosharding.graph import Graph
from autosharding.leaves import Result, Structure, new_states, take_result


@dataclass(frozen=True)
class Traced:
    """A step on arguments of one kind: its graph, and how results are put together."""

    graph: Graph
    structure: Structure
    result: Result
    state: Mapping[int, int]
    donated: frozenset[int]


def trace(
    fn: Callable[..., Any],
    structure: Structure,
    shapes: Sequence[jax.ShapeDtypeStruct],
    name: str,
    donate: Sequence[int | str],
) -> Traced:
    """Trace a step on arguments of this structure and these shapes."""
    box: list[Result] = []

    def flat(*arrays: Any) -> list[Any]:
        args, kwargs, objects = structure.call(arrays)
        out, result = take_result(fn(*args, **kwargs), objects)
        box.append(result)
        return out

    graph = capture(flat, shapes, name=name, input_names=structure.names)
    result = box[-1]
    graph = replace(graph, output_names=result.names(structure))
    outs = [a.aval for a in graph.outputs]
    state = new_states(structure, result, shapes, outs)
    kept = set(state.values())
    donated = frozenset(i for i, a in enumerate(structure.arguments) if a in donate and i in kept)
    return Traced(graph, structure, result, state, donated)
