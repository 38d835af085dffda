"""The plans people write by hand, as restrictions on the same program: data, fsdp, zero1, zero2, megatron."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import numpy as np

from autosharding.errors import AutoshardingError
from autosharding.graph import Graph, Op, Value
from autosharding.planner.formulate import Restrictions
from autosharding.planner.tables import Table
from autosharding.rules import Dims, Rule, Shard
from autosharding.spec import Spec

METHODS = ("auto", "data", "fsdp", "zero1", "zero2", "megatron")

_CARRIES = frozenset({"convert_element_type", "transpose", "reshape", "copy", "squeeze"})
"""What a weight may pass on its way to a matmul and stay that weight."""


def restrictions(
    method: str,
    graph: Graph,
    rules: Sequence[Rule | None],
    roles: Sequence[str],
    mesh: Mapping[str, int],
    fixed: Mapping[int, Spec],
) -> Restrictions:
    """What a method asks for, with the user's own specs on top.

    Raises:
        AutoshardingError: for an unknown method.
    """
    if method not in METHODS:
        raise AutoshardingError(f"There is no method {method!r}. The methods are {', '.join(METHODS)}.")
    inputs: dict[int, Callable[[Spec], bool]] = {}
    if method != "auto":
        batch_axes = tuple(mesh)[:-1] if method == "megatron" else tuple(mesh)
        for i, (v, role) in enumerate(zip(graph.inputs, roles, strict=True)):
            if (test := _test(method, v, role, mesh, batch_axes)) is not None:
                inputs[i] = test
    inputs.update({i: _equals(spec) for i, spec in fixed.items()})
    wanted = _constraints(graph, mesh)
    by_method = _steps(method, graph, rules, roles, mesh)

    def allowed(op: Op, table: Table) -> np.ndarray | None:
        if op.index in wanted:
            return np.array([s.results[0] == wanted[op.index] for s in table.strategies])
        masks = [m for test in by_method if (m := test(op, table)) is not None and m.any()]
        if not masks:
            return None
        both = np.logical_and.reduce(masks)
        return both if both.any() else masks[-1]

    return Restrictions(inputs, allowed)


StepTest = Callable[[Op, Table], np.ndarray | None]


def _steps(
    method: str, graph: Graph, rules: Sequence[Rule | None], roles: Sequence[str], mesh: Mapping[str, int]
) -> list[StepTest]:
    """What a method asks of the ops."""
    if method == "auto":
        return []
    axes = tuple(mesh)
    if method == "megatron":
        return [_batch_split(graph, rules, roles, mesh, axes[:-1]), _column_or_row(graph, rules, roles, mesh)]
    found = [_batch_split(graph, rules, roles, mesh, axes)]
    return [*found, _scattered_gradients(graph, roles, mesh)] if method == "zero2" else found


def batch_factors(graph: Graph, rules: Sequence[Rule | None], roles: Sequence[str]) -> dict[int, str]:
    """Op index -> the factor that is the batch: dim 0 of the batch arguments, followed through the rules.

    Of what passes by in microbatches it is dim 1, if it has more than that. In a merged dim the batch is the major
    part. Where two operands bring it by different factors, the first counts. Where examples are worked on together, as
    a sort along the batch does, it ends.
    """
    first = {"batch": 0, "stream": 1}
    dim: dict[int, int] = {
        v.id: first[r]
        for v, r in zip(graph.inputs, roles, strict=True)
        if r in first and v.rank > 2 * first[r] and not v.dtype.startswith("key")
    }
    found: dict[int, str] = {}
    known = -1
    while len(dim) > known:  # a carry may show what it is at the end of its loop only
        known = len(dim)
        for op, rule in zip(graph.ops, rules, strict=True):
            if rule is None:
                _batch_through_border(graph, op, dim)
            elif (factor := _batch_factor(op, rule, dim)) is not None and not _couples(op, rule, factor):
                found[op.index] = factor
                for v, dims in zip(op.outputs, rule.results, strict=True):
                    at = [d for d, factors in enumerate(dims) if factors[:1] == (factor,)]
                    if at:
                        dim.setdefault(v.id, at[0])
    return found


def _batch_factor(op: Op, rule: Rule, dim: Mapping[int, int]) -> str | None:
    for a, dims in zip(op.inputs, rule.operands, strict=True):
        if isinstance(a, Value) and a.id in dim and dims[dim[a.id]]:
            return dims[dim[a.id]][0]
    return None


def _couples(op: Op, rule: Rule, factor: str) -> bool:
    """Whether the pieces of an op that is split along a factor need what the others have."""
    parts = next((n for n in range(2, rule.sizes[factor] + 1) if rule.sizes[factor] % n == 0), 1)
    if rule.exchanges is None or parts == 1 or (rule.admits is not None and not rule.admits({factor: parts})):
        return False

    def specs(side: Sequence[Dims]) -> tuple[Spec, ...]:
        return tuple(Spec(tuple(("batch",) if factor in dim else () for dim in dims)) for dims in side)

    shard = Shard(op, rule, {factor: ("batch",)}, specs(rule.operands), specs(rule.results), {"batch": parts})
    return bool(rule.exchanges(shard))


def _batch_through_border(graph: Graph, op: Op, dim: dict[int, int]) -> None:
    """What goes in at a border has its batch at all other ports of its lane, unless that is the dim that is stacked."""
    for i, a in enumerate(op.inputs):
        if isinstance(a, Value) and a.id in dim:
            lane, stacked = graph.lane_read[op.index, i]
            inside = dim[a.id] - stacked
            for v, more in graph.lanes[lane].makes if inside >= 0 else ():
                dim.setdefault(v.id, inside + more)


def _batch_split(
    graph: Graph, rules: Sequence[Rule | None], roles: Sequence[str], mesh: Mapping[str, int], axes: tuple[str, ...]
) -> StepTest:
    """Every op that has the batch splits it over exactly these axes."""
    factors = batch_factors(graph, rules, roles)

    def allowed(op: Op, table: Table) -> np.ndarray | None:
        factor = factors.get(op.index)
        if factor is None:
            return None
        return np.array([dict(s.factors).get(factor, ()) == axes for s in table.strategies])

    return allowed


def _equals(spec: Spec) -> Callable[[Spec], bool]:
    return lambda s: s == spec


def _constraints(graph: Graph, mesh: Mapping[str, int]) -> dict[int, Spec]:
    """The user's own `with_sharding_constraint`s whose axes this mesh has: op index -> spec."""
    found = {}
    for op in graph.ops:
        if op.name != "sharding_constraint":
            continue
        entries = getattr(op.params["sharding"], "spec", None)
        if entries is None:
            continue
        dims = [(e,) if isinstance(e, str) else tuple(e or ()) for e in entries]
        v = op.outputs[0]
        spec = Spec((*dims, *((),) * (v.rank - len(dims))))
        if spec.fits(v.shape, mesh):
            found[op.index] = spec
    return found


