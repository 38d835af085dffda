"""Which stages: the cuts, submeshes, logical meshes and microbatches that the price table promises most of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from autosharding.errors import Infeasible, MicrobatchError, StageError
from autosharding.graph import Graph
from autosharding.microbatch import batch_of
from autosharding.pipeline.build import Pipeline, Planner, Site, cut, equal_sites, forward_of, pipelined
from autosharding.pipeline.forward import Forward
from autosharding.pipeline.plan import FORWARD, PipelinePlan, schedule_of
from autosharding.pipeline.prices import Pricer, Table
from autosharding.pipeline.slices import InSlices, in_slices
from autosharding.pipeline.travel import travels_of
from cost_model import Cluster, Torus
from stage_dp import Layers, NoStages, Stage, Stages, Submesh, split_layers, submesh_shapes

SPLITS_BACKWARD = ("zero-bubble",)
"""Schedules in which weight gradients are tasks of their own."""

SEARCHED = ("1f1b", "1f1b-eager", "interleaved", *SPLITS_BACKWARD)
"""The schedules that are compared where none is asked for."""

LATENCY, THROUGHPUT = INFERENCE = ("latency", "throughput")
"""What stages are chosen for where the step has no backward pass: seconds of a microbatch, or between two."""

MARGINS = (1.0, 0.94, 0.88, 0.8)
"""Shares of the memory that the table may fill, one after another, until the stages themselves fit."""


MANY = 4
"""Microbatches for each stage with which the search begins."""

SPREAD = 2
"""Sizes of submeshes so far apart are looked at first, and priced on both sides of the best of them."""

FEWEST_CHUNKS = 2
"""Pieces of a stage that are interleaved, at least."""

MOST_SLICES = 16
"""Pieces into which loops over layers are cut where any number of stages may be best."""

GAIN = 0.99
"""Another number of microbatches is tried while the last takes at most so many times the seconds of the one before.
Loops over layers are cut more finely than stages need where that takes at most so many times the seconds."""


@dataclass(frozen=True)
class Candidate:
    """A number of microbatches with its price table and the best stages for it; several, if any number may be."""

    sliced: InSlices
    forward: Forward
    table: Table
    stages: Stages

    @cached_property
    def seconds(self) -> float:
        """Of a step, replayed: uneven stages hide more of the transfers than what they were chosen by says."""
        return self.stages.simulate().seconds

    @property
    def one_mesh(self) -> float:
        """Seconds that one stage on all devices is promised to take; inf where it does not fit."""
        layers = self.table.layers
        k = _whole(layers)
        front = layers.fronts.get((0, layers.n_layers, k), ())
        return min((layers.microbatches * p.seconds + p.step_seconds for p in front), default=math.inf)


def _whole(layers: Layers) -> int:
    """Index of the submesh that is the whole cluster; -1 where that is not priced."""
    whole = Submesh(layers.nodes, layers.per_node)
    return layers.submeshes.index(whole) if whole in layers.submeshes else -1


def _odd(n: int) -> int:
    """Its largest odd factor."""
    return n // (n & -n)


@dataclass(frozen=True)
class StageSearch:
    """Finds the stages of a step.

    Attributes:
        graph: the step on the full batch.
        state: result index -> index of the input whose new state it is.
        cluster: all devices.
        planner: of pieces.
        n_stages: how many; None: any number.
        schedule: of the stages; "auto": that of which the prices promise most. Of a step without a backward pass there
            is one schedule, and the stages are those with the highest throughput, or with the least "latency".
        memory: bytes that a device may hold; None: its own less its reserve.
        independent: whether a microbatch may take the statistics of its own examples for those of the batch.
        donated: inputs whose buffers their new state takes over.
        tell: called with a line of text at each number of microbatches.
        slices: into how many pieces loops over layers can be cut; None: as many as there are stages, else many.
        chunks: pieces of each stage, if interleaved; None: as many as are best.
    """

    graph: Graph
    state: Mapping[int, int]
    cluster: Cluster
    planner: Planner
    n_stages: int | None
    schedule: str
    memory: int | None
    independent: bool
    donated: frozenset[int]
    tell: Callable[[str], None]
    slices: int | None = None
    chunks: int | None = None

    def found(self, microbatches: int | Literal["auto"]) -> Candidate:
        """The stages that the prices promise most of.

        Raises:
            NoStages: where the program has no layers to make so many stages of, or nothing fits by the prices.
            MicrobatchError: where the batch cannot be cut so.
        """
        best = self._fastest() if microbatches == "auto" else self.candidate(microbatches)
        count = len(best.stages.stages)
        if count in (1, best.sliced.pieces) or best.sliced.graph is self.graph:
            return best
        alike = replace(self, slices=count).candidate(best.stages.microbatches, best.table.layers.submeshes)
        return alike if alike.seconds <= best.seconds / GAIN else best

    def candidate(self, microbatches: int, submeshes: Sequence[Submesh] | None = None) -> Candidate:
        """The best stages for a number of microbatches, on some of the submeshes or all."""
        self.tell(f"pricing layers for {microbatches} microbatches")
        found: list[Candidate] = []
        reasons: list[NoStages] = []
        for name in self._schedules:
            pricer = self._pricer(microbatches, name in SPLITS_BACKWARD)
            table = pricer.table(self.cluster, submeshes or self.submeshes, self.memory)
            try:
                found.append(Candidate(self.sliced, pricer.forward, table, self._split(table.layers, name)))
            except NoStages as error:
                reasons.append(error)
        if not found:
            raise reasons[0]
        return min(found, key=lambda one: one.seconds) if len(found) > 1 else found[0]

    @property
    def _schedules(self) -> tuple[str, ...]:
        """The schedules to choose from, or what to choose stages for."""
        if not self.trains:
            return (LATENCY if self.schedule == LATENCY else THROUGHPUT,)
        return SEARCHED if self.schedule == "auto" else (self.schedule,)

    @cached_property
    def trains(self) -> bool:
        """Whether the step has a backward pass."""
        return any(op.phase == "backward" for op in self.graph.ops)

    def _pricer(self, microbatches: int, splits: bool) -> Pricer:
        """Prices the layers for a number of microbatches."""
        if (microbatches, splits) not in self._pricers:
            known = next(iter(self._pricers.values()), None)
            same = next((p for (m, _), p in self._pricers.items() if m == microbatches), None)
            independent = self.independent
            forward = same.forward if same else forward_of(self.sliced, microbatches, independent=independent)
            self._pricers[microbatches, splits] = Pricer(forward, self.planner, splits_backward=splits, like=known)
        return self._pricers[microbatches, splits]

    @cached_property
    def _pricers(self) -> dict[tuple[int, bool], Pricer]:
        return {}

    @cached_property
    def sliced(self) -> InSlices:
        """The step, its loops over layers taken apart: for so many stages, else for as many as there may be."""
        many = min(MOST_SLICES, self.cluster.n_devices)
        if self.n_stages is not None:
            many = self.n_stages * (self.chunks or (FEWEST_CHUNKS if self.schedule in ("interleaved", "auto") else 1))
        return in_slices(self.graph, self.state, self.donated, self.slices or many)

    def _split(self, layers: Layers, schedule: str) -> Stages:
        """The best stages; where their number is asked for, on all devices, else on less than all each."""
        if self.n_stages is not None:
            return split_layers(layers, schedule, self.n_stages, may_idle=False, n_chunks=self.chunks)
        parts = {at: front for at, front in layers.fronts.items() if at[2] != _whole(layers)}
        return split_layers(replace(layers, fronts=parts), schedule, n_chunks=self.chunks)

    @property
    def submeshes(self) -> tuple[Submesh, ...]:
        """The shares of the cluster that a stage may get: halves of it, parts of a node; of a torus whole slices."""
        nodes, per_node = self.cluster.nodes
        parts = submesh_shapes(1, per_node)
        halves = [
            Submesh(nodes >> k, per_node) for k in range(nodes.bit_length()) if nodes % 2**k == 0 and nodes >> k > 1
        ]
        whole = isinstance(self.cluster.wiring, Torus)
        return (*(s for s in parts if s.per_node == per_node or not whole), *halves[::-1])

    def _fastest(self) -> Candidate:
        """Over the numbers of microbatches: from a likely one to its neighbours, as long as they promise more."""
        numbers = self._numbers()
        at, first = self._likely(numbers)
        tried: dict[int, Candidate | Exception] = {}

        def seconds(i: int) -> float:
            if i not in tried:
                known = [c for c in tried.values() if isinstance(c, Candidate)]
                try:
                    tried[i] = self.candidate(numbers[i], self._near(known) if known else first)
                except (NoStages, MicrobatchError) as error:
                    tried[i] = error
            found = tried[i]
            return found.seconds if isinstance(found, Candidate) else math.inf

        seconds(at)
        for step in (1, -1):
            while 0 <= at + step < len(numbers) and not self._is_enough(tried[at]):
                following = seconds(at + step)
                if seconds(at) < math.inf and following > seconds(at) * GAIN:
                    break
                at += step
        best = min((f for f in tried.values() if isinstance(f, Candidate)), key=lambda f: f.seconds, default=None)
        if best is None:
            raise next(e for e in tried.values() if isinstance(e, Exception))
        return best

    def _is_enough(self, found: Candidate | Exception) -> bool:
        """Whether one mesh is best: then microbatches are a matter of memory alone."""
        return self.n_stages is None and isinstance(found, Candidate) and found.one_mesh <= found.seconds

    def _near(self, known: Sequence[Candidate]) -> Sequence[Submesh]:
        """The submeshes worth pricing: those of the best stages so far, and the next in size."""
        used = {s.submesh for c in known for s in c.stages.stages}
        every = self.submeshes
        near = [any(n in used for n in every[max(0, k - 1) : k + 2]) for k in range(len(every))]
        return [s for s, taken in zip(every, near, strict=True) if taken]

    def _likely(self, numbers: Sequence[int]) -> tuple[int, Sequence[Submesh]]:
        """Where to begin: index of a number of microbatches, and the submeshes worth pricing for it.

        Were all layers of the commonest kind and all stages of one size, a step would take what `Pricer.promised` says.
        From the best of some sizes, each with a few microbatches for each stage or as many as make room, neighbours are
        tried as long as they promise more.
        """
        every = self.submeshes

        def nearest(stages: int) -> int:
            return min(range(len(numbers)), key=lambda i: abs(math.log(numbers[i] / (MANY * stages))))

        if self.n_stages is not None:
            return nearest(self.n_stages), every
        known: dict[tuple[int, int], float] = {}

        def promised(place: tuple[int, int]) -> float:
            if place not in known:
                known[place] = self._promised(numbers[place[0]], every[place[1]])
            return known[place]

        def with_room(k: int) -> tuple[int, int]:
            at = nearest(self.cluster.n_devices // every[k].devices)
            more = [*range(at, len(numbers), SPREAD), len(numbers) - 1]
            return next(((i, k) for i in more if promised((i, k)) < math.inf), (at, k))

        sizes = range(len(every) - 1)[::-SPREAD] or (0,)  # not the whole cluster
        place = min(map(with_room, sizes), key=promised)
        if promised(place) == math.inf:
            return place[0], every
        while True:
            i, k = place
            around = [(i + 1, k), (i - 1, k), (i, k + 1), (i, k - 1)]
            inside = [(a, b) for a, b in around if a in range(len(numbers)) and b in range(len(every) - 1)]
            best = min(inside, key=promised, default=place)
            if promised(best) >= promised(place):
                return i, every[max(0, k - SPREAD) : k + SPREAD + 1]
            place = best

    def _promised(self, microbatches: int, submesh: Submesh) -> float:
        """Seconds of a step in equal stages on such submeshes; inf where that cannot be."""
        self.tell(f"looking at {microbatches} microbatches on {submesh}")
        try:
            return self._pricer(microbatches, self._schedules[0] in SPLITS_BACKWARD).promised(
                self.cluster, submesh, self.memory
            )
        except MicrobatchError:
            return math.inf

    def _numbers(self) -> list[int]:
        """Those with a power of two of examples in a microbatch, times the odd factor that examples and nodes share."""
        examples = batch_of(self.graph, self.state) or 1
        shared = math.gcd(_odd(examples), _odd(self.cluster.nodes[0]))
        least = _odd(examples) // shared
        return [least << k for k in range(examples.bit_length()) if examples % (least << k) == 0]

    # ---- planned ---------------------------------------------------------------------------------------------

    def planned(self, found: Candidate) -> tuple[Pipeline, PipelinePlan]:
        """The stages, cut and planned; equal ones, where slices of arrays would travel to these and that costs more.

        Raises:
            Infeasible: where none are found that fit.
        """
        pipeline, plan = self._planned(found)
        stages = plan.schedule.n_stages
        sizes = [each.topology.n_devices for each in plan.plans]
        if self.cluster.n_devices % stages or not travels_of(pipeline.sliced, pipeline.pieces, sizes):
            return pipeline, plan
        schedule = plan.schedule
        try:
            equal = replace(self, schedule=schedule.name).alike(stages, plan.microbatches, schedule.n_chunks)
            return min((pipeline, plan), equal, key=lambda each: each[1].seconds)
        except (StageError, Infeasible):
            return pipeline, plan

    def alike(self, stages: int, microbatches: int, chunks: int) -> tuple[Pipeline, PipelinePlan]:
        """Pieces as alike as the program allows, on equal groups of devices.

        Args:
            stages: how many.
            microbatches: how many.
            chunks: pieces of each stage.

        Raises:
            StageError: where devices, program and schedule do not go together.
            MicrobatchError: where the batch cannot be cut.
            Infeasible: where it does not fit.
        """
        self.tell(f"planning {stages} equal stages and {microbatches} microbatches")
        sites = equal_sites(self.cluster, stages)
        schedule = schedule_of(self.schedule if self.trains else FORWARD, stages, microbatches, chunks)
        pipeline = pipelined(self.graph, self.state, schedule, independent=self.independent, donated=self.donated)
        return pipeline, pipeline.plan(self.cluster, sites, self.planner, self.memory)

    def _planned(self, found: Candidate) -> tuple[Pipeline, PipelinePlan]:
        """The stages, cut and planned; where they do not fit, those for which the table promises that less is held."""
        layers = found.table.layers
        assert layers.memory is not None
        reason: Infeasible | None = None
        tried: list[Stages] = []
        for margin in MARGINS:
            try:
                less = replace(layers, memory=int(layers.memory * margin))
                stages = found.stages if margin == 1 else self._split(less, found.stages.schedule)
            except NoStages:
                break
            if not any(stages.stages == t.stages for t in tried):
                tried.append(stages)
                try:
                    return self._built(found, stages)
                except Infeasible as error:
                    reason = reason or error
        assert reason is not None
        raise reason

    def _built(self, found: Candidate, stages: Stages) -> tuple[Pipeline, PipelinePlan]:
        table, count = found.table, len(stages.stages) // stages.n_chunks
        name = stages.schedule if self.trains else FORWARD
        schedule = schedule_of(name, count, stages.microbatches, stages.n_chunks)
        cuts = [*(table.starts[s.first] for s in stages.stages), table.starts[-1]]
        sites = [self._site(table, s) for s in stages.stages[:count]]
        self.tell(f"planning {count} stages and {stages.microbatches} microbatches")
        pipeline = cut(found.sliced, found.forward, schedule, cuts, independent=self.independent)
        return pipeline, pipeline.plan(self.cluster, sites, self.planner, self.memory)

    def _site(self, table: Table, stage: Stage) -> Site:
        node, device = stage.place
        way = table.ways[stage.first, stage.end, table.layers.submeshes.index(stage.submesh)][stage.point]
        return Site(node * self.cluster.nodes[1] + device, way.topology, way.rent)
