"""From an op to its rule."""

from __future__ import annotations

from dataclasses import replace

from autosharding.collector import collector_paused
from autosharding.graph import Graph, Op
from autosharding.rules.base import REGISTRY, Rule, replicated

_OPAQUE = frozenset({"pallas_call", "ffi_call"})


@collector_paused()
def rules_of(graph: Graph) -> list[Rule | None]:
    """The rule of each op; None for the borders of regions, which pass their lanes on."""
    return [None if op.region is not None else rule_for(op) for op in graph.ops]


def rule_for(op: Op) -> Rule:
    """The op's rule, checked against its shapes; the replicated fallback where there is none."""
    make = REGISTRY.get(op.name)
    if make is None:
        kind = "a kernel of its own" if op.name in _OPAQUE else "primitive without a rule"
        return replicated(op, f"{op.name}: {kind}")
    return _keys_whole(op, make(op).verify(op))


def _keys_whole(op: Op, rule: Rule) -> Rule:
    """Arrays of PRNG keys are never split."""
    sides = (*zip(op.inputs, rule.operands, strict=True), *zip(op.outputs, rule.results, strict=True))
    held = {f for a, dims in sides if a.dtype.startswith("key<") for dim in dims for f in dim}
    return replace(rule, whole=rule.whole | held) if held else rule
