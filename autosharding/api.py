"""The public face: `parallelize` runs a step on the devices at hand, `plan` plans it for hardware that is not here.

A call goes through four stages, each kept for the next call of the same kind: taken apart into arrays and structure
(`leaves`), traced into a graph, planned, compiled. The fast path compares the structure with the last call's and hands
the arrays to the compiled program, which checks shapes and places itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MethodType
from typing import Any, Literal

import jax
from jax.core import Tracer
from jax.sharding import Mesh, PartitionSpec

from autosharding import placing
from autosharding.ahead import Compiled, Lowered
from autosharding.choose import Chosen, agreed, plan_for
from autosharding.errors import AutoshardingError, MicrobatchError, StageError
from autosharding.graph import Graph
from autosharding.leaves import Result, Structure, shape_of, take_apart, take_result, with_fixed
from autosharding.microbatch import Microbatches
from autosharding.options import Options, Report, by_either, parameter_names
from autosharding.pipeline import CHANNELS, PipelinePlan, PipelineProgram
from autosharding.plan import Plan
from autosharding.planner import METHODS
from autosharding.program import Program
from autosharding.traced import trace
from cost_model import Cluster


class Step:
    """A function that plans, places and compiles itself; made by `parallelize`."""

    def __init__(self, fn: Callable[..., Any], options: Options) -> None:
        functools.update_wrapper(self, fn, updated=())
        self.fn = fn
        self.name = getattr(fn, "__name__", type(fn).__name__)
        self.options = options
        self._programs: dict[Any, Program | PipelineProgram] = {}
        self._plans: dict[Any, Chosen] = {}
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
                self._plans[same] = agreed(traced, arrays, self.options)
            self._programs[key] = self._plans[same].program(traced, self.options)
        return self._programs[key]


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
    names = parameter_names(fn)
    positions, keywords = by_either(names, static_argnums, static_argnames)
    donated, donated_names = by_either(names, donate_argnums or () if donate_argnums != 0 else 0, donate_argnames or ())
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
    return plan_for(traced, arrays, step.options.cluster, step.options, None).plan
