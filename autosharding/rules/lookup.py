"""From an op to its rule."""

from __future__ import annotations

from dataclasses import replace

from autosharding.graph import Graph, Op
from autosharding.rules.base import REGISTRY, Rule, replicated
from ilp.collector import collector_paused

_KERNEL = {"pallas_call": "name", "ffi_call": "target_name"}
"""Primitives that stand for many kernels -> the param that says which."""


@collector_paused()
def rules_of(graph: Graph) -> list[Rule | None]:
    """The rule of each op; None for the borders of regions, which pass their lanes on. Ops of one kind share theirs."""
    known: dict[int, Rule] = {}
    found: list[Rule | None] = []
    for op, kind in zip(graph.ops, graph.kinds, strict=True):
        if op.region is None and kind not in known:
            known[kind] = rule_for(op)
        found.append(None if op.region is not None else known[kind])
    return found


def rule_for(op: Op) -> Rule:
    """The op's rule, checked against its shapes; the replicated fallback where there is none."""
    kernel = _kernel(op)
    make = REGISTRY.get(f"{op.name}:{kernel}") or REGISTRY.get(op.name)
    if make is None:
        if kernel:
            return replicated(
                op, f'{op.name}: the kernel {kernel} has no rule, see asd.rule("{op.name}:{kernel}", ...)'
            )
        return replicated(op, f"{op.name}: primitive without a rule")
    return _keys_whole(op, make(op).verify(op))


def _kernel(op: Op) -> str:
    """The name of the user's kernel that the op runs; "" where the primitive says all."""
    return str(op.params.get(_KERNEL[op.name]) or "") if op.name in _KERNEL else ""


def _keys_whole(op: Op, rule: Rule) -> Rule:
    """Arrays of PRNG keys are never split."""
    sides = (*zip(op.inputs, rule.operands, strict=True), *zip(op.outputs, rule.results, strict=True))
    held = {f for a, dims in sides if a.dtype.startswith("key<") for dim in dims for f in dim}
    return replace(rule, whole=rule.whole | held) if held else rule
