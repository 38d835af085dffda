"""The proof of a rule: the op run on shards under every strategy, joined, equals the op run whole.

Operands are cut by numpy as a strategy's specs say (partial ones into random terms), all strategies of an op
run in one jitted `shard_map`, and numpy joins the pieces. Nothing here shares code with the executor or the
reshard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from autosharding import _jax
from autosharding.capture import capture
from autosharding.graph import Graph, Literal, Op, Value
from autosharding.rules import Rule, Shard, rule_for
from autosharding.spec import Spec
from autosharding.strategies import Strategy, monoids, strategies

MESH_8 = {"x": 4, "y": 2}
MESH_4 = {"x": 2, "y": 2}
MESH_2 = {"x": 2}


def check(
    f: Callable[..., Any],
    *args: Any,
    mesh: Mapping[str, int] = MESH_4,
    tolerance: float = 2e-5,
    only: Sequence[str] = (),
) -> dict[str, int]:
    """Check every op of `f(*args)`, or those named by `only`, under every strategy of its rule.

    Returns:
        primitive -> number of strategies that split or pass something, for tests that demand some.
    """
    graph = capture(lambda *a: jax.tree.leaves(f(*a)), [jnp.asarray(a) for a in args])
    rules = [None if op.name == "optimization_barrier" else rule_for(op) for op in graph.ops]
    found = monoids(graph, rules)
    values: dict[int, Any] = {
        v.id: jnp.asarray(a) for v, a in zip(graph.inputs, [*args, *graph.constants], strict=True)
    }
    counts: dict[str, int] = {}
    for op, rule in zip(graph.ops, rules, strict=True):
        assert rule is not None
        operands = [_value(a, values) for a in op.inputs]
        results = jax.jit(lambda *a, op=op: _jax.bind(op.primitive, op.context, dict(op.params), a))(*operands)
        values.update((v.id, r) for v, r in zip(op.outputs, results, strict=True))
        if only and op.name not in only:
            continue
        chosen = every_strategy(op, rule, mesh, graph, found)
        _check_op(op, rule, mesh, chosen, operands, results, tolerance)
        counts[op.name] = counts.get(op.name, 0) + len(chosen) - 1
    return counts


def every_strategy(
    op: Op, rule: Rule, mesh: Mapping[str, int], graph: Graph, found: Sequence[str | None]
) -> tuple[Strategy, ...]:
    """The strategies that the planner would see."""
    before = [found[a.id] if isinstance(a, Value) else "sum" for a in op.inputs]
    after = [found[v.id] for v in op.outputs]
    return strategies(op, rule, mesh, before, after)


def _value(atom: Value | Literal, values: Mapping[int, Any]) -> Any:
    return jnp.asarray(atom.value, atom.aval.dtype) if isinstance(atom, Literal) else values[atom.id]


def _check_op(
    op: Op,
    rule: Rule,
    mesh: Mapping[str, int],
    chosen: Sequence[Strategy],
    operands: Sequence[Any],
    results: Sequence[Any],
    tolerance: float,
) -> None:
    if any(x.dtype in (jnp.bfloat16, jnp.float16) for x in (*operands, *results)):
        tolerance = max(tolerance, 4e-2)
    pieces = [[_cut(x, s, mesh) for x, s in zip(operands, c.operands, strict=True)] for c in chosen]

    def body(*flat: Any) -> list[list[Any]]:
        local = iter(flat)
        out = []
        for c in chosen:
            mine = [_unwire(next(local)[0], x) for x in operands]
            shard = Shard(op, rule, dict(c.factors), c.operands, c.results, mesh)
            got = shard.compute(*mine)
            for g, r, s in zip(got, op.outputs, c.results, strict=True):
                assert g.shape == s.local_shape(r.shape, mesh), f"{op.where}: {g.shape} under {s}"
                assert g.dtype == r.aval.dtype, f"{op.where}: {g.dtype} for {r}"
            out.append([_wire(g)[None] for g in got])
        return out

    devices = np.array(jax.devices()[: prod(mesh.values())]).reshape(tuple(mesh.values()))
    everywhere = PartitionSpec(tuple(mesh))
    run = jax.shard_map(
        body,
        mesh=Mesh(devices, tuple(mesh)),
        in_specs=everywhere,
        out_specs=everywhere,
        check_vma=False,
    )
    got = jax.device_get(
        jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})(
            *(np.asarray(p) for row in pieces for p in row)
        )
    )
    for c, row in zip(chosen, got, strict=True):
        for g, want, s in zip(row, results, c.results, strict=True):
            _compare(_join(g, s, want.shape, mesh), np.asarray(_wire(want)), tolerance, f"{op}\n{rule}\n{c}")


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _wire(x: Any) -> Any:
    return jax.random.key_data(x) if _is_key(x) else x


def _unwire(x: Any, like: Any) -> Any:
    return jax.random.wrap_key_data(x, impl=jax.random.key_impl(like)) if _is_key(like) else x


def _places(mesh: Mapping[str, int]) -> list[dict[str, int]]:
    return [dict(zip(mesh, place, strict=True)) for place in product(*map(range, mesh.values()))]


def _piece(spec: Spec, shape: Sequence[int], at: Mapping[str, int], mesh: Mapping[str, int]) -> tuple[slice, ...]:
    found = []
    for axes, n in zip(spec.dims, shape, strict=False):
        index = 0
        for a in axes:
            index = index * mesh[a] + at[a]
        size = n // prod(mesh[a] for a in axes)
        found.append(slice(index * size, (index + 1) * size))
    return tuple(found)


def _cut(x: Any, spec: Spec, mesh: Mapping[str, int]) -> np.ndarray:
    """[devices, local shape]: what each device holds."""
    whole = np.asarray(_wire(x))
    terms = _terms(whole, prod(mesh[a] for a in spec.partial), spec.monoid)
    return np.stack([terms[_term(spec, at, mesh)][_piece(spec, x.shape, at, mesh)] for at in _places(mesh)])


def _term(spec: Spec, at: Mapping[str, int], mesh: Mapping[str, int]) -> int:
    index = 0
    for a in spec.partial:
        index = index * mesh[a] + at[a]
    return index


def _terms(x: np.ndarray, n: int, monoid: str) -> list[np.ndarray]:
    """Random arrays whose sum (max, ...) is `x`."""
    if n == 1:
        return [x]
    rng = np.random.default_rng(0)
    if monoid == "sum":
        if x.dtype.kind in "iu":
            found = [rng.integers(0, 9, x.shape).astype(x.dtype) for _ in range(n - 1)]
        else:
            found = [rng.normal(size=x.shape).astype(x.dtype) for _ in range(n - 1)]
        with np.errstate(invalid="ignore"):
            return [*found, (x - sum(found)).astype(x.dtype)]
    owner = rng.integers(0, n, x.shape)
    other = {"max": _below, "min": _above, "or": _false, "and": _true}[monoid](x)
    return [np.where(owner == i, x, other) for i in range(n)]


def _below(x: np.ndarray) -> np.ndarray:
    return x if x.dtype == bool else np.where(x > np.iinfo(x.dtype).min, x - 1, x) if x.dtype.kind in "iu" else x - 1


def _above(x: np.ndarray) -> np.ndarray:
    return x if x.dtype == bool else np.where(x < np.iinfo(x.dtype).max, x + 1, x) if x.dtype.kind in "iu" else x + 1


def _false(x: np.ndarray) -> np.ndarray:
    return np.zeros_like(x)


def _true(x: np.ndarray) -> np.ndarray:
    return np.ones_like(x)


_JOIN = {"sum": np.add, "max": np.maximum, "min": np.minimum, "or": np.logical_or, "and": np.logical_and}


def _join(pieces: np.ndarray, spec: Spec, shape: Sequence[int], mesh: Mapping[str, int]) -> np.ndarray:
    """The whole value of [devices, local shape]; devices that should hold the same must hold the same."""
    whole = np.zeros((*shape, *pieces.shape[1 + len(shape) :]), pieces.dtype)
    held: dict[tuple[Any, ...], np.ndarray] = {}
    for p, at in zip(pieces, _places(mesh), strict=True):
        key = (str(_piece(spec, shape, at, mesh)), _term(spec, at, mesh))
        if key in held:
            np.testing.assert_array_equal(held[key], p, err_msg=f"replicas differ under {spec}")
            continue
        at_piece = _piece(spec, shape, at, mesh)
        whole[at_piece] = p if key[1] == 0 else _JOIN[spec.monoid](whole[at_piece], p)
        held[key] = p
    return whole


def _compare(got: np.ndarray, want: np.ndarray, tolerance: float, what: str) -> None:
    assert got.shape == want.shape, f"{got.shape} is not {want.shape} for {what}"
    if want.dtype.kind in "iub":
        np.testing.assert_array_equal(got, want, err_msg=what)
        return
    if want.dtype.kind == "V" or want.dtype.itemsize == 2:
        got, want = got.astype(np.float32), want.astype(np.float32)
    finite = np.abs(want[np.isfinite(want)])
    scale = max(1.0, float(finite.max())) if finite.size else 1.0
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * scale, err_msg=what)
