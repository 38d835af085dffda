"""One harness: `jax.jit` on one device, then the plan of the 0-1 program, then every strategy of every op forced."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from autosharding.capture import capture
from autosharding.executor import executable
from autosharding.graph import Graph, Op
from autosharding.partition import partition_spec
from autosharding.plan import Plan
from autosharding.planner import plan_graph
from cost_model import Axis, Device, Topology
from tests.conformance.catalog import arguments, unsupported
from tests.rules.forced import QUICK, Trial, check_all
from tests.rules.harness import intermediates, trials_of
from tests.rules.shards import compare, wire

MESHES: tuple[Mapping[str, int], ...] = ({"x": 2, "y": 2}, {"x": 4, "y": 2})

Outputs = list[Any]


@dataclass(frozen=True)
class Outcome:
    """What became of a harness.

    Attributes:
        name: of the harness. group: of the harness.
        status: "passed", "failed" or "skipped".
        reason: why it failed, why JAX itself does not run it, or which other harness is the same program on the same
            arguments (many differ only in flags of other compilers) and was run in its place.
        strategies: distinct strategies tried, over all ops and meshes.
        sharded: of these, how many split a factor of an op of the group's own kind.
        divisible: whether some dim of an operand or result of such an op can be divided by some axis.
        planned: whether the 0-1 program's plan splits any factor.
        seconds: of processor time.
    """

    name: str
    group: str
    status: str
    reason: str = ""
    strategies: int = 0
    sharded: int = 0
    divisible: bool = False
    planned: bool = False
    seconds: float = 0.0


Seen = dict[Any, Outcome]
"""Outcomes by program and arguments."""


def run(harness: Any, meshes: Sequence[Mapping[str, int]] = MESHES, seed: int = 0, seen: Seen | None = None) -> Outcome:
    """Run one harness, unless `seen` holds the very same; never raises for what the harness does."""
    began = time.process_time()
    key = None if seen is None else _identity(harness, seed)
    if seen is not None and key in seen and seen[key].status == "passed":
        told = asdict(seen[key]) | {"reason": f"the same as {seen[key].name}"}
    else:
        told = _run(harness, meshes, seed)
    told |= {"name": harness.fullname, "group": harness.group_name}
    outcome = Outcome(**told | {"seconds": round(time.process_time() - began, 3)})
    if seen is not None and key is not None:
        seen.setdefault(key, outcome)
    return outcome


def _identity(harness: Any, seed: int) -> Any:
    """What the harness computes, and of what; None where it cannot be traced."""
    if unsupported(harness) is not None:
        return None
    args = arguments(harness, seed)
    leaves, tree = jax.tree.flatten(args)
    try:
        graph = capture(lambda *a: jax.tree.leaves(harness.dyn_fun(*jax.tree.unflatten(tree, a))), leaves)
    except Exception:  # whatever JAX refuses
        return None
    inputs = tuple(np.asarray(wire(jnp.asarray(x))).tobytes() for x in (*leaves, *graph.constants))
    return harness.group_name, graph.fingerprint, inputs


def _run(harness: Any, meshes: Sequence[Mapping[str, int]], seed: int) -> dict[str, Any]:
    if (why := unsupported(harness)) is not None:
        return {"status": "skipped", "reason": why}
    args = arguments(harness, seed)
    try:
        want = jax.tree.leaves(jax.jit(harness.dyn_fun)(*args))
    except Exception as error:  # whatever JAX refuses
        return {"status": "skipped", "reason": f"jax.jit: {_first_line(error)}"}
    try:
        return {"status": "passed", **_check(harness, args, want, meshes)}
    except Exception as error:  # a failure is a line of the report, the next harness runs
        return {"status": "failed", "reason": f"{type(error).__name__}: {error}"}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _check(harness: Any, args: list[Any], want: Outputs, meshes: Sequence[Mapping[str, int]]) -> dict[str, Any]:
    leaves, tree = jax.tree.flatten(args)
    graph = capture(lambda *a: jax.tree.leaves(harness.dyn_fun(*jax.tree.unflatten(tree, a))), leaves)
    inputs = [jnp.asarray(x, v.aval.dtype) for x, v in zip([*leaves, *graph.constants], graph.inputs, strict=True)]
    planned = [_planned(graph, inputs, want, mesh) for mesh in meshes]
    values = _values(graph, inputs, want)
    trials = [t for mesh in meshes for t in trials_of(graph, values, mesh, tolerance)]
    check_all(trials)
    own = [t for t in trials if _of_group(t.op, harness.group_name)] or trials
    return {
        "strategies": len(trials),
        "sharded": sum(bool(t.strategy.factors) for t in own),
        "divisible": any(map(_divisible, own)),
        "planned": any(planned),
    }


def _of_group(op: Op, group: str) -> bool:
    return op.name.replace("-", "_") == group


def _divisible(trial: Trial) -> bool:
    sizes = {n for x in (*trial.operands, *trial.results) for n in x.shape if n}
    return any(n % parts == 0 for n in sizes for parts in trial.mesh.values())


def _values(graph: Graph, inputs: Outputs, want: Outputs) -> dict[int, Any]:
    """Every value of the graph; where one op is all there is, its results are the harness's."""
    if len(graph.ops) == 1 and graph.outputs == graph.ops[0].outputs:
        return {v.id: x for v, x in zip((*graph.inputs, *graph.outputs), (*inputs, *want), strict=True)}
    return intermediates(graph, inputs)


def _planned(graph: Graph, inputs: Outputs, want: Outputs, mesh: Mapping[str, int]) -> bool:
    """Run the plan of the 0-1 program on virtual devices and compare; returns whether it splits anything."""
    plan = plan_graph(graph, topology=topology(mesh))
    for got, whole in zip(execute(graph, plan, inputs), want, strict=True):
        compare(np.asarray(wire(got)), np.asarray(wire(whole)), tolerance([got]), f"the plan on {dict(mesh)}\n{graph}")
    return any(s.factors for s in plan.steps)


def execute(graph: Graph, plan: Plan, inputs: Outputs) -> Outputs:
    """The plan's program on as many virtual devices as it wants."""
    run, laid = placed(graph, plan, inputs)
    return list(run(*laid))


def placed(graph: Graph, plan: Plan, inputs: Outputs) -> tuple[Any, Outputs]:
    """(the jitted program of a plan, the inputs as it wants them) on virtual devices."""
    devices = np.array(jax.devices()[: prod(plan.mesh.values())]).reshape(tuple(plan.mesh.values()))
    mesh = Mesh(devices, tuple(plan.mesh))
    laid = [
        jax.device_put(x, NamedSharding(mesh, partition_spec(i.spec))) for x, i in zip(inputs, plan.inputs, strict=True)
    ]
    return jax.jit(executable(graph, plan, mesh), compiler_options=QUICK), laid


def topology(mesh: Mapping[str, int]) -> Topology:
    """Slow devices on quick links: on such hardware the cheapest plan of even a tiny program is a sharded one."""
    device = Device("slow", {"float32": 1e3}, 1e3, 1 << 60)
    return Topology(device, tuple(Axis(a, n, 1e-9, 1e9) for a, n in mesh.items()))


def tolerance(arrays: Sequence[Any]) -> float:
    """JAX's own test tolerance: the loosest of these arrays' dtypes."""
    from jax._src.public_test_util import default_tolerance  # noqa: PLC0415

    known = default_tolerance()
    return max((known.get(np.dtype(x.dtype), 0.0) for x in arrays if jnp.issubdtype(x.dtype, jnp.inexact)), default=0)
