"""Every strategy of an op forced in turn: the op on numpy's pieces, joined by numpy, equals the op run whole.

A device's computation without collectives is a program of its own, so equal programs (of several strategies, several
meshes) are compiled once and run on the pieces of every device; with collectives, the strategies of a mesh run in one
`shard_map` over virtual devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from autosharding.capture import from_jaxpr
from autosharding.graph import Op
from autosharding.rules import Rule, Shard
from autosharding.strategies import Strategy
from tests.rules.shards import AMPLIFIED, compare, cut, join, places, unwire, wire

QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_parallel_codegen_split_count": 1,
    "xla_cpu_use_fusion_emitters": False,
    "xla_llvm_disable_expensive_passes": True,
}
"""Compiling is what takes the time here: a third of it with these, measured on scatters."""


@dataclass(frozen=True)
class Trial:
    """One op under one strategy on one mesh, with numpy's pieces of its operands and what it should give.

    Attributes:
        op, rule, mesh, strategy: what is tried.
        operands: the whole operands.
        results: the whole results, as the op gives them on one device.
        tolerance: relative, for numbers that are not integers.
    """

    op: Op
    rule: Rule
    mesh: Mapping[str, int]
    strategy: Strategy
    operands: Sequence[Any]
    results: Sequence[Any]
    tolerance: float

    @property
    def shard(self) -> Shard:
        """The device's view of the op."""
        s = self.strategy
        return Shard(self.op, self.rule, dict(s.factors), s.operands, s.results, self.mesh)

    @property
    def pieces(self) -> list[list[np.ndarray]]:
        """For each operand the pieces by place."""
        return [cut(x, s, self.mesh) for x, s in zip(self.operands, self.strategy.operands, strict=True)]

    def compute(self, *pieces: Any) -> list[Any]:
        """The local results of local operands, both as numpy can hold them; shapes and dtypes are checked."""
        got = self.shard.compute(*(unwire(p, x) for p, x in zip(pieces, self.operands, strict=True)))
        for g, r, s in zip(got, self.op.outputs, self.strategy.results, strict=True):
            assert g.shape == s.local_shape(r.shape, self.mesh), f"{self}\ngives {g.shape} where {s} is meant"
            assert g.dtype == r.aval.dtype, f"{self}\ngives {g.dtype} for {r}"
        return [wire(g) for g in got]

    def check(self, got: Sequence[Sequence[np.ndarray]]) -> None:
        """Join the devices' results (by result, then place) and compare."""
        partial = sum(bool(s.partial) for s in self.strategy.operands)
        allowed = self.tolerance * AMPLIFIED**partial
        for pieces, want, spec in zip(got, self.results, self.strategy.results, strict=True):
            whole = join(pieces, spec, want.shape, self.mesh)
            compare(whole, np.asarray(wire(want)), allowed, str(self), of_sums=partial > 0)

    def __str__(self) -> str:
        s = self.strategy
        split = ", ".join(f"{f} over {'+'.join(axes)}" for f, axes in s.factors) or "nothing split"
        reads, leaves = ", ".join(map(str, s.operands)), ", ".join(map(str, s.results))
        return f"{self.op}\n  {self.rule}\n  on {dict(self.mesh)}: {split}: {reads} -> {leaves}"


@dataclass
class _Program:
    """One local computation and every distinct set of pieces it is to run on."""

    run: Callable[..., Any]
    calls: list[tuple[np.ndarray, ...]] = field(default_factory=list)
    seen: dict[tuple[bytes, ...], int] = field(default_factory=dict)

    def call(self, pieces: tuple[np.ndarray, ...]) -> int:
        """The number of the call on these pieces."""
        key = tuple(p.tobytes() for p in pieces)
        if key not in self.seen:
            self.seen[key] = len(self.calls)
            self.calls.append(pieces)
        return self.seen[key]


