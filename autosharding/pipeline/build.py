"""From the graph of a step to the plan of a pipeline, and to what runs it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from autosharding import placing
from autosharding.errors import Infeasible, PlanMismatch, StageError
from autosharding.graph import Graph
from autosharding.microbatch.split import best_labels, examples_of
from autosharding.pipeline.assign import Assignment, assign
from autosharding.pipeline.channel import Channel
from autosharding.pipeline.forward import Forward
from autosharding.pipeline.parts import Parts
from autosharding.pipeline.piece import Piece, piece_of
from autosharding.pipeline.plan import PipelinePlan
from autosharding.pipeline.programs import Programs
from autosharding.pipeline.runner import Runner
from autosharding.pipeline.slices import InSlices, in_slices
from autosharding.pipeline.tally import price_of
from autosharding.pipeline.transfer import channel_between
from autosharding.pipeline.travel import Travel, holding, seconds_of, travels_of
from autosharding.plan import Plan
from cost_model import Cluster, ClusterError, Topology
from stage_dp import Price, Schedule, stage_peak

ATTEMPTS = 4
"""How often the pieces of a stage are planned again for less memory."""

AIM = 0.95
"""For how much less than the share that seems right: plans are few, and what they hold goes in steps."""

NO_LIMIT = 1 << 60
"""Bytes."""


class Planner(Protocol):
    """Plans a piece."""

    def __call__(self, piece: Piece, where: Cluster | Topology, memory: int | None, rent: float = 0.0) -> Plan:
        """The plan of a piece.

        Args:
            piece: a piece.
            where: the devices of its stage, or the mesh laid on them.
            memory: bytes that a device may hold; None: its own less its reserve.
            rent: seconds that a byte costs which is held all the time.
        """
        ...


@dataclass(frozen=True, slots=True)
class Site:
    """Where a stage runs.

    Attributes:
        first: number of its first device; it has those that follow.
        where: its devices, or the mesh laid on them.
        rent: seconds that a byte costs which is held all the time, for the plan tried first.
    """

    first: int
    where: Cluster | Topology
    rent: float = 0.0

    @property
    def n_devices(self) -> int:
        """How many devices it has."""
        return self.where.n_devices


def equal_sites(cluster: Cluster, stages: int) -> tuple[Site, ...]:
    """Equal groups of the devices, in their order.

    Raises:
        StageError: where the devices do not part into so many.
    """
    if stages < 1:
        raise StageError(f"{stages} stages were asked for; a pipeline has at least one.")
    try:
        part = cluster.part(stages)
    except ClusterError as error:
        raise StageError(f"{stages} stages were asked for on the cluster {cluster.name}. {error}") from error
    return tuple(Site(i * part.n_devices, part) for i in range(stages))


@dataclass(frozen=True)
class Pipeline:
    """A step cut into pieces.

    Attributes:
        graph: the step, as it was cut.
        schedule: which task runs when, and on which stage.
        cuts: where the pieces begin among the units that a cut parts, and the number of these.
        assignment: what each piece does.
        pieces: the pieces.
        sliced: the step, its loops over layers taken apart: what was cut, with what its arrays are to the user's.
        independent: whether a microbatch takes the statistics of its own examples for those of the batch.
    """

    graph: Graph
    schedule: Schedule
    cuts: tuple[int, ...]
    assignment: Assignment
    pieces: tuple[Piece, ...]
    sliced: InSlices
    independent: bool = False

    def plan(self, cluster: Cluster, sites: Sequence[Site], planner: Planner, memory: int | None) -> PipelinePlan:
        """Plan every piece, so that what a stage holds in all fits its devices.

        Args:
            cluster: all devices.
            sites: of each stage.
            planner: of one piece.
            memory: bytes that a device may hold; None takes the device's own less its reserve.

        Raises:
            Infeasible: when a stage does not fit.
        """
        budget = memory if memory is not None else cluster.device.usable_memory
        n, devices = self.schedule.n_stages, [site.n_devices for site in sites]
        travels = travels_of(self.sliced, self.pieces, devices)
        stages = [self._fitting(stage, planner, sites[stage], budget, travels) for stage in range(n)]
        parts = [stages[p % n][p // n] for p in range(len(self.pieces))]
        priced = [self._prices(stage, each, travels) for stage, each in enumerate(stages)]
        prices = [priced[p % n][p // n] for p in range(len(self.pieces))]
        between = [[self._link(cluster, a, b) for b in sites] for a in sites]
        sizes = [v.nbytes for v in self.sliced.graph.inputs]
        there = seconds_of(travels, sizes, devices, between)
        back = seconds_of([t for t in travels if t.comes_back], sizes, devices, between)
        for stage, (a, b) in enumerate(zip(there, back, strict=True)):
            prices[stage] = replace(prices[stage], before=prices[stage].before + a, after=prices[stage].after + b)
        links = [between[p % n][(p + 1) % n] for p in range(len(parts) - 1)]
        transfers = tuple(
            (
                link.latency + a.sent_bytes(backward=False) / link.bandwidth,
                link.latency + b.sent_bytes(backward=True) / link.bandwidth,
            )
            for link, a, b in zip(links, parts, parts[1:], strict=False)
        )
        return PipelinePlan(
            self.graph.name,
            self.graph.fingerprint,
            self.schedule,
            tuple(_allowed(each.plan, budget) for each in parts),
            tuple(prices),
            transfers,
            self.cuts,
            tuple(site.first for site in sites),
            self.independent,
            self.sliced.pieces,
        )

    @staticmethod
    def _link(cluster: Cluster, a: Site, b: Site) -> Any:
        return cluster.link_between(a.first, b.first + b.n_devices - 1)

    def _fitting(self, stage: int, planner: Planner, site: Site, budget: int, travels: Sequence[Travel]) -> list[Parts]:
        """The pieces of a stage, planned so that what it holds in all fits: the fastest, else with less memory each."""
        pieces = self.pieces[stage :: self.schedule.n_stages]
        parts = [self._parts(piece, planner(piece, site.where, NO_LIMIT, site.rent)) for piece in pieces]
        least = held = self._held(stage, parts, travels)
        if held > budget:  # where a program of its own is refused, so is the stage
            limit = budget // len(pieces)
            parts = [self._parts(piece, planner(piece, site.where, limit)) for piece in pieces]
            held = self._held(stage, parts, travels)
            least = min(least, held)
        low, high = 0, max(each.plan.memory.peak for each in parts)
        limit = int(AIM * high * budget / held)
        for _ in range(ATTEMPTS):
            if held <= budget:
                return parts
            found = [_plan_within(planner, piece, site.where, limit) for piece in pieces]
            plans = [plan for plan in found if plan is not None]
            if len(plans) < len(pieces):
                low = limit
            else:
                parts, high = list(map(self._parts, pieces, plans)), limit
                held = self._held(stage, parts, travels)
                least = min(least, held)
            limit = (low + high) // 2 if low else int(AIM * limit * budget / held)
        if held <= budget:
            return parts
        raise Infeasible(
            f"Stage {stage} of {self.graph.name!r} does not fit: {budget:,} bytes per device are allowed, and with "
            f"{self.schedule.in_flight[stage]} microbatches in flight the closest plan found holds {least:,}. Try more "
            "microbatches (each is smaller), a schedule that holds fewer of them (1f1b), more devices, or "
            "jax.checkpoint around the blocks.",
            least,
        )

    def _held(self, stage: int, parts: Sequence[Parts], travels: Sequence[Travel]) -> int:
        """The most that a device of a stage holds."""
        return stage_peak(self.schedule, stage, self._prices(stage, parts, travels))

    def _prices(self, stage: int, parts: Sequence[Parts], travels: Sequence[Travel]) -> list[Price]:
        """Of the pieces of a stage, with what it holds of arrays that travel."""
        first, *others = (price_of(each, self.schedule.n_microbatches) for each in parts)
        return [holding(first, travels, stage, parts), *others]

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
        return Runner(self.graph, programs, self.schedule, self.assignment.rounds, self.sliced.state, between)

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


def _allowed(plan: Plan, budget: int) -> Plan:
    """The plan of a piece, saying what its stage is allowed in all."""
    return replace(plan, memory=replace(plan.memory, budget=budget if budget < NO_LIMIT else None))


def _plan_within(planner: Planner, piece: Piece, where: Cluster | Topology, limit: int) -> Plan | None:
    """The plan of a piece for less memory; None where it cannot do with so little."""
    try:
        return planner(piece, where, limit)
    except Infeasible:
        return None


def pipelined(
    graph: Graph,
    state: Mapping[int, int],
    schedule: Schedule,
    cuts: Sequence[int] | None = None,
    *,
    independent: bool = False,
    donated: frozenset[int] = frozenset(),
    slices: int | None = None,
) -> Pipeline:
    """Cut a step into the pieces of a schedule.

    Args:
        graph: the step on the full batch.
        state: result index -> index of the input whose new state it is.
        schedule: stages, microbatches and the order of the tasks.
        cuts: as in `Pipeline`; None: pieces as alike as the program allows.
        independent: whether a microbatch may take the statistics of its own examples for those of the batch.
        donated: inputs whose buffers their new state takes over.
        slices: into how many pieces loops over layers can be cut; None: as many as the schedule has.

    Raises:
        MicrobatchError: where the batch cannot be cut.
        StageError: where the program cannot be cut.
    """
    sliced = in_slices(graph, state, donated, slices or schedule.n_pieces)
    forward = forward_of(sliced, schedule.n_microbatches, independent=independent)
    starts = forward.even(schedule.n_pieces) if cuts is None else cuts
    return cut(sliced, forward, schedule, starts, independent=independent)


def forward_of(sliced: InSlices, microbatches: int, *, independent: bool = False) -> Forward:
    """A step in microbatches, ready to be cut.

    Raises:
        MicrobatchError: where the batch cannot be cut.
    """
    graph, state = sliced.graph, sliced.state
    examples = examples_of(graph, state, microbatches)
    labels = best_labels(graph, state, examples, microbatches, independent=independent)
    return Forward(labels, state, sliced.donated)


def cut(sliced: InSlices, forward: Forward, schedule: Schedule, cuts: Sequence[int], *, independent: bool) -> Pipeline:
    """Cut a step into the pieces of a schedule that begin at `cuts`."""
    if len(cuts) != schedule.n_pieces + 1 or cuts[-1] != len(forward.cuttable):
        raise PlanMismatch(
            f"The step {forward.labels.graph.name!r} has {len(forward.cuttable)} units that can be cut; the cuts "
            f"{tuple(cuts)} into {schedule.n_pieces} pieces are those of another. Plan the step again."
        )
    assignment = assign(forward, cuts)
    pieces = [piece_of(assignment, p, forward) for p in range(schedule.n_pieces)]
    if schedule.n_chunks > 1:  # pieces of one stage share the arrays that both read
        readers = Counter(port.of for piece in pieces for port in piece.inputs if port.kind == "step")
        alone = [frozenset(i for i in p.donated if readers[p.inputs[i].of] == 1) for p in pieces]
        pieces = [replace(p, donated=own) for p, own in zip(pieces, alone, strict=True)]
    return Pipeline(sliced.graph, schedule, tuple(cuts), assignment, tuple(pieces), sliced, independent)
