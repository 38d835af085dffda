"""Sorting and ranking: the ordered dim stays whole."""

from __future__ import annotations

from math import prod

from autosharding.graph import Op
from autosharding.rules.base import Rule, rule, sizes_of
from autosharding.rules.pieces import untouched

_DIM = {"sort": "dimension", "top_k": "axis", "approx_top_k": "reduction_dimension"}


@rule(*_DIM)
def ordered(op: Op) -> Rule:
    """`i j -> i j`, `j` whole; every operand and result alike."""
    a = op.inputs[0]
    axis = op.params.get(_DIM[op.name], -1) % a.rank
    dims = untouched("d", a.shape, [d != axis for d in range(a.rank)])
    return Rule(
        operands=(dims,) * len(op.inputs),
        results=(dims,) * len(op.outputs),
        sizes=sizes_of((dims, a.shape)),
        flops=float(prod(a.shape) * max(1, a.shape[axis].bit_length())),
    )
