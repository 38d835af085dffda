"""Operators that act on the world or on the placement of arrays, not on their values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from autosharding.graph import Op
from autosharding.rules.base import Rule, Shard, axis_index, factors_of, rule, sizes_of


@rule("sharding_constraint", "reshard", "device_put", "layout_constraint")
def placed(op: Op) -> Rule:
    """`i j -> i j`: inside the plan a placement means nothing, the values pass as they are."""
    dims = tuple(factors_of("x" if i else "d", a.shape) for i, a in enumerate(op.inputs))
    return Rule(
        operands=dims,
        results=dims,
        sizes=sizes_of(*((d, a.shape) for d, a in zip(dims, op.inputs, strict=True))),
        linear=(frozenset(range(len(op.inputs))),),
        moves_data=len(op.inputs) == 1,
        run=lambda shard, *operands: operands,
    )


@rule("platform_index")
def platform(op: Op) -> Rule:
    """`->`: which of the platforms that a program is written for this is; all devices are of one."""
    return Rule(operands=(), results=((),), sizes={})


@rule("debug_print", "debug_callback")
def printed(op: Op) -> Rule:
    """Operands whole; one device prints."""
    return Rule(
        operands=tuple(((),) * a.rank for a in op.inputs),
        results=tuple(((),) * v.rank for v in op.outputs),
        sizes={},
        run=_once,
    )


def _once(shard: Shard, *operands: Any) -> Sequence[Any]:
    """Only the first device of the mesh calls."""
    whole = {"partitioned": False} if "partitioned" in shard.op.params else {}

    def call() -> None:
        shard.bind(*operands, **whole)

    jax.lax.cond(axis_index(tuple(shard.mesh), shard.mesh) == 0, call, lambda: None)
    return ()