def _test(
    method: str, v: Value, role: str, mesh: Mapping[str, int], batch_axes: tuple[str, ...]
) -> Callable[[Spec], bool] | None:
    if role == "batch":
        n = prod(mesh[a] for a in batch_axes)
        if v.rank and v.shape[0] % n == 0 and not v.dtype.startswith("key"):
            wanted = Spec((batch_axes, *((),) * (v.rank - 1)))
            return _equals(wanted)
        return lambda s: s.is_replicated
    if role in ("stream", "handed") or (role == "state" and v.rank and v.dtype.startswith(("f", "bf"))):
        return None  # a cache, or what comes from elsewhere: as its readers want it
    if method == "megatron":
        tensor = tuple(mesh)[-1]
        return lambda s: set(s.axes) <= {tensor}
    split = role in {"fsdp": ("parameter", "optimizer"), "zero1": ("optimizer",), "zero2": ("optimizer",)}.get(
        method, ()
    )
    if not split:
        return lambda s: s.is_replicated
    most = _most_parts(v, mesh)
    return lambda s: _parts(s, mesh) == most


def _parts(s: Spec, mesh: Mapping[str, int]) -> int:
    return prod(mesh[a] for axes in s.dims for a in axes)


def _most_parts(v: Value, mesh: Mapping[str, int]) -> int:
    """Into how many pieces an array can be cut along one dim (all axes where one divides)."""
    axes = tuple(mesh)
    for k in range(len(axes), 0, -1):
        n = prod(mesh[a] for a in axes[-k:])
        if any(size % n == 0 and size > 0 for size in v.shape):
            return n
    return 1


def weights(graph: Graph, roles: Sequence[str]) -> dict[int, int]:
    """Value id -> input index of the parameter it is, after casts and views."""
    found = {v.id: i for i, (v, r) in enumerate(zip(graph.inputs, roles, strict=True)) if r == "parameter"}
    for op in graph.ops:
        if op.region is not None:
            for i, a in enumerate(op.inputs):
                if isinstance(a, Value) and a.id in found:
                    made = graph.lanes[graph.lane_read[op.index, i][0]].makes
                    found.update((v.id, found[a.id]) for v, _ in made)
        elif op.name in _CARRIES and op.values and op.values[0].id in found:
            found[op.outputs[0].id] = found[op.values[0].id]
    return found


def _column_or_row(
    graph: Graph, rules: Sequence[Rule | None], roles: Sequence[str], mesh: Mapping[str, int]
) -> StepTest:
    """Matmuls on a weight split a factor of the weight over the tensor axis (the last), never gather it."""
    tensor = tuple(mesh)[-1]
    held = weights(graph, roles)

    def allowed(op: Op, table: Table) -> np.ndarray | None:
        rule = rules[op.index]
        read = [i for i, a in enumerate(op.inputs) if isinstance(a, Value) and a.id in held and a.rank > 1]
        if op.name != "dot_general" or rule is None or not read:
            return None
        own = {f for i in read for dim in rule.operands[i] for f in dim}
        return np.array([any(f in own and tensor in axes for f, axes in s.factors) for s in table.strategies])

    return allowed


def _scattered_gradients(graph: Graph, roles: Sequence[str], mesh: Mapping[str, int]) -> StepTest:
    """The update reads each gradient split over all devices."""
    shapes = {v.shape for v, r in zip(graph.inputs, roles, strict=True) if r == "parameter" and v.rank > 0}

    def allowed(op: Op, table: Table) -> np.ndarray | None:
        if op.phase != "update":
            return None
        grads = [
            (i, a)
            for i, a in enumerate(op.inputs)
            if isinstance(a, Value) and a.shape in shapes and _is_gradient(graph, a)
        ]
        if not grads:
            return None
        most = {i: _most_parts(a, mesh) for i, a in grads}
        return np.array([all(_parts(s.operands[i], mesh) == most[i] for i in most) for s in table.strategies])

    return allowed


def _is_gradient(graph: Graph, v: Value) -> bool:
    maker = graph.producer[v.id]
    return maker is not None and maker.phase == "backward"
