"""Which plan a step gets: the one that was brought, the one that another process made, one mesh, or a pipeline."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jax.sharding import Mesh

from autosharding import errors, placing
from autosharding.errors import AutoshardingError, Infeasible, MeshMismatch, MicrobatchError, StageError
from autosharding.executor import check
from autosharding.graph import Graph
from autosharding.microbatch import microbatched, planned
from autosharding.options import Options
from autosharding.pipeline import (
    OnceForSame,
    PiecePlanner,
    Pipeline,
    PipelinePlan,
    PipelineProgram,
    StageSearch,
    pipelined,
    plan_from_json,
    plan_pipeline,
)
from autosharding.plan import Plan
from autosharding.planner import plan_graph
from autosharding.processes import leads, processes_of, share
from autosharding.program import Program
from autosharding.traced import Traced
from cost_model import Cluster
from stage_dp import NoStages

LARGE = 16000
"""Ops of a step that takes minutes to plan on one mesh ..."""

SURE = 0.9
"""... which is then done only where the prices of layers promise that it takes less than so many times what stages do.
They are for the stages' number of microbatches; one mesh may do with fewer, and be faster than promised."""


@dataclass(frozen=True)
class Chosen:
    """A plan, and what it is for: the graph that runs on one mesh, or a pipeline."""

    plan: Plan | PipelinePlan
    what: Graph | Pipeline

    def program(self, traced: Traced, options: Options) -> Program | PipelineProgram:
        """What runs it."""
        if isinstance(self.plan, Plan) and isinstance(self.what, Graph):
            return Program(replace(traced, graph=self.what), self.plan, options)
        assert isinstance(self.plan, PipelinePlan)
        assert isinstance(self.what, Pipeline)
        return PipelineProgram(self.what, self.plan, traced, options.all_devices, options.channel)


def agreed(traced: Traced, arrays: Sequence[Any], options: Options) -> Chosen:
    """The plan of the first of the processes that have the devices; all others are told it, or why there is none."""
    devices = options.all_devices
    if options.plan is not None or len(processes_of(devices)) == 1:
        return _planned(traced, arrays, options)
    if leads(devices):
        return _told(traced, arrays, options)
    said = json.loads(zlib.decompress(share(b"", devices)))
    if "plan" in said:
        return _planned(traced, arrays, replace(options, plan=plan_from_json(said["plan"])))
    raise getattr(errors, said["error"], AutoshardingError)(said["text"])


def _told(traced: Traced, arrays: Sequence[Any], options: Options) -> Chosen:
    """A plan, told to the other processes; they are told also where there is none, and raise the same."""
    said: dict[str, Any] = {}
    try:
        found = _planned(traced, arrays, options)
        said["plan"] = found.plan.to_json()
    except BaseException as error:
        said.update(error=type(error).__name__, text=str(error) or repr(error))
        raise
    else:
        return found
    finally:
        share(zlib.compress(json.dumps(said).encode()), options.all_devices)


def _planned(traced: Traced, arrays: Sequence[Any], options: Options) -> Chosen:
    """The plan the user brought, or a new one for the devices at hand."""
    devices = options.all_devices
    if isinstance(options.plan, PipelinePlan):
        told = options.plan
        pipeline = pipelined(
            traced.graph,
            traced.state,
            told.schedule,
            told.cuts,
            independent=told.independent,
            donated=traced.donated,
            slices=told.slices,
        )
        pipeline.check(options.plan)
        return Chosen(options.plan, pipeline)
    if options.plan is not None:
        given = options.mesh if isinstance(options.mesh, Mesh) else None
        own = options.plan.independent
        graph = microbatched(traced.graph, traced.state, options.plan.microbatches, independent=own)
        check(graph, options.plan, placing.mesh_over(options.plan.mesh, devices, given))
        return Chosen(options.plan, graph)
    cluster = options.cluster or placing.cluster_of(devices)
    if cluster.n_devices != len(devices):
        raise MeshMismatch(
            f"The cluster {cluster.name} has {cluster.n_devices} devices, here are {len(devices)}. Pass a cluster of "
            "as many devices, or plan for that cluster with asd.plan(step, *args, cluster=...), which needs no devices."
        )
    return plan_for(traced, arrays, cluster, options, devices)


