"""Convolutions: batch, channels and groups are factors, spatial dims stay whole."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from autosharding.graph import Op
from autosharding.rules.base import Rule, Shard, adds_up, rule
from autosharding.rules.notation import Dim, Dims


@rule("conv_general_dilated")
def conv_general_dilated(op: Op) -> Rule:
    """`n (g i), (g o) i -> n (g o)`, `i` summed; with batch groups `(g n) i, (g o) i -> n (g o)`."""
    lhs, rhs = op.inputs
    numbers = op.params["dimension_numbers"]
    groups, batch_groups = op.params["feature_group_count"], op.params["batch_group_count"]
    sizes = {
        "g": groups * batch_groups,
        "n": lhs.shape[numbers.lhs_spec[0]] // batch_groups,
        "i": rhs.shape[numbers.rhs_spec[1]],
        "o": rhs.shape[numbers.rhs_spec[0]] // (groups * batch_groups),
    }
    sizes = {f: n for f, n in sizes.items() if n > 1}

    def dims(spec: tuple[int, ...], first: str, second: str) -> Dims:
        """Batch-like and feature-like dim at their places in the layout, spatial dims without factors."""
        found: list[Dim] = [()] * len(spec)
        found[spec[0]] = tuple(f for f in first.split() if f in sizes)
        found[spec[1]] = tuple(f for f in second.split() if f in sizes)
        return tuple(found)

    out = op.outputs[0]
    kernel = prod(rhs.shape[d] for d in numbers.rhs_spec[2:])
    return Rule(
        operands=(
            dims(numbers.lhs_spec, "g n" if batch_groups > 1 else "n", "g i" if groups > 1 else "i"),
            dims(numbers.rhs_spec, "g o", "i"),
        ),
        results=(dims(numbers.out_spec, "n", "g o"),),
        sizes=sizes,
        reduced={"i": "sum"} if "i" in sizes else {},
        linear=tuple(frozenset({i}) for i in (0, 1) if adds_up(op, i)),
        flops=2.0 * out.size * kernel * rhs.shape[numbers.rhs_spec[1]],
        localise=_local_groups,
    )


def _local_groups(shard: Shard) -> Mapping[str, Any]:
    """Groups are split among the devices: each has fewer of them."""
    parts = shard.parts("g")
    return {
        key: shard.op.params[key] // parts
        for key in ("feature_group_count", "batch_group_count")
        if shard.op.params[key] > 1
    }
