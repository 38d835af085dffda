"""A step as a pipeline, as the public face runs it: planned for a number of stages, placed, called with arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding

from autosharding.errors import Infeasible, MeshMismatch, StageError, UnsupportedProgram
from autosharding.graph import Graph
from autosharding.microbatch import batch_of
from autosharding.pipeline.build import NO_LIMIT, Pipeline
from autosharding.pipeline.plan import FORWARD, RUNNABLE, PipelinePlan, schedule_of
from autosharding.pipeline.runner import Runner
from autosharding.pipeline.stacks import Stack
from autosharding.pipeline.stages import FEWEST_CHUNKS, INFERENCE, SEARCHED, StageSearch
from autosharding.pipeline.transfer import channel_between
from stage_dp import NoStages

PER_STAGE = (1, 2, 4, 8)
"""Microbatches for each stage that "auto" tries where there are no layers: with 8, 1F1B idles below a ninth."""


def plan_pipeline(
    search: StageSearch, stages: int, microbatches: int | Literal["auto"]
) -> tuple[Pipeline, PipelinePlan]:
    """The fastest pipeline of so many stages, by its simulated step.

    Its layers are priced, and the stages are the best by these prices. Where that cannot be, because there are fewer
    layers than pieces, the pieces are as alike as the program allows, on equal groups of devices.

    Args:
        search: what is to be cut, and for what devices.
        stages: how many.
        microbatches: how many, or "auto".

    Raises:
        StageError: where devices, program and schedule do not go together.
        MicrobatchError: where the batch cannot be cut.
        Infeasible: where it does not fit.
    """
    interleaves = search.trains and search.schedule == "interleaved"
    chunks = search.chunks or (FEWEST_CHUNKS if interleaves else 1)
    if search.trains and search.schedule in (FORWARD, *INFERENCE):
        raise StageError(
            f"The step {search.graph.name!r} has a backward pass, and {search.schedule!r} is for steps that have none. "
            f"The schedules are {', '.join(RUNNABLE)}."
        )
    if search.schedule not in ("auto", *INFERENCE):
        schedule_of(search.schedule, stages, stages, chunks)
    if stages > 1:
        try:
            found = search.found(microbatches)
        except NoStages as error:
            search.tell(f"the stages are as alike as can be, not chosen by prices: {error}")
            return _alike(search, stages, microbatches, chunks, f"{error} ")
        return search.planned(found)
    return _alike(search, stages, microbatches, chunks)


def _alike(
    search: StageSearch, stages: int, microbatches: int | Literal["auto"], chunks: int, unpriced: str = ""
) -> tuple[Pipeline, PipelinePlan]:
    """The fastest of pieces as alike as the program allows, on equal groups of devices.

    `unpriced` says why there are no stages by prices; where there are no equal ones either, so does the error.
    """
    known = replace(search, schedule=SEARCHED[0]) if search.schedule == "auto" else search
    numbers = _numbers(search.graph, search.state, stages) if microbatches == "auto" else [microbatches]
    found, reasons = [], {}
    for m in numbers:
        try:
            found.append(known.alike(stages, m, chunks))
        except StageError as error:
            raise StageError(f"{unpriced}{error}") from error
        except Infeasible as error:
            reasons[m] = error
    if not found:
        m = min(reasons, key=lambda m: reasons[m].needs or math.inf)
        enough = max(replace(known, memory=NO_LIMIT).alike(stages, m, chunks)[1].peaks)
        raise Infeasible(
            f"{reasons[m]} {stages} stages in {m} microbatches fit {enough:,} bytes per device.", reasons[m].needs
        ) from reasons[m]
    return min(found, key=lambda each: each[1].seconds)


def _numbers(graph: Graph, state: Mapping[int, int], stages: int) -> list[int]:
    """Numbers of microbatches worth trying."""
    examples = batch_of(graph, state) or 1
    found = [k * stages for k in PER_STAGE if examples % (k * stages) == 0]
    return found or [max(m for m in range(1, examples + 1) if examples % m == 0 and m <= 4 * stages)]


class PipelineProgram:
    """A pipeline for arguments of one kind.

    Args:
        pipeline: what is cut.
        plan: its plan.
        traced: the step as the public face traced it.
        devices: all of them, the first stage's first.
        channel: what brings arrays from stage to stage; see `channel_between`.
    """

    def __init__(
        self, pipeline: Pipeline, plan: PipelinePlan, traced: Any, devices: Sequence[Any], channel: str = "auto"
    ) -> None:
        self.pipeline, self.plan, self.traced, self.devices, self.channel = pipeline, plan, traced, devices, channel

    compiled = None

    @cached_property
    def runner(self) -> Runner:
        """What runs it.

        Raises:
            MeshMismatch: where there are not as many devices as the plan is for.
        """
        sizes = [each.topology.n_devices for each in self.plan.plans[: self.pipeline.schedule.n_stages]]
        stages = [self.devices[a : a + n] for a, n in zip(self.plan.firsts, sizes, strict=True)]
        if any(len(s) != n for s, n in zip(stages, sizes, strict=True)):
            raise MeshMismatch(
                f"The plan is for at least {max(map(sum, zip(self.plan.firsts, sizes, strict=True)))} devices, here "
                f"are {len(self.devices)}."
            )
        between = channel_between([d for stage in stages for d in stage], self.channel)
        return self.pipeline.runner(self.plan, stages, between)

    @cached_property
    def stacks(self) -> Mapping[int, Stack]:
        """Argument that is cut in slices -> how it lies."""
        places, arguments = self.pipeline.sliced.inputs, self.traced.graph.inputs
        return {
            i: Stack(
                jax.ShapeDtypeStruct(arguments[i].shape, arguments[i].aval.dtype),
                place.dim,
                [self._lying[k] for k in place.indices],
            )
            for i, place in enumerate(places)
            if place.count > 1
        }

    @cached_property
    def shardings(self) -> tuple[NamedSharding, ...]:
        """Of the arguments' arrays: on the stage that makes their new state, else on the first that reads them."""
        places = enumerate(self.pipeline.sliced.inputs[: self.traced.graph.n_arguments])
        return tuple(self.stacks[i].sharding if i in self.stacks else self._lying[p.first] for i, p in places)

    @cached_property
    def _lying(self) -> tuple[NamedSharding, ...]:
        """Likewise of the arguments of what was cut, slices among them."""
        found: dict[int, NamedSharding] = {}
        for programs in self.runner.pieces:
            piece = programs.parts.piece
            found.update((piece.inputs[i].of, programs.input_sharding(i)) for i in piece.state.values())
        for programs in self.runner.pieces:
            for i, port in enumerate(programs.parts.piece.inputs):
                if port.kind == "step":
                    found.setdefault(port.of, programs.input_sharding(i))
        first = self.runner.pieces[0].mesh
        nowhere = NamedSharding(first, jax.sharding.PartitionSpec())
        return tuple(found.get(i, nowhere) for i in range(self.pipeline.graph.n_arguments))

    def run(self, arrays: Sequence[Any]) -> list[Any]:
        """Run on the arrays of a call.

        Raises:
            TypeError: for arrays of other shapes than it was planned for.
        """
        graph, sliced = self.traced.graph, self.pipeline.sliced
        for x, v in zip(arrays, graph.inputs, strict=False):
            if isinstance(x, Tracer) or np.shape(x) != v.shape or jax.dtypes.result_type(x) != v.aval.dtype:
                raise TypeError("planned for other arguments")
        given = [part for i, x in enumerate(arrays) for part in (self.stacks[i].slices(x) if i in self.stacks else [x])]
        results = self.runner([*given, *sliced.graph.constants])
        return [self._result(o, [results[k] for k in place.indices]) for o, place in enumerate(sliced.outputs)]

    def _result(self, o: int, slices: Sequence[Any]) -> Any:
        return slices[0] if len(slices) == 1 else self.stacks[self.traced.state[o]].joined(slices)

    def lower(self) -> Any:
        """There is no one program.

        Raises:
            UnsupportedProgram: always.
        """
        raise UnsupportedProgram(
            f"The step {self.plan.name!r} runs as a pipeline of {self.pipeline.schedule.n_stages} stages, which is "
            "many programs: it cannot be lowered or compiled ahead as one. Call the step itself, or use stages=1."
        )

    compile = lower