def plan_for(
    traced: Traced, arrays: Sequence[Any], cluster: Cluster, options: Options, devices: Sequence[Any] | None
) -> Chosen:
    """A new plan: on one mesh, or of as many stages as were asked for, or the faster of the two.

    Args:
        traced: the step.
        arrays: its arguments, which may lie on a mesh already.
        cluster: the hardware.
        options: what was asked for.
        devices: those at hand; None where the hardware is not here.

    Raises:
        AutoshardingError: of the kind that `autosharding.errors` lists.
    """
    if options.stages == "auto":
        return _fastest(traced, arrays, cluster, options, devices)
    if options.stages != 1:
        return _pipeline_for(traced, cluster, options, options.stages)
    graph = traced.graph
    if options.mesh is not None:
        where = "the cluster " + cluster.name if devices is None else "this machine"
        axes: Mapping[str, int] | None = placing.axes_of(options.mesh, cluster.n_devices, where)
    else:
        axes = placing.mesh_in_use(arrays, graph, cluster.n_devices, devices)
    specs = placing.lying_specs(arrays, axes, devices) if devices is not None else {}
    specs |= placing.constraint_specs(options.constraints, graph, cluster, axes, options.parameters)
    pieces, plan = planned(
        graph,
        traced.state,
        options.microbatches,
        lambda pieces: plan_graph(
            pieces,
            cluster,
            mesh=axes,
            memory=options.memory,
            method=options.method,
            state=traced.state,
            donated=traced.donated,
            specs=specs,
            progress=options.progress,
        ),
        options.progress or (lambda _: None),
        independent=options.microbatch_semantics == "independent",
    )
    return Chosen(plan, pieces)


def _fastest(
    traced: Traced, arrays: Sequence[Any], cluster: Cluster, options: Options, devices: Sequence[Any] | None
) -> Chosen:
    """One mesh, or the stages that are predicted to be faster."""

    def one_mesh() -> Chosen:
        return plan_for(traced, arrays, cluster, replace(options, stages=1), devices)

    if options.mesh is not None or options.constraints:
        return one_mesh()
    try:
        search = _search(traced, cluster, options, None)
        found = search.found(options.microbatches)
        large = len(traced.graph.ops) > LARGE
        if len(found.stages.stages) == 1 or found.one_mesh <= found.seconds * (SURE if large else 1):
            return one_mesh()
        pipeline, plan = search.planned(found)
    except (NoStages, StageError, MicrobatchError, Infeasible):
        return one_mesh()
    several = Chosen(plan, pipeline)
    if large:
        return several
    try:
        return min(one_mesh(), several, key=lambda p: p.plan.seconds)
    except (MicrobatchError, Infeasible):
        return several


def _pipeline_for(traced: Traced, cluster: Cluster, options: Options, stages: int) -> Chosen:
    """A pipeline of so many stages."""
    if options.mesh is not None or options.constraints:
        raise StageError(
            f"The step {traced.graph.name!r} was to run in {stages} stages, each on a mesh of its own that is "
            "chosen with its plan; a mesh or constraints can be given for one stage only."
        )
    search = _search(traced, cluster, options, stages)
    pipeline, plan = plan_pipeline(search, stages, options.microbatches)
    return Chosen(plan, pipeline)


def _search(traced: Traced, cluster: Cluster, options: Options, stages: int | None) -> StageSearch:
    return StageSearch(
        traced.graph,
        traced.state,
        cluster,
        OnceForSame(PiecePlanner(options.method)),
        stages,
        options.schedule,
        options.memory,
        options.microbatch_semantics == "independent",
        traced.donated,
        options.progress or (lambda _: None),
        chunks=options.chunks,
    )
