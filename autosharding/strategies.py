"""Strategies: every way to hand mesh axes to the factors of one op.

On each axis an op does one of three things: it splits a factor, it passes partial sums through, or it repeats the same
work on all devices of the axis. A strategy is one choice per axis; several axes may split one factor. What the op then
reads and leaves, per operand and result, follows from the rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from autosharding.graph import Atom, Graph, Literal, Op, Value
from autosharding.rules import Dims, Rule, numeric
from autosharding.spec import Spec


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to run an op.

    Attributes:
        factors: (factor, its mesh axes, major first), only those that are split.
        operands: the spec of each input as the op reads it; literals and free values too.
        results: the spec of each output as the op leaves it.
    """

    factors: tuple[tuple[str, tuple[str, ...]], ...]
    operands: tuple[Spec, ...]
    results: tuple[Spec, ...]

    def parts(self, mesh: Mapping[str, int]) -> int:
        """Among how many devices the op's work is divided."""
        return prod(mesh[a] for _, axes in self.factors for a in axes)


def monoid_of(op: Op, rule: Rule, operand_monoid: str | None, result: Value) -> str | None:
    """The monoid of a result's partial states: that of its reduction, of the data moved, or a sum; None if never."""
    reductions = set(rule.reduced.values())
    if reductions and reductions != {"sum"}:
        return reductions.pop() if len(reductions) == 1 else None
    if rule.moves_data and operand_monoid is not None:
        return operand_monoid
    return "sum" if numeric(result) else None


def monoids(graph: Graph, rules: Sequence[Rule | None]) -> tuple[str | None, ...]:
    """For each value id the monoid of its partial states (see `monoid_of`); lanes pass it on, carried ones are sums."""
    found: list[str | None] = ["sum" if numeric(v) else None for v in graph.values]
    for op, rule in zip(graph.ops, rules, strict=True):
        for v in op.outputs:
            if rule is None:
                source = _lane_source(graph, v)
                found[v.id] = found[source.id] if isinstance(source, Value) else found[v.id]
            else:
                source = op.inputs[0] if op.inputs else None
                found[v.id] = monoid_of(op, rule, found[source.id] if isinstance(source, Value) else None, v)
    return tuple(found)


def _lane_source(graph: Graph, v: Value) -> Atom | None:
    """What goes in where a border makes `v`; None for a carried array, which has two sources."""
    crossing = graph.lanes[graph.lane_made[v.id][0]]
    if crossing.lane.is_carried:
        return None
    index, position, _ = crossing.reads[0]
    return graph.ops[index].inputs[position]


def strategies(
    op: Op,
    rule: Rule,
    mesh: Mapping[str, int],
    operand_monoids: Sequence[str | None],
    result_monoids: Sequence[str | None],
    *,
    partial_operands: bool = True,
) -> tuple[Strategy, ...]:
    """All strategies of an op on a mesh; the first is replicated.

    Args:
        op: the op.
        rule: its rule.
        mesh: axis -> size.
        operand_monoids: for each input the monoid of its partial states (None: it cannot be partial).
        result_monoids: the same for each output.
        partial_operands: False leaves out partial sums that pass through.
    """
    if rule.specs is not None:
        return (Strategy((), *rule.specs(mesh)),)
    options: list[object] = [None, *_splittable(rule)]
    if partial_operands and rule.known:
        options += _passes(op, rule, operand_monoids)
    found: dict[tuple[tuple[Spec, ...], tuple[Spec, ...]], Strategy] = {}
    for choice in product(options, repeat=len(mesh)):
        strategy = _strategy(op, rule, mesh, dict(zip(mesh, choice, strict=True)), operand_monoids, result_monoids)
        if strategy is not None:
            found.setdefault((strategy.operands, strategy.results), strategy)
    return tuple(found.values())


