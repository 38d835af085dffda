"""The public face: `parallelize` runs a step on the devices at hand, `plan` plans it for hardware that is not here.

A call goes through four stages, each kept for the next call of the same kind: taken apart into arrays and structure
(`leaves`), traced into a graph, planned, compiled. The fast path compares the structure with the last call's and hands
the arrays to the compiled program, which checks shapes and places itself.
"""

from __future__ import annotations

import functools
import inspect
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any, Literal

import jax
from jax.core import Tracer
from jax.sharding import Mesh, PartitionSpec

from autosharding import errors, placing
from autosharding.capture import capture
from autosharding.errors import AutoshardingError, Infeasible, MeshMismatch, MicrobatchError, PlanMismatch, StageError
from autosharding.executor import check, executable
from autosharding.graph import Graph
from autosharding.leaves import Result, Structure, new_states, shape_of, take_apart, take_result, with_fixed
from autosharding.microbatch import Microbatches, microbatched, planned
from autosharding.pipeline import (
    CHANNELS,
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
from autosharding.planner import METHODS, plan_graph
from autosharding.processes import in_turn, leads, processes_of, share
from cost_model import Cluster
from stage_dp import NoStages

Report = Callable[[str], None]

DOUBT = 1.25
"""Where one stage is promised to take less than so many times what the pipeline takes, one mesh is planned as well."""

LARGE = 8000
"""Ops of a step that takes minutes to plan on one mesh ..."""

SURE = 0.9
"""... which is then done only where that is promised to take less than so many times what the pipeline takes."""


@dataclass(frozen=True)
class Options:
    """What was asked of `parallelize`; see there."""

    devices: tuple[Any, ...] | None = None
    mesh: Mesh | Mapping[str, int] | None = None
    memory: int | None = None
    method: str = "auto"
    microbatches: Microbatches = "auto"
    microbatch_semantics: str = "whole"
    stages: int | Literal["auto"] = 1
    schedule: str = "1f1b"
    chunks: int | None = None
    channel: str = "auto"
    constraints: Mapping[str, PartitionSpec] | None = None
    plan: Plan | PipelinePlan | None = None
    donate: tuple[int | str, ...] = ()
    static_positions: tuple[int, ...] = ()
    static_names: tuple[str, ...] = ()
    cluster: Cluster | None = None
    progress: Report | None = None
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Traced:
    """A step on arguments of one kind: its graph, and how results are put together."""

    graph: Graph
    structure: Structure
    result: Result
    state: Mapping[int, int]
    donated: frozenset[int]


class Program:
    """A step planned for arguments of one kind, and compiled when first run."""

    def __init__(self, traced: Traced, plan: Plan, options: Options) -> None:
        self.traced = traced
        self.plan = plan
        self.options = options
        self.compiled: Any = None
        self.quick: Any = None
        self.places = False

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The devices it runs on."""
        given = self.options.mesh if isinstance(self.options.mesh, Mesh) else None
        return placing.mesh_over(self.plan.mesh, _devices(self.options), given)

    @functools.cached_property
    def shardings(self) -> tuple[Any, ...]:
        """Of the arguments' arrays, in the order of `traced.structure`."""
        return placing.shardings_of(self.plan, self.mesh)[0][: self.traced.graph.n_arguments]

    @functools.cached_property
    def constants(self) -> tuple[Any, ...]:
        """What the step closed over, placed once."""
        shardings = placing.shardings_of(self.plan, self.mesh)[0][self.traced.graph.n_arguments :]
        return tuple(placing.placed(c, s) for c, s in zip(self.traced.graph.constants, shardings, strict=True))

    @functools.cached_property
    def jitted(self) -> Any:
        """The step of arrays and constants under `jax.jit`; traced once, it raises TypeError for other arguments."""
        ins, outs = placing.shardings_of(self.plan, self.mesh)
        run = executable(self.traced.graph, self.plan, self.mesh)
        seen: list[bool] = []

        def step(*arrays: Any) -> tuple[Any, ...]:
            if seen:
                raise TypeError("compiled for other arguments")
            seen.append(True)
            return run(*arrays)

        step.__name__ = step.__qualname__ = self.traced.graph.name
        return jax.jit(step, in_shardings=ins, out_shardings=outs, donate_argnums=tuple(self.traced.donated))

    def lower(self) -> Any:
        """The step as `jax.stages.Lowered`, of arrays and constants."""
        ins = placing.shardings_of(self.plan, self.mesh)[0]
        with _no_mesh():
            return self.jitted.lower(
                *(
                    jax.ShapeDtypeStruct(v.shape, v.aval.dtype, weak_type=v.aval.weak_type, sharding=s)
                    for v, s in zip(self.traced.graph.inputs, ins, strict=True)
                )
            )

    def compile(self) -> Any:
        """The step as `jax.stages.Compiled`, kept."""
        if self.compiled is None:
            self.compiled = self.lower().compile()
            self.quick = in_turn(self.jitted, self.mesh.devices.flat)
        return self.compiled

    def run(self, arrays: Sequence[Any]) -> Sequence[Any]:
        """Run on the arrays of a call; those that lie elsewhere are placed first."""
        if self.compiled is None:
            self.compile()
        if not self.places:
            try:
                return self._call(arrays)
            except ValueError:
                self.places = True
        return self._call([placing.placed(x, s) for x, s in zip(arrays, self.shardings, strict=True)])

    def _call(self, arrays: Sequence[Any]) -> Sequence[Any]:
        """By the jitted function, which dispatches faster, as long as it takes these arguments for those it knows."""
        try:
            return self.quick(*arrays, *self.constants)
        except TypeError:
            quick = in_turn(self.compiled, self.mesh.devices.flat)
            results = quick(*arrays, *self.constants)
        self.quick = quick
        return results


class Lowered:
    """A step planned and lowered, not compiled: the first of the ahead-of-time stages, as `jax.stages.Lowered`."""

    def __init__(self, step: Step, program: Program | PipelineProgram) -> None:
        self._step = step
        self._program = program
        self.plan = program.plan
        self._lowered = program.lower() if program.compiled is None else None

    def as_text(self) -> str:
        """The program in StableHLO."""
        return (self._lowered or self._program.lower()).as_text()

    def compile(self) -> Compiled:
        """Compile; calls of the step itself use the same program from then on."""
        if self._program.compiled is None and self._lowered is not None:
            self._program.compiled = self._lowered.compile()
        return Compiled(self._step, self._program)


class Compiled:
    """A step compiled for arguments of one kind; called as the step is.

    Attributes:
        plan: what it runs.
        jax: the `jax.stages.Compiled` over the arrays alone (constants last).
    """

    def __init__(self, step: Step, program: Program | PipelineProgram) -> None:
        self._step = step
        self._program = program
        self.plan = program.plan
        self.jax = program.compile()

    def as_text(self) -> str:
        """The compiled program, in HLO."""
        return self.jax.as_text()

    def memory_analysis(self) -> Any:
        """XLA's own account of bytes per device."""
        return self.jax.memory_analysis()

    def cost_analysis(self) -> Any:
        """XLA's own account of floating-point operations and bytes."""
        return self.jax.cost_analysis()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run on arguments of the structure it was compiled for."""
        arrays, structure, objects = self._step.take(args, kwargs)
        if structure != self._program.traced.structure:
            raise PlanMismatch(
                f"{self._step.name!r} was compiled for arguments of another structure. Call the step itself, which "
                "plans and compiles for each kind of arguments, or compile it for these."
            )
        return self._program.traced.result.build(self._program.run(arrays), objects)


class Step:
    """A function that plans, places and compiles itself; made by `parallelize`."""

    def __init__(self, fn: Callable[..., Any], options: Options) -> None:
        functools.update_wrapper(self, fn, updated=())
        self.fn = fn
        self.name = getattr(fn, "__name__", type(fn).__name__)
        self.options = options
        self._programs: dict[Any, Program | PipelineProgram] = {}
        self._plans: dict[Any, _Planned] = {}
        self._last: Program | PipelineProgram | None = None
        self._scalars_fixed = False

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else MethodType(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run; plan and compile first where arguments of this kind are new."""
        last = self._last
        if last is not None:
            statics = self.options.static_positions or self.options.static_names
            arrays = last.traced.structure.arrays_of(*(self._fixed(args, kwargs) if statics else (args, kwargs)))
            if arrays is not None:
                try:
                    results = last.run(arrays)
                except TypeError:  # other shapes, a tracer; an error of the step itself is met again below
                    pass
                else:
                    return last.traced.result.build(results, ())
        if any(isinstance(x, Tracer) for x in jax.tree.leaves((args, kwargs))):
            return self.fn(*args, **kwargs)  # inside another transformation the step is what it was
        program, arrays, objects = self._prepared(args, kwargs)
        results = program.run(arrays)
        self._last = program if program.traced.structure.definition is None else None
        return program.traced.result.build(results, objects)

    def plan(self, *args: Any, **kwargs: Any) -> Plan | PipelinePlan:
        """The plan for these arguments, arrays or `jax.ShapeDtypeStruct`s; touches no device."""
        return self.program(*args, **kwargs).plan

    def graph(self, *args: Any, **kwargs: Any) -> Graph:
        """The graph that is planned."""
        return self.program(*args, **kwargs).traced.graph

    def lower(self, *args: Any, **kwargs: Any) -> Lowered:
        """Plan and lower, as `jax.jit(step).lower`."""
        return Lowered(self, self.program(*args, **kwargs))

    def compile(self, *args: Any, **kwargs: Any) -> Compiled:
        """Plan and compile; what calls will run."""
        return Compiled(self, self.program(*args, **kwargs))

    def shardings(self, *args: Any, **kwargs: Any) -> Any:
        """A `NamedSharding` for each array of the arguments, in their trees: `state, batch = step.shardings(...)`.

        Leaves that are no arrays give None, an nnx object its `nnx.State`; keyword arguments come last, as one dict.
        """
        program = self.program(*args, **kwargs)
        return program.traced.structure.with_leaves(program.shardings)

    def init(
        self,
        fn: Callable[..., Any],
        *args: Any,
        rest: Sequence[Any] | Mapping[str, Any] = (),
        argnums: int | Sequence[int] = 0,
    ) -> Any:
        """`fn(*args)`, with each array of its result made where the plan wants it: a large state is born sharded.

        As in `state = step.init(make_state, key, rest=(batch,))` for `step(state, batch)`.

        Args:
            fn: makes the state, or a tuple of arguments of the step.
            args: of `fn`.
            rest: the step's other arguments in order, or a dict by keyword: arrays or `jax.ShapeDtypeStruct`s.
            argnums: the position that the result of `fn` takes in the call of the step; several for a tuple.
        """
        arrays, structure, _ = take_apart(args, {})
        box: list[Result] = []

        def flat(*arrays: Any) -> list[Any]:
            given, _, _ = structure.call(arrays)
            out, result = take_result(fn(*given), None)
            box.append(result)
            return out

        shapes = jax.eval_shape(flat, *arrays)
        state = box[-1].build(shapes, ())
        positional, keyword = ((), rest) if isinstance(rest, Mapping) else (tuple(rest), {})
        call = list(positional)
        made = {argnums: state} if isinstance(argnums, int) else dict(zip(argnums, state, strict=True))
        for i in sorted(made):
            call.insert(i, made[i])
        program, leaves, _ = self._prepared(tuple(call), dict(keyword))
        where = {id(x): s for x, s in zip(leaves, program.shardings, strict=True)}
        wanted = [where[id(s)] for s in shapes]
        if isinstance(program, PipelineProgram):  # on several stages: no one program makes it all
            out = [placing.brought(x, s) for x, s in zip(jax.jit(flat)(*arrays), wanted, strict=True)]
        else:
            out = jax.jit(flat, out_shardings=wanted)(*arrays)
        return box[-1].build(out, ())

    def program(self, *args: Any, **kwargs: Any) -> Program | PipelineProgram:
        """The program for these arguments, planned but perhaps not compiled."""
        return self._prepared(args, kwargs)[0]

    def take(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], Structure, tuple[Any, ...]]:
        """(arrays, structure, nnx objects) of a call."""
        args, kwargs = self._fixed(args, kwargs)
        return take_apart(args, kwargs, scalars_fixed=self._scalars_fixed)

    def _fixed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return with_fixed(args, kwargs, self.options.static_positions, self.options.static_names)

    def _prepared(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Program | PipelineProgram, list[Any], tuple[Any, ...]]:
        """(program, arrays, nnx objects) of a call.

        A step that branches on a scalar of Python (the rate of an equinox dropout) is planned for its value.
        """
        arrays, structure, objects = self.take(args, kwargs)
        try:
            return self._program(arrays, structure), arrays, objects
        except (jax.errors.ConcretizationTypeError, jax.errors.TracerIntegerConversionError):
            if self._scalars_fixed or not any(type(x) in (bool, int, float, complex) for x in arrays):
                raise
        self._scalars_fixed = True
        arrays, structure, objects = self.take(args, kwargs)
        return self._program(arrays, structure), arrays, objects

    def _program(self, arrays: Sequence[Any], structure: Structure) -> Program | PipelineProgram:
        shapes = [shape_of(x) for x in arrays]
        key = structure, tuple((s.shape, s.dtype) for s in shapes)
        if key not in self._programs:
            traced = trace(self.fn, structure, shapes, self.name, self.options.donate)
            same = traced.graph.fingerprint, tuple(traced.state.items()), traced.donated
            if same not in self._plans:
                self._plans[same] = _agreed(traced, arrays, self.options)
            self._programs[key] = self._plans[same].program(traced, self.options)
        return self._programs[key]


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


