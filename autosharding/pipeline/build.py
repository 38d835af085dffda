"""From the graph of a step to a pipeline that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autosharding import placing
from autosharding.graph import Graph
from autosharding.microbatch.split import best_labels, examples_of
from autosharding.pipeline.assign import Assignment, assign
from autosharding.pipeline.channel import Channel, DevicePut
from autosharding.pipeline.piece import Piece, piece_of
from autosharding.pipeline.programs import Programs
from autosharding.pipeline.runner import Runner
from autosharding.plan import Plan
from stage_dp import Schedule

Planner = Callable[[Graph, Mapping[int, int]], Plan]
"""Plans a piece, given its graph and which of its results are new states of which inputs."""


@dataclass(frozen=True)
class Pipeline:
    """A step cut into pieces, each planned.

    Attributes:
        graph: the step.
        schedule: which task runs when, and on which stage.
        assignment: what each piece does.
        pieces: the pieces.
        plans: theirs.
    """

    graph: Graph
    schedule: Schedule
    assignment: Assignment
    pieces: tuple[Piece, ...]
    plans: tuple[Plan, ...]

    def runner(self, stages: Sequence[Sequence[Any]], channel: Channel | None = None) -> Runner:
        """The pipeline on devices.

        Args:
            stages: the devices of each stage.
            channel: between them; by default within this process.
        """
        n = self.schedule.n_stages
        rounds = self.assignment.rounds
        meshes = [placing.mesh_over(plan.mesh, stages[p % n], None) for p, plan in enumerate(self.plans)]
        programs = [Programs(*each, rounds) for each in zip(self.pieces, self.plans, meshes, strict=True)]
        return Runner(self.graph, programs, self.schedule, rounds, channel or DevicePut())


def pipelined(graph: Graph, state: Mapping[int, int], schedule: Schedule, plan: Planner) -> Pipeline:
    """Cut a step into the pieces of a schedule, and plan each.

    Args:
        graph: the step on the full batch.
        state: result index -> index of the input whose new state it is.
        schedule: stages, microbatches and the order of the tasks.
        plan: plans a piece on the devices of a stage.

    Raises:
        MicrobatchError: where the batch cannot be cut.
        StageError: where the program cannot be cut.
    """
    microbatches = schedule.n_microbatches
    labels = best_labels(graph, state, examples_of(graph, state, microbatches), microbatches)
    assignment = assign(labels, schedule.n_pieces, state)
    pieces = tuple(piece_of(assignment, p, state) for p in range(schedule.n_pieces))
    return Pipeline(graph, schedule, assignment, pieces, tuple(plan(p.graph, p.state) for p in pieces))