def check_all(trials: Sequence[Trial]) -> None:
    """Run all trials.

    Raises:
        AssertionError: naming the op, its rule, the mesh and the strategy that gives something else.
    """
    programs: dict[Any, _Program] = {}
    alone: list[tuple[Trial, Any, list[int]]] = []
    together: list[Trial] = []
    traced: dict[Any, Any] = {}
    for trial in trials:
        key = _program(trial, programs, traced)
        if key is None:
            together.append(trial)
        else:
            by_place = list(zip(*trial.pieces, strict=True)) or [()] * len(places(trial.mesh))
            alone.append((trial, key, [programs[key].call(p) for p in by_place]))
    done = _run(programs)
    for trial, key, numbers in alone:
        trial.check([[done[key][n][i] for n in numbers] for i in range(len(trial.results))])
    for mesh in {tuple(t.mesh.items()) for t in together}:
        _run_together([t for t in together if tuple(t.mesh.items()) == mesh], dict(mesh))


def _program(trial: Trial, programs: dict[Any, _Program], traced: dict[Any, Any]) -> Any:
    """The key of the trial's local program; None where devices talk or ask where they are."""
    shapes = tuple(str(s.local_shape(x.shape, trial.mesh)) for x, s in _laid(trial))
    alike: Any = (trial.op.index, shapes)
    if trial.rule.localise is not None:
        alike = (*alike, str(trial.rule.localise(trial.shard)))
    if trial.rule.run is not None:
        alike = (*alike, trial.strategy, tuple(trial.mesh.items()))
    if alike not in traced:
        traced[alike] = _traced(trial, programs)
    return traced[alike]


def _laid(trial: Trial) -> list[tuple[Any, Any]]:
    s = trial.strategy
    return [*zip(trial.operands, s.operands, strict=True), *zip(trial.results, s.results, strict=True)]


def _traced(trial: Trial, programs: dict[Any, _Program]) -> Any:
    avals = [jax.ShapeDtypeStruct(p[0].shape, p[0].dtype) for p in trial.pieces]
    closed = jax.make_jaxpr(trial.compute, axis_env=list(trial.mesh.items()))(*avals)
    graph = from_jaxpr(closed)
    if closed.effects or any(_talks(op) for op in graph.ops):
        return None
    key = (trial.op.index, graph.fingerprint, tuple(np.asarray(wire(c)).tobytes() for c in graph.constants))
    programs.setdefault(key, _Program(jax.extend.core.jaxpr_as_fun(closed)))
    return key


def _talks(op: Op) -> bool:
    """Whether an op names mesh axes."""
    return "axis_name" in op.params or any(isinstance(a, str) for a in op.params.get("axes") or ())


def _run(programs: Mapping[Any, _Program]) -> dict[Any, list[Sequence[np.ndarray]]]:
    """All programs in one compilation, called until each has seen all its pieces."""
    if not programs:
        return {}
    run = jax.jit(
        lambda rows: [p.run(*row) for p, row in zip(programs.values(), rows, strict=True)], compiler_options=QUICK
    )
    rounds = max(len(p.calls) for p in programs.values())
    got = [run([p.calls[min(n, len(p.calls) - 1)] for p in programs.values()]) for n in range(rounds)]
    got = jax.device_get(got)
    return {key: [row[i] for row in got] for i, key in enumerate(programs)}


def _run_together(trials: Sequence[Trial], mesh: Mapping[str, int]) -> None:
    """Trials on one mesh in one `shard_map`."""
    rows = [[np.stack(p) for p in t.pieces] for t in trials]

    def body(rows: Any) -> Any:
        return [[g[None] for g in t.compute(*(p[0] for p in row))] for t, row in zip(trials, rows, strict=True)]

    everywhere = PartitionSpec(tuple(mesh))
    devices = np.array(jax.devices()[: prod(mesh.values())]).reshape(tuple(mesh.values()))
    run = jax.shard_map(
        body, mesh=Mesh(devices, tuple(mesh)), in_specs=everywhere, out_specs=everywhere, check_vma=False
    )
    got = jax.device_get(jax.jit(run, compiler_options=QUICK)(rows))
    for trial, row in zip(trials, got, strict=True):
        trial.check(row)