def _devices(options: Options) -> tuple[Any, ...]:
    if options.devices is not None:
        return options.devices
    if isinstance(options.mesh, Mesh):
        return tuple(options.mesh.devices.flat)
    return tuple(jax.devices())


@dataclass(frozen=True)
class _Planned:
    """A plan, and what it is for: the graph that runs on one mesh, or a pipeline."""

    plan: Plan | PipelinePlan
    what: Graph | Pipeline

    def program(self, traced: Traced, options: Options) -> Program | PipelineProgram:
        """What runs it."""
        if isinstance(self.plan, Plan) and isinstance(self.what, Graph):
            return Program(replace(traced, graph=self.what), self.plan, options)
        assert isinstance(self.plan, PipelinePlan)
        assert isinstance(self.what, Pipeline)
        return PipelineProgram(self.what, self.plan, traced, _devices(options), options.channel)


def _agreed(traced: Traced, arrays: Sequence[Any], options: Options) -> _Planned:
    """The plan of the first of the processes that have the devices; all others are told it, or why there is none."""
    devices = _devices(options)
    if options.plan is not None or len(processes_of(devices)) == 1:
        return _planned(traced, arrays, options)
    if leads(devices):
        return _told(traced, arrays, options)
    said = json.loads(zlib.decompress(share(b"", devices)))
    if "plan" in said:
        return _planned(traced, arrays, replace(options, plan=plan_from_json(said["plan"])))
    raise getattr(errors, said["error"], AutoshardingError)(said["text"])


