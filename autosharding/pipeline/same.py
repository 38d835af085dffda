"""Plans made once for all pieces that are the same program on the same devices."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

from autosharding.graph import Graph
from autosharding.pipeline.build import Planner
from autosharding.pipeline.piece import Piece
from autosharding.plan import Plan
from cost_model import Cluster, Topology


class OnceForSame:
    """A planner that plans equal pieces once.

    Args:
        planner: plans a piece.
    """

    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        self._known: dict[Hashable, tuple[Graph, Plan]] = {}

    def __call__(self, piece: Piece, where: Cluster | Topology, memory: int | None, rent: float = 0.0) -> Plan:
        """The plan of a piece; see `Planner`."""
        graph = piece.graph
        program = replace(graph, name="").fingerprint
        mappings = (tuple(sorted(each.items())) for each in (piece.state, piece.roles))
        key = (program, *mappings, piece.streams, piece.donated, where, memory, rent)
        if key not in self._known:
            self._known[key] = graph, self.planner(piece, where, memory, rent)
        return _told_of(graph, *self._known[key])


def _told_of(graph: Graph, of: Graph, plan: Plan) -> Plan:
    """The plan of one graph, with the names, scopes and lines of another that is the same program."""
    if graph is of:
        return plan
    names = dict(zip(of.input_names, graph.input_names, strict=True))
    steps = zip(plan.steps, graph.ops, strict=True)
    outputs = zip(plan.outputs, graph.output_names, strict=True)
    return replace(
        plan,
        name=graph.name,
        fingerprint=graph.fingerprint,
        inputs=tuple(replace(i, name=names[i.name]) for i in plan.inputs),
        steps=tuple(replace(s, scope=op.scope, source=op.source) for s, op in steps),
        outputs=tuple(replace(o, name=name) for o, name in outputs),
        memory=replace(
            plan.memory, largest=tuple(replace(h, what=names.get(h.what, h.what)) for h in plan.memory.largest)
        ),
    )
