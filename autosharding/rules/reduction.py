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


@rule(*_MONOIDS, "reduce_prod", "reduce_xor", "argmax", "argmin")
def reduce(op: Op) -> Rule:
    """`i j -> i`, `j` reduced."""
    a = op.inputs[0]
    dims = factors_of("d", a.shape)
    gone = {f"d{d}" for d in op.params["axes"] if a.shape[d] > 1}
    monoid = _MONOIDS.get(op.name)
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
