"""Contractions: `dot_general`."""

from __future__ import annotations

from math import prod

from autosharding.graph import Op
from autosharding.rules.base import Rule, rule


@rule("dot_general")
def dot_general(op: Op) -> Rule:
    """Batch dims `b`, contracted dims `k` (summed), free dims `i` of the left and `j` of the right operand."""
    lhs, rhs = op.inputs
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = op.params["dimension_numbers"]
    left = [""] * lhs.rank
    right = [""] * rhs.rank
    for n, (i, j) in enumerate(zip(lhs_batch, rhs_batch, strict=True)):
        left[i] = right[j] = f"b{n}"
    for n, (i, j) in enumerate(zip(lhs_contract, rhs_contract, strict=True)):
        left[i] = right[j] = f"k{n}"
    free_left = [d for d in range(lhs.rank) if not left[d]]
    free_right = [d for d in range(rhs.rank) if not right[d]]
    for n, d in enumerate(free_left):
        left[d] = f"i{n}"
    for n, d in enumerate(free_right):
        right[d] = f"j{n}"
    out = [left[d] for d in lhs_batch] + [left[d] for d in free_left] + [right[d] for d in free_right]
    sizes = dict(zip(left, lhs.shape, strict=True)) | dict(zip(right, rhs.shape, strict=True))
    return Rule(
        operands=(tuple((f,) for f in left), tuple((f,) for f in right)),
        results=(tuple((f,) for f in out),),
        sizes=sizes,
        reduced={f: "sum" for f in sizes if f.startswith("k")},
        linear=(frozenset({0}), frozenset({1})),
        flops=2.0 * prod(sizes.values()),
    )
