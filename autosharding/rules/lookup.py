"""From an op to its rule."""

from __future__ import annotations

from dataclasses import replace

from autosharding.graph import Op
from autosharding.rules.base import REGISTRY, Rule, replicated

_REGIONS = frozenset({"scan", "while", "cond", "shard_map", "pallas_call", "custom_partitioning", "ffi_call"})


def rule_for(op: Op) -> Rule:
    """The op's rule, checked against its shapes; the replicated fallback where there is none."""
    if op.name == "optimization_barrier":
        raise ValueError("a barrier has a rule for each lane, see barrier.lanes")
    make = REGISTRY.get(op.name)
    if make is None:
        kind = "region planned as a whole" if op.name in _REGIONS else "primitive without a rule"
        return replicated(op, f"{op.name}: {kind}")
    return _keys_whole(op, make(op).verify(op))


def _keys_whole(op: Op, rule: Rule) -> Rule:
    """Arrays of PRNG keys are never split."""
    sides = (*zip(op.inputs, rule.operands, strict=True), *zip(op.outputs, rule.results, strict=True))
    held = {f for a, dims in sides if a.dtype.startswith("key<") for dim in dims for f in dim}
    return replace(rule, whole=rule.whole | held) if held else rule
