"""Reductions over dims, with the monoid that joins partial results; those without one keep the dim whole."""

from __future__ import annotations

from math import prod

from autosharding.graph import Op
from autosharding.rules.base import Rule, factors_of, rule, sizes_of

_MONOIDS = {
    "reduce_sum": "sum",
    "reduce_max": "max",
    "reduce_min": "min",
    "reduce_and": "and",
    "reduce_or": "or",
}

_OF_BOOLEANS = {"reduce_and": "and", "reduce_or": "or", "reduce_min": "and", "reduce_max": "or"}


@rule(*_MONOIDS, "reduce_prod", "reduce_xor", "argmax", "argmin")
def reduce(op: Op) -> Rule:
    """`i j -> i`, `j` reduced."""
    a = op.inputs[0]
    dims = factors_of("d", a.shape)
    gone = {f"d{d}" for d in op.params["axes"] if a.shape[d] > 1}
    monoid = _monoid(op)
    kept = tuple(f for d, f in enumerate(dims) if d not in op.params["axes"])
    return Rule(
        operands=(dims,),
        results=(kept,),
        sizes=sizes_of((dims, a.shape)),
        reduced=dict.fromkeys(sorted(gone), monoid) if monoid else {},
        whole=frozenset() if monoid else frozenset(gone),
        linear=(frozenset({0}),) if monoid == "sum" else (),
        flops=float(prod(a.shape)),
    )


def _monoid(op: Op) -> str | None:
    """How shards' results join; bitwise `and`/`or` of integers do not, the max of booleans is their `or`."""
    if op.outputs[0].dtype == "bool":
        return _OF_BOOLEANS.get(op.name)
    return None if op.name in ("reduce_and", "reduce_or") else _MONOIDS.get(op.name)


@rule("reduce")
def custom_reduce(op: Op) -> Rule:
    """A reduction by the user's own function: reduced dims stay whole, initial values are scalars."""
    arrays = op.inputs[: len(op.inputs) // 2]
    shape, gone = arrays[0].shape, op.params["dimensions"]
    dims = tuple(() if d in gone else f for d, f in enumerate(factors_of("d", shape)))
    kept = tuple(f for d, f in enumerate(dims) if d not in gone)
    return Rule(
        operands=(dims,) * len(arrays) + ((),) * len(arrays),
        results=(kept,) * len(op.outputs),
        sizes=sizes_of((dims, shape)),
        flops=float(prod(shape) * len(arrays)),
    )


@rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def cumulative(op: Op) -> Rule:
    """Along the accumulated dim the array stays whole."""
    a = op.inputs[0]
    dims = factors_of("d", a.shape)
    return Rule(
        operands=(dims,),
        results=(dims,),
        sizes=sizes_of((dims, a.shape)),
        whole=frozenset(dims[op.params["axis"]]),
        linear=(frozenset({0}),) if op.name == "cumsum" else (),
        flops=float(prod(a.shape)),
    )
