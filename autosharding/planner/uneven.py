"""Dims that an axis of the mesh does not divide: the plan's notes say where they are, and what is split instead.

No array is padded: a factor is split over an axis only where that divides it, and else the axis goes to another factor,
or all its devices do the same. Dims shorter than the axis are left out: they are short, not uneven.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autosharding.graph import Graph, Op
from autosharding.plan import Step
from autosharding.rules import Rule


@dataclass
class _Uneven:
    """The ops with a factor of one size that one axis does not divide; grows during one call of `uneven`."""

    first: Op
    ops: int = 0
    seconds: float = 0.0
    instead: Counter[int | None] = field(default_factory=Counter)
    """Size of the factor that is split over the axis -> how many ops do so; None where they all do the same."""


def uneven(
    graph: Graph, rules: Sequence[Rule | None], steps: Sequence[Step], mesh: Mapping[str, int]
) -> tuple[str, ...]:
    """A note for each size of dims and each axis that does not divide it, those of the costliest ops first."""
    found: dict[tuple[int, str], _Uneven] = {}
    for op, rule, step in zip(graph.ops, rules, steps, strict=True):
        if rule is None or op.is_free:
            continue
        split = {axis: rule.sizes[f] for f, axes in step.factors for axis in axes}
        sizes = {n for f, n in rule.sizes.items() if f not in rule.whole}
        for n, axis in ((n, axis) for n in sizes for axis, parts in mesh.items() if n > parts and n % parts):
            one = found.setdefault((n, axis), _Uneven(op))
            one.ops += 1
            one.seconds += step.seconds * step.times
            one.instead[split.get(axis)] += 1
    ordered = sorted(found.items(), key=lambda item: -item[1].seconds)
    return tuple(_note(graph, n, axis, mesh[axis], one) for (n, axis), one in ordered)


def _note(graph: Graph, n: int, axis: str, size: int, found: _Uneven) -> str:
    names = [name for name, v in zip(graph.input_names, graph.inputs, strict=True) if n in v.shape]
    others = f" and {len(names) - 1} more" if names[1:] else ""
    where = f" (of {names[0]}{others})" if names else ""
    choices = [
        f"{count} split{_s(count)} a dim of {other} over {axis} instead"
        for other, count in found.instead.most_common()
        if other is not None
    ]
    if alike := found.instead[None]:
        choices.append(f"{alike} run{_s(alike)} alike on all devices of {axis}")
    return (
        f"{axis}={size} does not divide {n}{where}: of {found.ops} ops with a dim of {n}, the first of them "
        f"{found.first.where}, {', '.join(choices)}"
    )


def _s(count: int) -> str:
    """The ending of a verb."""
    return "s" if count == 1 else ""
