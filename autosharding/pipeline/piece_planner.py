"""Plans a piece as any graph is planned, told what its inputs are to the step and what passes by."""

from __future__ import annotations

from autosharding.pipeline.piece import Piece
from autosharding.plan import Plan
from autosharding.planner import Known, plan_graph
from cost_model import Cluster, Topology


class PiecePlanner:
    """Plans pieces; what pieces that are alike have in common is made once.

    Args:
        method: "auto" or one of the plans that people write by hand.
    """

    def __init__(self, method: str = "auto") -> None:
        self.method = method
        self._known: dict[Topology, Known] = {}

    def __call__(self, piece: Piece, where: Cluster | Topology, memory: int | None, rent: float = 0.0) -> Plan:
        """The plan of a piece; see `Planner`."""
        return plan_graph(
            piece.graph,
            where if isinstance(where, Cluster) else None,
            topology=where if isinstance(where, Topology) else None,
            memory=memory,
            method=self.method,
            state=piece.state,
            donated=piece.donated,
            streams=piece.streams,
            told=piece.roles,
            rent=rent,
            known=self._known,
        )
