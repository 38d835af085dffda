"""Operators that the user has split himself: `shard_map` as he wrote it, `custom_partitioning` by the rule he gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import jax

from autosharding.capture import from_jaxpr
from autosharding.errors import RuleError, UnsupportedProgram
from autosharding.graph import Graph, Op
from autosharding.partition import partition_spec
from autosharding.rules.base import Exchange, Rule, Shard, replicated, rule
from autosharding.rules.lookup import rules_of
from autosharding.rules.notation import Dims
from autosharding.run_graph import Plain
from autosharding.spec import Spec

# ---- shard_map ---------------------------------------------------------------------------------------------------


@rule("shard_map")
def mapped(op: Op) -> Rule:
    """As its own specs say; every device runs the body as it stands."""
    traced = from_jaxpr(op.params["jaxpr"])
    body = replace(traced, ops=tuple(replace(o, context=None) for o in traced.ops))  # it was traced in its own mesh
    return Rule(
        operands=tuple(((),) * a.rank for a in op.inputs),
        results=tuple(((),) * v.rank for v in op.outputs),
        sizes={},
        flops=sum(r.flops * n for r, n in zip(rules_of(body), body.op_times, strict=True) if r is not None),
        specs=lambda mesh: _specs(op, mesh),
        exchanges=lambda shard: _exchanges(body),
        run=lambda shard, *operands: _Mapped(body).outputs(operands),
    )


def _specs(op: Op, mesh: Mapping[str, int]) -> tuple[tuple[Spec, ...], tuple[Spec, ...]]:
    """(of the operands, of the results), in the user's words.

    Raises:
        UnsupportedProgram: when they are for another mesh.
    """
    own = {str(a): int(n) for a, n in op.params["mesh"].shape.items()}
    sides = ((op.params["in_specs"], op.inputs), (op.params["out_specs"], op.outputs))
    found = [tuple(_spec(p, a.rank) for p, a in zip(specs, atoms, strict=True)) for specs, atoms in sides]
    order = {a: i for i, a in enumerate(mesh)}
    split = [axes for side in found for spec in side for axes in spec.dims]
    if own != dict(mesh) or any(list(axes) != sorted(axes, key=order.__getitem__) for axes in split):
        raise UnsupportedProgram(
            f"The step calls {op.where} with specs for the mesh {own}, and is planned on the mesh {dict(mesh)}. "
            "A shard_map runs on its own mesh only: pass that mesh (mesh=...), with every dim split over axes in the "
            "order in which the mesh names them, or leave the shard_map out and let the planner split what is in it."
        )
    return found[0], found[1]


def _spec(entries: Any, rank: int) -> Spec:
    dims = [(e,) if isinstance(e, str) else tuple(e or ()) for e in entries]
    return Spec((*dims, *((),) * (rank - len(dims))))


_COLLECTIVES = {
    "psum": "all-reduce",
    "psum_invariant": "all-reduce",
    "pmax": "all-reduce",
    "pmin": "all-reduce",
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "all_to_all": "all-to-all",
    "ppermute": "collective-permute",
}
"""Primitives that talk, and what XLA calls that."""


def _exchanges(body: Graph) -> list[Exchange]:
    """The user's own collectives, each as often as the loops around it run."""
    found = []
    for op, times in zip(body.ops, body.op_times, strict=True):
        kind = _COLLECTIVES.get(op.name)
        if kind is not None:
            over = op.params["axes"] if "axes" in op.params else op.params["axis_name"]
            axes = (over,) if isinstance(over, str) else tuple(over)
            counted = op.outputs if kind == "all-gather" else op.values
            found += [Exchange(kind, axes, v.size * times, v.itemsize, holds=0) for v in counted]
    return found


