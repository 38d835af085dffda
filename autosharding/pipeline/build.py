"""From the graph of a step to the plan of a pipeline, and to what runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autosharding import placing
from autosharding.errors import Infeasible, PlanMismatch
from autosharding.graph import Graph
from autosharding.microbatch.split import best_labels, examples_of
from autosharding.pipeline.assign import Assignment, assign
from autosharding.pipeline.channel import Channel
from autosharding.pipeline.parts import Parts
from autosharding.pipeline.piece import Piece, piece_of
from autosharding.pipeline.plan import PipelinePlan
from autosharding.pipeline.programs import Programs
from autosharding.pipeline.runner import Runner
from autosharding.pipeline.transfer import channel_between
from autosharding.plan import Plan
from cost_model import Cluster
from stage_dp import Schedule

Planner = Callable[[Graph, Mapping[int, int], int | None], Plan]
"""Plans a piece on the devices of a stage: its graph, which of its results are new states of which inputs, and the
bytes that a device may hold (None: its own)."""

ATTEMPTS = 4
"""How often a piece is planned again for less memory, to make room for the microbatches in flight."""


@dataclass(frozen=True)
class Pipeline:
    """A step cut into pieces.

    Attributes:
        graph: the step.
        schedule: which task runs when, and on which stage.
        assignment: what each piece does.
        pieces: the pieces.
        state: result index -> index of the input whose new state it is.
        independent: whether a microbatch takes the statistics of its own examples for those of the batch.
    """

    graph: Graph
    schedule: Schedule
    assignment: Assignment
    pieces: tuple[Piece, ...]
    state: Mapping[int, int]
    independent: bool = False

    def plan(self, cluster: Cluster, planner: Planner, memory: int | None) -> PipelinePlan:
        """Plan every piece, so that what a stage holds in all fits its devices.

        Args:
            cluster: all devices; a stage has an equal group of them.
            planner: of one piece.
            memory: bytes that a device may hold; None takes the device's own less its reserve.

        Raises:
            Infeasible: when a stage does not fit.
        """
        budget = memory if memory is not None else cluster.device.usable_memory
        n = self.schedule.n_stages
        plans = []
        for p, piece in enumerate(self.pieces):
            in_flight = self.schedule.in_flight[p % n]
            plans.append(self._planned(piece, planner, budget // self.schedule.n_chunks, in_flight))
        parts = self.parts(plans)
        prices = tuple(each.price(self.schedule.n_microbatches) for each in parts)
        links = [cluster.link_between(n, p % n if n > 1 and p % n < n - 1 else 0) for p in range(len(parts) - 1)]
        transfers = tuple(
            (
                link.latency + a.sent_bytes(backward=False) / link.bandwidth,
                link.latency + b.sent_bytes(backward=True) / link.bandwidth,
            )
            for link, a, b in zip(links, parts, parts[1:], strict=False)
        )
        name, mark = self.graph.name, self.graph.fingerprint
        return PipelinePlan(name, mark, self.schedule, tuple(plans), prices, transfers, self.independent)

    def _planned(self, piece: Piece, planner: Planner, budget: int, in_flight: int) -> Plan:
        """Plan a piece for what the microbatches in flight leave: all but one are held besides what its plan sees."""
        limit, held = budget, 0
        for _ in range(ATTEMPTS):
            plan = planner(piece.graph, piece.state, limit)
            held = plan.memory.peak + (in_flight - 1) * self._parts(piece, plan).kept_bytes
            if held <= budget:
                return plan
            limit -= held - budget
            if limit <= 0:
                break
        raise Infeasible(
            f"A stage of {piece.graph.name!r} does not fit: {budget:,} bytes per device are allowed, and with "
            f"{in_flight} microbatches in flight the closest plan found holds {held:,}. Try more microbatches (each is "
            "smaller), a schedule that holds fewer of them (1f1b), more devices, or jax.checkpoint around the blocks."
        )

    def parts(self, plans: Sequence[Plan]) -> list[Parts]:
        """What runs when in each piece."""
        return [self._parts(piece, plan) for piece, plan in zip(self.pieces, plans, strict=True)]

    def _parts(self, piece: Piece, plan: Plan) -> Parts:
        return Parts(piece, plan, self.assignment.rounds, splits_backward=self.schedule.splits_backward)

    def runner(self, plan: PipelinePlan, stages: Sequence[Sequence[Any]], channel: Channel | None = None) -> Runner:
        """The pipeline on devices.

        Args:
            plan: of this pipeline.
            stages: the devices of each stage.
            channel: between them; by default what goes between their processes.

        Raises:
            PlanMismatch: when the plan is another pipeline's.
        """
        self.check(plan)
        n = self.schedule.n_stages
        meshes = [placing.mesh_over(each.mesh, stages[p % n], None) for p, each in enumerate(plan.plans)]
        programs = [Programs(*each) for each in zip(self.parts(plan.plans), meshes, strict=True)]
        between = channel or channel_between(d for stage in stages for d in stage)
        return Runner(self.graph, programs, self.schedule, self.assignment.rounds, self.state, between)

    def check(self, plan: PipelinePlan) -> None:
        """Whether a plan is one of this pipeline.

        Raises:
            PlanMismatch: when it is another's.
        """
        if [p.fingerprint for p in plan.plans] != [p.graph.fingerprint for p in self.pieces]:
            raise PlanMismatch(
                f"This plan was made for the pipeline {plan.name!r}, and the step at hand is cut into other pieces. "
                "Plan the step again, or call it with the arguments the plan was made for."
            )


def pipelined(graph: Graph, state: Mapping[int, int], schedule: Schedule, *, independent: bool = False) -> Pipeline:
    """Cut a step into the pieces of a schedule.

    Args:
        graph: the step on the full batch.
        state: result index -> index of the input whose new state it is.
        schedule: stages, microbatches and the order of the tasks.
        independent: whether a microbatch may take the statistics of its own examples for those of the batch.

    Raises:
        MicrobatchError: where the batch cannot be cut.
        StageError: where the program cannot be cut.
    """
    microbatches = schedule.n_microbatches
    examples = examples_of(graph, state, microbatches)
    labels = best_labels(graph, state, examples, microbatches, independent=independent)
    assignment = assign(labels, schedule.n_pieces, state)
    pieces = tuple(piece_of(assignment, p, state) for p in range(schedule.n_pieces))
    return Pipeline(graph, schedule, assignment, pieces, state, independent)