def _told(traced: Traced, arrays: Sequence[Any], options: Options) -> _Planned:
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
        share(zlib.compress(json.dumps(said).encode()), _devices(options))


def _planned(traced: Traced, arrays: Sequence[Any], options: Options) -> _Planned:
    """The plan the user brought, or a new one for the devices at hand."""
    devices = _devices(options)
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
        return _Planned(options.plan, pipeline)
    if options.plan is not None:
        given = options.mesh if isinstance(options.mesh, Mesh) else None
        own = options.plan.independent
        graph = microbatched(traced.graph, traced.state, options.plan.microbatches, independent=own)
        check(graph, options.plan, placing.mesh_over(options.plan.mesh, devices, given))
        return _Planned(options.plan, graph)
    cluster = options.cluster or placing.cluster_of(devices)
    if cluster.n_devices != len(devices):
        raise MeshMismatch(
            f"The cluster {cluster.name} has {cluster.n_devices} devices, here are {len(devices)}. Pass a cluster of "
            "as many devices, or plan for that cluster with asd.plan(step, *args, cluster=...), which needs no devices."
        )
    return _plan_for(traced, arrays, cluster, options, devices)


def _plan_for(
    traced: Traced, arrays: Sequence[Any], cluster: Cluster, options: Options, devices: Sequence[Any] | None
) -> _Planned:
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
    return _Planned(plan, pieces)