def _splittable(rule: Rule) -> list[str]:
    shown = {f for dims in (*rule.operands, *rule.results) for d in dims for f in d}
    return [f for f, n in rule.sizes.items() if n > 1 and f in shown and f not in rule.whole]


def _passes(op: Op, rule: Rule, operand_monoids: Sequence[str | None]) -> Iterator[frozenset[int]]:
    """Operand sets whose partial states pass through; data movers pass any monoid."""
    if rule.moves_data and operand_monoids and operand_monoids[0] is not None:
        yield frozenset({0})
        return
    for members in rule.linear:
        held = [i for i in members if isinstance(op.inputs[i], Value)]
        if held and all(operand_monoids[i] == "sum" for i in held):
            yield members


def _strategy(
    op: Op,
    rule: Rule,
    mesh: Mapping[str, int],
    choice: Mapping[str, object],
    operand_monoids: Sequence[str | None],
    result_monoids: Sequence[str | None],
) -> Strategy | None:
    factors: dict[str, list[str]] = {}
    for axis, option in choice.items():
        if isinstance(option, str):
            factors.setdefault(option, []).append(axis)
    if not _divides(rule, factors, mesh):
        return None
    reducing = [a for a, o in choice.items() if isinstance(o, str) and o in rule.reduced]
    if reducing and any(operand_monoids[i] != "sum" for i in rule.added):
        return None
    passing = {a: o for a, o in choice.items() if isinstance(o, frozenset)}
    operands = []
    for i, dims in enumerate(rule.operands):
        partial = [a for a in mesh if (a in passing and i in passing[a]) or (a in reducing and i in rule.added)]
        operands.append(_spec(dims, factors, partial, operand_monoids[i]))
    results = []
    for i, dims in enumerate(rule.results):
        partial = [a for a in mesh if a in passing or a in reducing]
        if partial and not _agrees(rule, choice, result_monoids[i]):
            return None
        results.append(_spec(dims, factors, partial, result_monoids[i]))
    return Strategy(tuple((f, tuple(a)) for f, a in factors.items()), tuple(operands), tuple(results))


def _divides(rule: Rule, factors: Mapping[str, Sequence[str]], mesh: Mapping[str, int]) -> bool:
    """Whether every split factor divides, inside a dim only its major part is cut, and the op can be run so."""
    parts = {f: prod(mesh[a] for a in axes) for f, axes in factors.items()}
    if any(rule.sizes[f] % p for f, p in parts.items()) or (rule.admits is not None and not rule.admits(parts)):
        return False
    for dims in (*rule.operands, *rule.results):
        for dim in dims:
            if not _major_first(dim, parts, rule.sizes):
                return False
    return True


def _major_first(dim: Sequence[str], parts: Mapping[str, int], sizes: Mapping[str, int]) -> bool:
    open_factor = False
    for f in dim:
        if f in parts and open_factor:
            return False
        open_factor |= parts.get(f, 1) != sizes[f]
    return True


def _agrees(rule: Rule, choice: Mapping[str, object], monoid: str | None) -> bool:
    """Whether all that makes a result partial joins by the result's own monoid."""
    if monoid is None:
        return False
    joined = {rule.reduced[o] for o in choice.values() if isinstance(o, str) and o in rule.reduced}
    if any(isinstance(o, frozenset) for o in choice.values()) and not rule.moves_data:
        joined.add("sum")
    return joined <= {monoid}


def _spec(dims: Dims, factors: Mapping[str, Sequence[str]], partial: Sequence[str], monoid: str | None) -> Spec:
    split = tuple(tuple(a for f in dim for a in factors.get(f, ())) for dim in dims)
    return Spec(split, tuple(partial), (monoid or "sum") if partial else "sum")


def free_operands(op: Op, graph: Graph) -> tuple[bool, ...]:
    """Which inputs cost nothing in any spec: literals, and values made of literals alone."""
    return tuple(isinstance(a, Literal) or graph.is_free(a) for a in op.inputs)
