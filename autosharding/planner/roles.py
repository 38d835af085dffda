"""What each argument is to the step: read off the graph, with no names needed.

State is what comes in and leaves as new state. Of it, a parameter is what the forward pass computes with; an optimizer
state is what only the update reads. The rest of the arguments are the batch.
"""

from __future__ import annotations

from collections.abc import Mapping

from autosharding.graph import Graph

ROLES = ("parameter", "optimizer", "state", "batch", "constant")


def roles(graph: Graph, state: Mapping[int, int]) -> tuple[str, ...]:
    """The role of each input."""
    is_state = set(state.values())
    found = []
    for i, v in enumerate(graph.inputs):
        phases = {op.phase for op, _ in graph.readers[v.id]}
        if i >= graph.n_arguments:
            found.append("constant")
        elif i not in is_state:
            found.append("batch")
        elif v.dtype.startswith(("f", "bf")) and phases & {"forward", "backward"}:
            found.append("parameter")
        elif v.dtype.startswith(("f", "bf")) and v.rank > 0:
            found.append("optimizer")
        else:
            found.append("state")
    return tuple(found)
