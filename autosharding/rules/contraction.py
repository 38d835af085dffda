"""Contractions: `dot_general` and its ragged form."""

from __future__ import annotations

from math import prod

from autosharding.graph import Op
from autosharding.rules.base import Rule, adds_up, rule, sizes_of
from autosharding.rules.notation import Dim, Dims


@rule("dot_general")
def dot_general(op: Op) -> Rule:
    """Batch dims `b`, contracted dims `k` (summed), free dims `i` of the left and `j` of the right side."""
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
        linear=tuple(frozenset({i}) for i in (0, 1) if adds_up(op, i)),
        flops=2.0 * prod(sizes.values()),
    )


@rule("ragged_dot_general")
def ragged_dot_general(op: Op) -> Rule:
    """As `dot_general`; the ragged dim of the left operand and the group dim stay whole.

    The result is `g? b i j`: a group dim in front where the ragged dim is contracted.
    """
    lhs, rhs, groups = op.inputs[:3]
    numbers = op.params["ragged_dot_dimension_numbers"]
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = numbers.dot_dimension_numbers
    left: list[Dim] = [(f"i{d}",) for d in range(lhs.rank)]
    right: list[Dim] = [(f"j{d}",) for d in range(rhs.rank)]
    for kind, pairs in (
        ("b", zip(lhs_batch, rhs_batch, strict=True)),
        ("k", zip(lhs_contract, rhs_contract, strict=True)),
    ):
        for n, (i, j) in enumerate(pairs):
            left[i] = right[j] = (f"{kind}{n}",)
    ragged = numbers.lhs_ragged_dimensions[0]
    held = {*left[ragged], *(f for d in numbers.rhs_group_dimensions for f in right[d])}
    free_left = [left[d] for d in range(lhs.rank) if d not in (*lhs_contract, *lhs_batch)]
    skipped = (*rhs_contract, *rhs_batch, *numbers.rhs_group_dimensions)
    free_right = [right[d] for d in range(rhs.rank) if d not in skipped]
    front: list[Dim] = [()] if ragged in lhs_contract else []
    sizes = sizes_of((tuple(left), lhs.shape), (tuple(right), rhs.shape))
    # group sizes per batch element come with the batch dims in front
    batch = [left[d] for d in lhs_batch]
    sized: Dims = (*(batch + free_left)[: groups.rank - 1], ()) if groups.rank > 1 else ((),) * groups.rank
    return Rule(
        operands=(tuple(left), tuple(right), sized, *(((),) * a.rank for a in op.inputs[3:])),
        results=((*front, *batch, *free_left, *free_right),),
        sizes=sizes,
        reduced={f: "sum" for f in sizes if f.startswith("k") and f not in held},
        whole=frozenset(held),
        linear=tuple(frozenset({i}) for i in (0, 1) if adds_up(op, i)),
        flops=2.0 * prod(op.outputs[0].shape) * prod(lhs.shape[d] for d in lhs_contract),
    )