def _fastest(
    traced: Traced, arrays: Sequence[Any], cluster: Cluster, options: Options, devices: Sequence[Any] | None
) -> _Planned:
    """One mesh, or the stages that are predicted to be faster."""

    def one_mesh() -> _Planned:
        return _plan_for(traced, arrays, cluster, replace(options, stages=1), devices)

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
    several = _Planned(plan, pipeline)
    if large or found.one_mesh > DOUBT * plan.seconds:
        return several
    try:
        return min(one_mesh(), several, key=lambda p: p.plan.seconds)
    except (MicrobatchError, Infeasible):
        return several


def _pipeline_for(traced: Traced, cluster: Cluster, options: Options, stages: int) -> _Planned:
    """A pipeline of so many stages."""
    if options.mesh is not None or options.constraints:
        raise StageError(
            f"The step {traced.graph.name!r} was to run in {stages} stages, each on a mesh of its own that is "
            "chosen with its plan; a mesh or constraints can be given for one stage only."
        )
    search = _search(traced, cluster, options, stages)
    pipeline, plan = plan_pipeline(search, stages, options.microbatches)
    return _Planned(plan, pipeline)


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


def _no_mesh() -> AbstractContextManager[Any]:
    """Leaves the user's mesh, if he is in one."""
    if jax.sharding.get_abstract_mesh().empty:
        return nullcontext()
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))


