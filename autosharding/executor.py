"""Runs a plan: one `shard_map` over the whole program, every op on its local shards, every collective explicit.

A region of the graph is the `lax.scan`, `while_loop` or `switch` that it was, over bodies that run the plan in turn.
Nothing is left to a partitioner, so the collectives in the compiled program are the plan's: same kinds, same axes,
same bytes. Values made of literals alone (zeros, iota) are made where they are read, in the split wanted there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from autosharding.errors import PlanMismatch
from autosharding.graph import Graph, Literal, Op, Value
from autosharding.partition import partition_spec
from autosharding.plan import AS_MADE, Plan
from autosharding.reshard import apply
from autosharding.rules import Rule, Shard, axis_index, rules_of
from autosharding.run_graph import Run, scalar
from autosharding.spec import Spec


def executable(graph: Graph, plan: Plan, mesh: jax.sharding.Mesh) -> Callable[..., tuple[Any, ...]]:
    """The step as one SPMD function of global arrays (arguments, then constants), to be jitted by the caller.

    Raises:
        PlanMismatch: when the plan was made for another graph, or the mesh has other axes.
    """
    check(graph, plan, mesh)
    rules = rules_of(graph)
    return jax.shard_map(
        lambda *leaves: PlanRun(graph, plan, rules).outputs(leaves),
        mesh=mesh,
        in_specs=tuple(partition_spec(i.spec) for i in plan.inputs),
        out_specs=tuple(partition_spec(o.spec) for o in plan.outputs),
        check_vma=False,
    )


def check(graph: Graph, plan: Plan, mesh: jax.sharding.Mesh) -> None:
    """Whether plan, graph and mesh belong together.

    Raises:
        PlanMismatch: saying what differs.
    """
    if plan.fingerprint != graph.fingerprint:
        shapes = [
            f"{name} is {v.type}, the plan has {i.dtype}[{','.join(map(str, i.shape))}]"
            for name, v, i in zip(graph.input_names, graph.inputs, plan.inputs, strict=False)
            if (v.dtype, v.shape) != (i.dtype, i.shape)
        ]
        differs = "; ".join(shapes[:3]) or "the program itself is another one"
        raise PlanMismatch(
            f"This plan was made for the step {plan.name!r} ({len(plan.steps)} ops, {len(plan.inputs)} inputs); the "
            f"step at hand is {graph.name!r} ({len(graph.ops)} ops, {len(graph.inputs)} inputs): {differs}. "
            "Plan the step again, or call it with the arguments the plan was made for."
        )
    if dict(mesh.shape) != dict(plan.mesh):
        raise PlanMismatch(
            f"This plan was made for the mesh {dict(plan.mesh)}, the mesh at hand is {dict(mesh.shape)}."
        )


class PlanRun(Run):
    """One trace of the program, or of one body of it, on one device; lives inside `shard_map`."""

    def __init__(self, graph: Graph, plan: Plan, rules: Sequence[Rule | None], pulse: Any = None) -> None:
        super().__init__(graph, pulse)
        self.plan = plan
        self.rules = rules
        self.mesh: Mapping[str, int] = plan.mesh
        self.copies: dict[int, Any] = {}
        self.free: dict[tuple[int, Spec], Any] = {}

    def outputs(self, leaves: Sequence[Any]) -> tuple[Any, ...]:
        """Run all ops on local shards."""
        self.run_all(leaves)
        return tuple(
            self.read(a, o.read, o.spec, None) for a, o in zip(self.graph.outputs, self.plan.outputs, strict=True)
        )

    def operands(self, op: Op) -> list[Any]:
        """What an op reads, as it reads it."""
        step = self.plan.steps[op.index]
        found: list[Any] = []
        for a, r, s in zip(op.inputs, step.reads, step.operands, strict=True):
            found.append(self.read(a, r, s, found[-1] if found else None))
        return found

    def inner(self, pulse: Any) -> PlanRun:
        """For a body."""
        return PlanRun(self.graph, self.plan, self.rules, pulse)

    def results(self, op: Op) -> Sequence[Any]:
        """What an op makes."""
        step = self.plan.steps[op.index]
        rule = self.rules[op.index]
        assert rule is not None
        shard = Shard(op, rule, dict(step.factors), step.operands, step.results, self.mesh)
        return shard.compute(*self.operands(op))

    def read(self, atom: Value | Literal, read: int, spec: Spec, near: Any) -> Any:
        """An operand in the spec in which it is read; `near` is something that is there when it is wanted."""
        if isinstance(atom, Literal):
            return self._as_partial(atom.value, spec) if spec.partial else scalar(atom)
        if self.graph.is_free(atom):
            return self._free(atom, spec)
        if read == AS_MADE:
            return self.made[atom.id]
        if read not in self.copies:
            self.copies[read] = self._copy(read, near)
        return self.copies[read]

    def _copy(self, index: int, near: Any) -> Any:
        copy = self.plan.copies[index]
        x = self.made[copy.value] if copy.source == AS_MADE else self.source(copy.source, near)
        if copy.again:
            # made again on purpose: tied to what its reader has at hand, so that it is neither merged nor made early
            x = _tied(x, near)
        if self.pulse is not None and copy.value in self.graph.repeated and any(m.on_wire for m in copy.moves):
            x = _tied(x, self.pulse)  # made in every run of the loop, as planned: not before the loop
        for move in copy.moves:
            x = apply(move, x, self.mesh)
        return x

    def source(self, index: int, near: Any) -> Any:
        """A copy, made now if it is not there."""
        if index not in self.copies:
            self.copies[index] = self._copy(index, near)
        return self.copies[index]

    def _free(self, value: Value, spec: Spec) -> Any:
        """A value made of literals, made in the split that its reader wants."""
        key = (value.id, spec)
        if key not in self.free:
            op = self.graph.producer[value.id]
            assert op is not None
            x = free_value(op, spec, self.mesh)
            self.free[key] = self._as_partial(x, spec) if spec.partial else x
        return self.free[key]

    def _as_partial(self, x: Any, spec: Spec) -> Any:
        """One device of the partial axes keeps a whole value, the others hold zeros; other monoids repeat it."""
        if spec.monoid != "sum":
            return jnp.asarray(x)
        return jnp.where(axis_index(spec.partial, self.mesh) == 0, x, jnp.zeros_like(x))


def free_value(op: Op, spec: Spec, mesh: Mapping[str, int]) -> Any:
    """`broadcast_in_dim` of a literal, `iota` or `empty`: local piece under a spec (its partial axes ignored)."""
    out = op.outputs[0]
    shape = spec.local_shape(out.shape, mesh)
    if op.name == "iota":
        dim = op.params["dimension"]
        offset = axis_index(spec.dims[dim], mesh) * shape[dim]
        index = jax.lax.broadcasted_iota(op.params["dtype"], shape, dim)
        return index + jnp.asarray(offset).astype(index.dtype) if spec.dims[dim] else index
    if not op.inputs:
        return jnp.zeros(shape, out.aval.dtype)
    literal = op.inputs[0]
    assert isinstance(literal, Literal)
    return jax.lax.broadcast(scalar(literal), shape)


def _tied(x: Any, near: Any) -> Any:
    """The same array, for XLA no sooner there than `near`, and not the same as any other."""
    return jax.lax.optimization_barrier((x, near))[0] if near is not None else jax.lax.optimization_barrier(x)
