"""Control flow as regions of the graph: which lanes a `scan`, `while` or `cond` has, read off its equation.

A carry is one lane from the first border to the last, so that it lies alike before, between and after the runs of the
body: the fixed point is the lane itself. What a body reads of outside is a lane that only enters; the arrays that a
`scan` slices or stacks are lanes with a dim less inside. Constants that a body closes over are handed in as such lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autosharding import _jax
from autosharding.graph import Atom, Lane, Literal, Port, Region, Value

ASSUMED_TRIPS = 8
"""Runs of a loop body for prices where the program does not tell how many."""


@dataclass
class Draft:
    """A region while its bodies are walked.

    Attributes:
        kind: see `Region`.
        bodies: the jaxprs, in the order in which they stand between the borders.
        times: see `Region`.
        lanes: those that the equation itself has; constants handed in are added.
        ins: for each border what goes in.
        params: of the op that opens the region.
    """

    kind: str
    bodies: Sequence[Any]
    times: int
    lanes: list[Lane]
    ins: list[list[Atom]]
    params: dict[str, Any] = field(default_factory=dict)
    outs: list[list[Value]] = field(default_factory=list)

    def of_outside(self) -> dict[int, int]:
        """Position of what the next body is given and only reads -> position among the operands."""
        body = len(self.outs)
        return {
            p.position: lane.reads[0].position
            for lane in self.lanes
            if not (lane.is_carried or lane.is_stacked or lane.whole) and lane.is_entering
            for p in lane.makes
            if p.border == body
        }

    def begin(self, given: Sequence[Value]) -> None:
        """The next body, and what it is given."""
        self.outs.append(list(given))

    def hand_in(self, outside: Atom, inside: Value) -> None:
        """One more array that the body at hand reads."""
        body = len(self.outs) - 1
        self.lanes.append(Lane((Port(0, len(self.ins[0])),), (Port(body, len(self.outs[body])),)))
        self.ins[0].append(outside)
        self.outs[body].append(inside)

    def end(self, returned: Sequence[Atom]) -> None:
        """What the body returns."""
        self.ins.append(list(returned))

    def finished(self, results: Sequence[Value]) -> Region:
        """The region, with what it returns."""
        self.outs.append(list(results))
        return Region(self.kind, len(self.bodies), self.times, tuple(self.lanes))


def _scan(eqn: Any, inputs: Sequence[Atom]) -> Draft:
    """One body, given (constants, carries, slices), returns (carries, pieces)."""
    consts, carries = _jax.scan_counts(eqn.params)
    slices, pieces = len(inputs) - consts - carries, len(eqn.outvars) - carries
    first = consts + carries
    lanes = [
        *(Lane((Port(0, i),), (Port(0, i),)) for i in range(consts)),
        *(_carried(0, consts + i, last=1, at=i, inside=(Port(0, consts + i),)) for i in range(carries)),
        *(Lane((Port(0, first + i, True),), (Port(0, first + i),)) for i in range(slices)),
        *(Lane((Port(1, carries + i),), (Port(1, carries + i, True),)) for i in range(pieces)),
    ]
    kept = {k: eqn.params[k] for k in ("length", "reverse", "unroll", "_split_transpose") if k in eqn.params}
    return Draft("scan", [eqn.params["jaxpr"]], eqn.params["length"], lanes, [list(inputs)], kept)


def _while(eqn: Any, inputs: Sequence[Atom]) -> Draft:
    """Two bodies: the condition, given (its constants, carries), and the body, given (its constants, carries)."""
    asks, does = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    condition, body = eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]
    if condition.out_avals[0].shape:
        condition, body = _jax.unbatched_while(condition, body, asks, does)
        inputs = [*inputs[:asks], *inputs]
        does += asks
    first = asks + does
    lanes = [
        *(Lane((Port(0, i),), (Port(0, i),)) for i in range(asks)),
        *(Lane((Port(0, asks + i),), (Port(1, i),)) for i in range(does)),
        *(
            _carried(0, first + i, last=2, at=i, inside=(Port(0, asks + i), Port(1, does + i)))
            for i in range(len(inputs) - first)
        ),
        Lane((Port(1, 0),), (), whole=True),
    ]
    known = _trips(condition, body, asks, does, inputs)
    return Draft("while", [condition, body], ASSUMED_TRIPS if known is None else known, lanes, [list(inputs)])


def _carried(border: int, position: int, *, last: int, at: int, inside: tuple[Port, ...]) -> Lane:
    return Lane((Port(border, position), Port(last, at)), (*inside, Port(last, at)))


def _cond(eqn: Any, inputs: Sequence[Atom]) -> Draft:
    """One body for each branch, all given the same operands. For prices each is taken to run."""
    branches = eqn.params["branches"]
    n = len(branches)
    lanes = [
        Lane((Port(0, 0),), (), whole=True),
        *(Lane((Port(0, i + 1),), tuple(Port(k, i) for k in range(n))) for i in range(len(inputs) - 1)),
        *(Lane(tuple(Port(k + 1, j) for k in range(n)), (Port(n, j),)) for j in range(len(eqn.outvars))),
    ]
    return Draft("cond", branches, 1, lanes, [list(inputs)])


DRAFTS: Mapping[str, Callable[[Any, Sequence[Atom]], Draft]] = {"scan": _scan, "while": _while, "cond": _cond}
"""Primitive name -> its region, before the bodies are walked."""


# ---- how often a `while` runs ----------------------------------------------------------------------------


def _trips(condition: Any, body: Any, asks: int, does: int, inputs: Sequence[Atom]) -> int | None:
    """Runs of a loop that counts from one literal to another by a third; None for all others."""
    condition, _ = _jax.open_jaxpr(condition)
    body, _ = _jax.open_jaxpr(body)
    if len(condition.eqns) != 1 or condition.outvars[0] is not condition.eqns[0].outvars[0]:
        return None
    test = condition.eqns[0]
    carries = condition.invars[asks:]
    at = next((i for i, v in enumerate(carries) if v is test.invars[0]), None)
    if at is None or test.primitive.name not in _CLOSED:
        return None
    handed = {id(v): a for v, a in zip(condition.invars, [*inputs[:asks], *inputs[asks + does :]], strict=True)}
    for v, before, after in zip(carries, body.invars[does:], body.outvars, strict=True):
        if before is not after:
            handed.pop(id(v))
    start, step = _integer(inputs[asks + does + at]), _step(body, does + at, at)
    stop = _integer(test.invars[1] if isinstance(test.invars[1], _jax.JaxprLiteral) else handed.get(id(test.invars[1])))
    if start is None or stop is None or not step:
        return None
    sign, closed = _CLOSED[test.primitive.name]
    return len(range(start, stop + sign * closed, step)) if sign * step > 0 else None


_CLOSED = {"lt": (1, 0), "le": (1, 1), "gt": (-1, 0), "ge": (-1, 1)}
"""Comparison of a loop -> (which way it counts, whether the end is part of it)."""


def _step(body: Any, given: int, returned: int) -> int | None:
    """By what a body moves one of its carries, when it adds a literal."""
    for e in body.eqns:
        if e.outvars[0] is body.outvars[returned] and e.primitive.name in ("add", "sub"):
            if e.invars[0] is not body.invars[given] or not isinstance(e.invars[1], _jax.JaxprLiteral):
                return None
            by = _integer(e.invars[1])
            return -by if by is not None and e.primitive.name == "sub" else by
    return None


def _integer(a: Any) -> int | None:
    """The whole number that a literal is."""
    value = np.asarray(a.value if isinstance(a, Literal) else a.val if isinstance(a, _jax.JaxprLiteral) else np.nan)
    return int(value) if value.ndim == 0 and np.issubdtype(value.dtype, np.integer) else None