def parallelize(
    fn: Callable[..., Any] | None = None,
    *,
    devices: Sequence[Any] | None = None,
    mesh: Mesh | Mapping[str, int] | None = None,
    memory: int | str | None = None,
    method: str = "auto",
    microbatches: Microbatches = "auto",
    microbatch_semantics: str = "whole",
    stages: int | Literal["auto"] = 1,
    schedule: str = "1f1b",
    chunks: int | None = None,
    channel: str = "auto",
    constraints: Mapping[str, PartitionSpec] | None = None,
    plan: Plan | PipelinePlan | None = None,
    donate_argnums: int | Sequence[int] | None = None,
    donate_argnames: str | Sequence[str] | None = None,
    static_argnums: int | Sequence[int] = (),
    static_argnames: str | Sequence[str] = (),
    cluster: Cluster | str | None = None,
    progress: Report | None = None,
) -> Any:
    """Run a step on many devices; everything is chosen unless said here.

    `@parallelize` alone, or `parallelize(step, method="fsdp")`. The result is called as `step` is and returns what
    `jax.jit(step)` would. It plans and compiles at the first call for each structure, shapes and dtypes of arguments.
    New state leaves as the old state came in. Arguments that already lie on a mesh of all the devices stay as they
    lie, all others are placed. Objects of flax nnx are changed in place, as by `nnx.jit`.

    Under `jax.distributed` every process calls the step alike; the first of them plans. Arguments are arrays of JAX
    that lie over the devices of several processes, or numpy arrays and local arrays that are equal on all of them.
    Of a pipeline each process runs the stages of which it has devices: a state comes back on the devices of its stage,
    without data where these are another process's, and scalars that are no state come back on all devices.

    Args:
        fn: any step that `jax.jit` takes; leaves of its arguments may also be no arrays.
        devices: to run on; all there are by default.
        mesh: axis -> size, or a mesh of JAX; else the mesh the arguments lie on, or the step's own
            `with_sharding_constraint`s are written for, or the best of those that fit the devices.
        memory: bytes a device may hold, "70GiB"; the device's own less a reserve by default.
        method: "auto", or a plan people write by hand: "data", "fsdp", "zero1", "zero2", "megatron".
        microbatches: into how many pieces the batch is cut, worked through one after another to save memory; the
            optimizer runs once, on the sums. "auto" takes as few as the memory allows, as long as more do not pay.
        microbatch_semantics: "whole": the numbers are those of the whole batch, and what couples its examples is
            refused. "independent": each microbatch takes the statistics of its own examples, as a batch norm on one
            device would.
        stages: into how many stages of a pipeline the step is cut. Its layers are found and priced, nothing is marked;
            stages are of the layers, and on the groups of devices, that are best by these prices. Where there are fewer
            layers than stages they are as alike as the program allows, on equal groups. "auto" takes any number of
            stages that is predicted to be faster than one mesh; devices may then be left out.
        schedule: of the stages: "gpipe", "1f1b", "1f1b-eager", "interleaved", "zero-bubble", or "auto", the one that
            the prices promise most of. A step without a backward pass takes its microbatches through one after
            another; its stages are those with the highest throughput or, with "latency", those that a microbatch
            passes soonest.
        chunks: pieces for each stage, with "interleaved"; by default as many as are best by the prices.
        channel: what brings arrays from stage to stage: "device_put", "permute" (a collective over the devices of both
            ends, as all others a part of `jax.distributed`) or "transfer" (JAX's transfer server, which opens a port of
            its own). "auto" takes device_put, between CPUs of several processes the transfer server.
        constraints: path of an argument -> `PartitionSpec`. Paths are written as in `plan.inputs`:
            "[0].params['w']", or with the argument's name, "state.params['w']"; also the start of paths, or a pattern
            with `*`.
        plan: run this plan; nothing is solved.
        donate_argnums: arguments whose buffers the new state may take, as in `jax.jit`; those of their arrays that do
            not become state are kept.
        donate_argnames: the same by name.
        static_argnums: arguments that are values of the program, as in `jax.jit`.
        static_argnames: the same by name.
        cluster: prices, "h100:1x8" or a `cost_model.Cluster`; found from the devices by default.
        progress: called with a line of text at each stage of planning.

    Raises:
        AutoshardingError: of the kind that `autosharding.errors` lists, at the call that meets it.
    """
    if fn is None:
        return functools.partial(
            parallelize,
            devices=devices,
            mesh=mesh,
            memory=memory,
            method=method,
            microbatches=microbatches,
            microbatch_semantics=microbatch_semantics,
            stages=stages,
            schedule=schedule,
            chunks=chunks,
            channel=channel,
            constraints=constraints,
            plan=plan,
            donate_argnums=donate_argnums,
            donate_argnames=donate_argnames,
            static_argnums=static_argnums,
            static_argnames=static_argnames,
            cluster=cluster,
            progress=progress,
        )
    if method not in METHODS:
        raise AutoshardingError(f"There is no method {method!r}. The methods are {', '.join(METHODS)}.")
    if channel not in CHANNELS:
        raise AutoshardingError(f"There is no channel {channel!r}. The channels are {', '.join(CHANNELS)}.")
    if not (microbatches == "auto" or (isinstance(microbatches, int) and microbatches >= 1)):
        raise MicrobatchError(f"microbatches={microbatches!r} is no number of microbatches: 1, 2, ... or 'auto'.")
    if not (stages == "auto" or isinstance(stages, int)):
        raise StageError(f"stages={stages!r} is no number of stages: 1, 2, ... or 'auto'.")
    if microbatch_semantics not in ("whole", "independent"):
        raise MicrobatchError(f"microbatch_semantics={microbatch_semantics!r} is neither 'whole' nor 'independent'.")
    names = _parameters(fn)
    positions, keywords = _both(names, static_argnums, static_argnames)
    donated, donated_names = _both(names, donate_argnums or () if donate_argnums != 0 else 0, donate_argnames or ())
    return Step(
        fn,
        Options(
            devices=tuple(devices) if devices is not None else None,
            mesh=mesh,
            memory=placing.bytes_of(memory),
            method=method,
            microbatches=microbatches,
            microbatch_semantics=microbatch_semantics,
            stages=stages,
            schedule=schedule,
            chunks=chunks,
            channel=channel,
            constraints=constraints,
            parameters=names,
            plan=plan,
            donate=(*donated, *donated_names),
            static_positions=positions,
            static_names=keywords,
            cluster=Cluster.parse(cluster) if isinstance(cluster, str) else cluster,
            progress=progress,
        ),
    )


