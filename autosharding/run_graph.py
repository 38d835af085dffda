"""How a graph runs, whatever its ops are run by: in program order, each region as the loop or branch that it was.

`Run` walks; what an op reads and makes is said by its kinds: the executor's runs a plan on local shards, `Plain` binds
each op as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from autosharding import _jax
from autosharding.graph import Graph, Lane, Literal, Op


class Run:
    """One trace of a graph, or of one body of it.

    Attributes:
        pulse: inside a loop an array that differs from run to run of the body; None where there is none.
        made: value id -> the array.
    """

    def __init__(self, graph: Graph, pulse: Any = None) -> None:
        self.graph = graph
        self.pulse = pulse
        self.made: dict[int, Any] = {}

    def operands(self, op: Op) -> list[Any]:
        """What an op reads."""
        raise NotImplementedError

    def results(self, op: Op) -> Sequence[Any]:
        """What an op makes, that is no border."""
        raise NotImplementedError

    def inner(self, pulse: Any) -> Run:
        """For a body."""
        raise NotImplementedError

    def runs(self, op: Op) -> bool:
        """Whether an op runs here; values made of literals alone are made by their readers."""
        return not op.is_free

    def loop_params(self, op: Op) -> Mapping[str, Any]:
        """The length of a `scan` and the like, given the op that opens it."""
        return op.params

    def at_barrier(self, op: Op) -> dict[int, Any]:
        """What a barrier reads here, by lane."""
        return dict(enumerate(self.operands(op)))

    def run_all(self, leaves: Sequence[Any]) -> None:
        """All ops, given the inputs."""
        self.made.update((v.id, x) for v, x in zip(self.graph.inputs, leaves, strict=True))
        self.run(0, len(self.graph.ops))

    def run(self, first: int, last: int) -> None:
        """The ops from `first` up to `last`; bodies of regions run with the op that opens them."""
        while first < last:
            op = self.graph.ops[first]
            if self.runs(op):
                self._run_one(op)
            first = self.graph.borders[first][-1] + 1 if op.region is not None else first + 1

    def _run_one(self, op: Op) -> None:
        if op.region is None:
            self.made.update((v.id, x) for v, x in zip(op.outputs, self.results(op), strict=True))
            return
        with _jax.scope(op.context):
            _REGIONS[op.region.kind](self, op)

    def body(self, border: Op, given: Mapping[int, Any], pulse: Any) -> list[Any]:
        """Run the body that begins at a border; returns what its other border reads.

        Args:
            border: its beginning.
            given: lane of the region -> the array on this device.
            pulse: an array that differs from run to run of the body; None where there is none.
        """
        assert border.region is not None
        inner = self.inner(pulse)
        inner.define(border, given)
        after = self.graph.border_after[border.index]
        inner.run(border.index + 1, after)
        return inner.operands(self.graph.ops[after])

    def define(self, border: Op, given: Mapping[int, Any]) -> None:
        """What a border makes, by lane."""
        assert border.region is not None
        for n, x in given.items():
            for p in border.region.lanes[n].makes:
                if p.border == border.border:
                    self.made[border.outputs[p.position].id] = x


class Plain(Run):
    """Every op as it was traced, on whole arrays or on what a device holds of them."""

    def runs(self, op: Op) -> bool:
        """All do."""
        return True

    def outputs(self, leaves: Sequence[Any]) -> tuple[Any, ...]:
        """What the graph returns."""
        self.run_all(leaves)
        return tuple(self.read(a) for a in self.graph.outputs)

    def inner(self, pulse: Any) -> Plain:
        """For a body."""
        return type(self)(self.graph, pulse)

    def operands(self, op: Op) -> list[Any]:
        """What an op reads."""
        return [self.read(a) for a in op.inputs]

    def results(self, op: Op) -> Sequence[Any]:
        """What an op makes."""
        return _jax.bind(op.primitive, op.context, _jax.unplaced(op.params), self.operands(op))

    def read(self, a: Any) -> Any:
        """An array, or a literal as one."""
        return scalar(a) if isinstance(a, Literal) else self.made[a.id]


def scalar(literal: Literal) -> Any:
    """A literal as an array."""
    return jnp.asarray(literal.value, dtype=literal.aval.dtype)


# ---- regions -------------------------------------------------------------------------------------------------


def _barrier(run: Run, op: Op) -> None:
    given = run.at_barrier(op)
    run.define(op, dict(zip(given, jax.lax.optimization_barrier(tuple(given.values())), strict=True)))


def _scan(run: Run, op: Op) -> None:
    closing = run.graph.ops[run.graph.borders[op.index][-1]]
    entering = _by_lane(op, run.operands(op))
    carried, sliced, pieces = _lanes(op, _is_carried), _lanes(op, _is_sliced), _lanes(op, _is_piece)

    def body(carry: tuple[Any, ...], slices: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        given = entering | dict(zip((*carried, *sliced), (*carry, *slices), strict=True))
        back = _by_lane(closing, run.body(op, given, next(iter((*carry, *slices)), None)))
        return tuple(back[n] for n in carried), tuple(back[n] for n in pieces)

    init, xs = tuple(entering[n] for n in carried), tuple(entering[n] for n in sliced)
    carry, ys = jax.lax.scan(body, init, xs, **run.loop_params(op))
    run.define(closing, dict(zip((*carried, *pieces), (*carry, *ys), strict=True)))


def _while(run: Run, op: Op) -> None:
    middle, closing = (run.graph.ops[i] for i in run.graph.borders[op.index][1:])
    entering = _by_lane(op, run.operands(op))
    carried = _lanes(op, _is_carried)

    def given(carry: tuple[Any, ...]) -> dict[int, Any]:
        return entering | dict(zip(carried, carry, strict=True))

    def condition(carry: tuple[Any, ...]) -> Any:
        return run.body(op, given(carry), carry[0])[0]

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        back = _by_lane(closing, run.body(middle, given(carry), carry[0]))
        return tuple(back[n] for n in carried)

    carry = jax.lax.while_loop(condition, body, tuple(entering[n] for n in carried))
    run.define(closing, dict(zip(carried, carry, strict=True)))


def _cond(run: Run, op: Op) -> None:
    *begins, closing = (run.graph.ops[i] for i in run.graph.borders[op.index])
    entering = _by_lane(op, run.operands(op))
    (index,) = _lanes(op, lambda lane: lane.whole)
    results = _lanes(op, lambda lane: not lane.is_entering)

    def branch(k: int) -> Callable[[], tuple[Any, ...]]:
        def taken() -> tuple[Any, ...]:
            after = run.graph.ops[run.graph.border_after[begins[k].index]]
            back = _by_lane(after, run.body(begins[k], entering, run.pulse))
            return tuple(back[n] for n in results)

        return taken

    made = jax.lax.switch(entering[index], [branch(k) for k in range(len(begins))])
    run.define(closing, dict(zip(results, made, strict=True)))


_REGIONS: Mapping[str, Callable[[Run, Op], None]] = {
    "barrier": _barrier,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}


def _lanes(op: Op, test: Callable[[Lane], bool]) -> list[int]:
    assert op.region is not None
    return [n for n, lane in enumerate(op.region.lanes) if test(lane)]


def _is_carried(lane: Lane) -> bool:
    return lane.is_carried


def _is_sliced(lane: Lane) -> bool:
    return lane.is_entering and lane.is_stacked


def _is_piece(lane: Lane) -> bool:
    return not lane.is_entering


def _by_lane(border: Op, operands: Sequence[Any]) -> dict[int, Any]:
    """What a border reads, by lane; never weakly typed, so that all runs and branches agree."""
    assert border.region is not None
    return {
        n: _strong(operands[p.position])
        for n, lane in enumerate(border.region.lanes)
        for p in lane.reads
        if p.border == border.border
    }


def _strong(x: Any) -> Any:
    return jax.lax.convert_element_type(x, x.dtype) if jax.typeof(x).weak_type else x
