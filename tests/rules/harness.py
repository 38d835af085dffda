"""The proof of a rule: every op of a function under every strategy of its rule equals the op run whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from autosharding import _jax
from autosharding.capture import capture
from autosharding.graph import Graph, Literal, Op, Value
from autosharding.rules import Rule, rules_of
from autosharding.strategies import Strategy, monoids, strategies
from tests.rules.forced import QUICK, Trial, check_all

MESH_8 = {"x": 4, "y": 2}
MESH_4 = {"x": 2, "y": 2}
MESH_2 = {"x": 2}

HALF_TOLERANCE = 4e-2
"""For 16-bit floats, whose sums round at every step."""


def check(
    f: Callable[..., Any],
    *args: Any,
    mesh: Mapping[str, int] = MESH_4,
    tolerance: float = 2e-5,
    only: Sequence[str] = (),
) -> dict[str, int]:
    """Check every op of `f(*args)`, or those named by `only`, under every strategy of its rule.

    Returns:
        primitive -> number of strategies that split or pass something, for tests that demand some.
    """
    graph = capture(lambda *a: jax.tree.leaves(f(*a)), [jnp.asarray(a) for a in args])
    values = intermediates(graph, [*args, *graph.constants])
    trials = trials_of(graph, values, mesh, lambda arrays: max(tolerance, _rounding(arrays)), only=only)
    check_all(trials)
    counts: dict[str, int] = {}
    for t in trials:
        counts[t.op.name] = counts.get(t.op.name, 0) + 1
    replicated = [op.name for op in graph.ops if not only or op.name in only]
    return {name: n - replicated.count(name) for name, n in counts.items()}


def _rounding(arrays: Sequence[Any]) -> float:
    return HALF_TOLERANCE if any(x.dtype in (jnp.bfloat16, jnp.float16) for x in arrays) else 0.0


def intermediates(graph: Graph, inputs: Sequence[Any]) -> dict[int, Any]:
    """Every value of the graph by id, computed op by op in one compilation on one device."""

    def run(leaves: Sequence[Any]) -> list[list[Any]]:
        values = {v.id: x for v, x in zip(graph.inputs, leaves, strict=True)}
        made = []
        for op in graph.ops:
            operands = [operand(a, values) for a in op.inputs]
            results = _jax.bind(op.primitive, op.context, dict(op.params), operands)
            values.update((v.id, r) for v, r in zip(op.outputs, results, strict=True))
            made.append(list(results))
        return made

    leaves = [jnp.asarray(x) for x in inputs]
    values = {v.id: x for v, x in zip(graph.inputs, leaves, strict=True)}
    for op, results in zip(graph.ops, jax.jit(run, compiler_options=QUICK)(leaves), strict=True):
        values.update((v.id, r) for v, r in zip(op.outputs, results, strict=True))
    return values


def operand(atom: Value | Literal, values: Mapping[int, Any]) -> Any:
    """The array behind an input of an op."""
    return jnp.asarray(atom.value, atom.aval.dtype) if isinstance(atom, Literal) else values[atom.id]


def trials_of(
    graph: Graph,
    values: Mapping[int, Any],
    mesh: Mapping[str, int],
    tolerance: Callable[[Sequence[Any]], float],
    *,
    only: Sequence[str] = (),
) -> list[Trial]:
    """A trial for every strategy of every op, or of those named by `only`; `tolerance` is of an op's arrays."""
    rules = rules_of(graph)
    found = monoids(graph, rules)
    trials = []
    for op, rule in zip(graph.ops, rules, strict=True):
        if rule is None or (only and op.name not in only):
            continue
        operands = [operand(a, values) for a in op.inputs]
        results = [values[v.id] for v in op.outputs]
        allowed = tolerance([*operands, *results])
        for strategy in every_strategy(op, rule, mesh, found):
            trials.append(Trial(op, rule, mesh, strategy, operands, results, allowed))
    return trials


def every_strategy(op: Op, rule: Rule, mesh: Mapping[str, int], found: Sequence[str | None]) -> tuple[Strategy, ...]:
    """The strategies that the planner would see."""
    before = [found[a.id] if isinstance(a, Value) else "sum" for a in op.inputs]
    after = [found[v.id] for v in op.outputs]
    return strategies(op, rule, mesh, before, after)