def plan(
    fn: Callable[..., Any],
    *args: Any,
    cluster: Cluster | str,
    mesh: Mapping[str, int] | None = None,
    memory: int | str | None = None,
    method: str = "auto",
    microbatches: Microbatches = "auto",
    microbatch_semantics: str = "whole",
    stages: int | Literal["auto"] = 1,
    schedule: str = "1f1b",
    chunks: int | None = None,
    constraints: Mapping[str, PartitionSpec] | None = None,
    donate_argnums: int | Sequence[int] | None = None,
    static_argnums: int | Sequence[int] = (),
    progress: Report | None = None,
    **kwargs: Any,
) -> Plan | PipelinePlan:
    """Plan a step for hardware that is not here; touches no device.

    Args:
        fn: the step, or what `parallelize` made of it.
        args: its arguments, arrays or `jax.ShapeDtypeStruct`s.
        cluster: "h100:8x8", see `cost_model.Cluster.parse`.
        mesh: axis -> size; else the best of the cluster's logical meshes.
        memory: bytes a device may hold, "70GiB"; the device's own less a reserve by default.
        method: as for `parallelize`.
        microbatches: as for `parallelize`.
        microbatch_semantics: as for `parallelize`.
        stages: as for `parallelize`.
        schedule: as for `parallelize`.
        chunks: as for `parallelize`.
        constraints: as for `parallelize`.
        donate_argnums: as for `parallelize`.
        static_argnums: as for `parallelize`.
        progress: called with a line of text at each stage.
        kwargs: the step's keyword arguments.
    """
    step = parallelize(
        fn.fn if isinstance(fn, Step) else fn,
        mesh=mesh,
        memory=memory,
        method=method,
        microbatches=microbatches,
        microbatch_semantics=microbatch_semantics,
        stages=stages,
        schedule=schedule,
        chunks=chunks,
        constraints=constraints,
        donate_argnums=donate_argnums,
        static_argnums=static_argnums,
        cluster=cluster,
        progress=progress,
    )
    arrays, structure, _ = step.take(args, kwargs)
    traced = trace(step.fn, structure, [shape_of(x) for x in arrays], step.name, step.options.donate)
    assert step.options.cluster is not None
    return _plan_for(traced, arrays, step.options.cluster, step.options, None).plan


# ---- names and positions ---------------------------------------------------------------------------------------


def _parameters(fn: Callable[..., Any]) -> tuple[str, ...]:
    """The names of the positional parameters of a function, where it tells them."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return ()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(p.name for p in parameters if p.kind in positional)


def _both(
    names: tuple[str, ...], argnums: int | Sequence[int], argnames: str | Sequence[str]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Positions and names of the arguments that are given by either."""
    nums = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    nums = tuple(n + len(names) if n < 0 else n for n in nums)
    said = (argnames,) if isinstance(argnames, str) else tuple(argnames)
    positions = dict.fromkeys((*nums, *(names.index(n) for n in said if n in names)))
    keywords = dict.fromkeys((*said, *(names[n] for n in nums if n < len(names))))
    return tuple(positions), tuple(keywords)