class _Mapped(Plain):
    """The body of a `shard_map`, inside ours, which does not keep account of what varies over which axes."""

    def results(self, op: Op) -> Sequence[Any]:
        """What an op makes."""
        if op.name in ("pvary", "pcast"):
            return self.operands(op)
        if op.name == "psum_invariant":
            return [jax.lax.psum(x, op.params["axes"]) for x in self.operands(op)]
        return super().results(op)


# ---- custom_partitioning -----------------------------------------------------------------------------------------


@rule("custom_partitioning")
def partitioned(op: Op) -> Rule:
    """By its own Shardy rule; factors that are reduced, permuted or said to need it stay whole."""
    said = op.params["sharding_rule"]
    try:
        operands, results, sizes = _factors(said, op)
    except (AttributeError, LookupError, ValueError):
        return replicated(op, "custom_partitioning: its sharding rule cannot be read")
    kept = {f for dims in results for d in dims for f in d}
    special = (*said.reduction_factors, *said.need_replication_factors, *said.permutation_factors)
    return Rule(
        operands=operands,
        results=results,
        sizes=sizes,
        whole=frozenset(f for f in sizes if f not in kept) | frozenset(special),
        flops=float(prod(sizes.values())),
        run=_partitioned,
    )


def _factors(said: Any, op: Op) -> tuple[tuple[Dims, ...], tuple[Dims, ...], dict[str, int]]:
    sizes: dict[str, int] = dict(said.factor_sizes)

    def read(mapping: Any, shape: tuple[int, ...]) -> Dims:
        named = list(mapping)
        if named and isinstance(named[0], str) and "…" in named[0]:
            lead = len(shape) - len(named) + 1
            named[:1] = [f"{named[0]}{i}" for i in range(lead)]
        dims = tuple((d,) if isinstance(d, str) else tuple(d) for d in named)
        for d, n in zip(dims, shape, strict=True):
            if len(d) == 1:
                sizes[d[0]] = max(n, sizes.get(d[0], 1))
        return tuple(() if n == 1 else d for d, n in zip(dims, shape, strict=True))

    operands = tuple(read(m, a.shape) for m, a in zip(said.operand_mappings, op.inputs, strict=True))
    results = tuple(read(m, v.shape) for m, v in zip(said.result_mappings, op.outputs, strict=True))
    return operands, results, sizes


def _partitioned(shard: Shard, *operands: Any) -> Sequence[Any]:
    """What the user's own `partition` gives for the pieces."""
    params = shard.op.params
    mesh = jax.sharding.AbstractMesh(tuple(shard.mesh.values()), tuple(shard.mesh))

    def wanted(atoms: Sequence[Any], specs: Sequence[Spec]) -> list[jax.ShapeDtypeStruct]:
        laid = [jax.sharding.NamedSharding(mesh, partition_spec(s)) for s in specs]
        return [jax.ShapeDtypeStruct(a.shape, a.aval.dtype, sharding=s) for a, s in zip(atoms, laid, strict=True)]

    given = params["in_tree"].unflatten(wanted(shard.op.inputs, shard.operands))
    made = params["out_tree"].unflatten(wanted(shard.op.outputs, shard.results))
    _, lower, result_shardings, operand_shardings = params["partition"](*params["static_args"], mesh, given, made)
    for told, asked in ((operand_shardings, given), (result_shardings, made)):
        _agree(shard.op, jax.tree.leaves(told), jax.tree.leaves(asked))
    return jax.tree.leaves(lower(*params["in_tree"].unflatten(operands)))


def _agree(op: Op, told: Sequence[Any], asked: Sequence[jax.ShapeDtypeStruct]) -> None:
    for t, a in zip(told, asked, strict=True):
        if a.sharding is not None and not t.is_equivalent_to(a.sharding, len(a.shape)):
            raise RuleError(
                f"The sharding rule of {op.where} allows {a.shape} to lie as {a.sharding.spec}, its partition function "
                f"wants {t.spec}. Let the two agree, or say in the rule which factors must stay whole "
                "(need_replication_factors)."
            )
