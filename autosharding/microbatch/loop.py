"""The step as one loop over microbatches: what comes before it, its body, and what comes after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from autosharding import _jax
from autosharding.graph import Atom, Literal, Op, Value
from autosharding.microbatch.blocks import local_params
from autosharding.microbatch.label import Labels, Place
from autosharding.microbatch.slice import joined, slice_of, taken
from autosharding.microbatch.states import (
    TIME,
    WHOLE,
    After,
    Each,
    Ones,
    Own,
    Partial,
    Sliced,
    State,
    Whole,
    cut_of,
)
from autosharding.run_graph import Plain, Run, scalar


def looped(labels: Labels) -> Callable[..., list[Any]]:
    """The step as a function of the graph's inputs, in a loop over microbatches, with the same results."""

    def step(*leaves: Any) -> list[Any]:
        before = Outside(labels, "before")
        before.run_all(leaves)
        terms, pieces = leaving(labels)
        sums, stacks = jax.lax.scan(
            lambda carry, at: _body(labels, before.made, terms, pieces, carry, at),
            tuple(neutral(v, labels.states[v.id]) for v in terms),
            jnp.arange(labels.microbatches, dtype=jnp.int32),
        )
        after = Outside(labels, "after", before.made)
        after.made.update((v.id, x) for v, x in zip(terms, sums, strict=True))
        after.made.update((v.id, joined(x, _sliced(labels, v))) for v, x in zip(pieces, stacks, strict=True))
        after.run(0, len(labels.graph.ops))
        return [after.read(a) for a in labels.graph.outputs]

    return step


def leaving(labels: Labels) -> tuple[list[Value], list[Value]]:
    """What the loop hands on: (terms to be summed, or all the same; pieces to be put together)."""
    graph = labels.graph
    read = {a.id for a in graph.outputs if isinstance(a, Value)}
    for op in graph.ops:
        if labels.places[op.index] == "after" and not graph.depths[op.index]:
            read.update(a.id for a in op.values)
    given = {v.id for v in graph.inputs}
    given.update(v.id for op in graph.ops if labels.places[op.index] == "before" for v in op.outputs)
    gone = read - given
    left = [v for v in graph.values if v.id in gone]
    terms = [v for v in left if isinstance(labels.states[v.id], Partial | Own) or _is_repeated(labels, v)]
    return terms, [v for v in left if isinstance(labels.states[v.id], Sliced)]


def _is_repeated(labels: Labels, v: Value) -> bool:
    """Whether every microbatch makes the same of it."""
    op = labels.graph.producer[v.id]
    made_inside = op is not None and labels.places[op.index] == "loop"
    return made_inside and isinstance(labels.states[v.id], Whole)


def _sliced(labels: Labels, v: Value) -> Sliced:
    state = labels.states[v.id]
    assert isinstance(state, Sliced)
    return state


def _body(
    labels: Labels,
    whole: Mapping[int, Any],
    terms: Sequence[Value],
    pieces: Sequence[Value],
    sums: Sequence[Any],
    at: Any,
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """One microbatch: (the sums with its terms, its pieces)."""
    run = Inside(labels, at)
    for v in labels.graph.values:
        if v.id in whole:
            x, state = whole[v.id], labels.states[v.id]
            run.made[v.id] = taken(x, state, labels.microbatches, at) if isinstance(state, Sliced) else x
    run.run(0, len(labels.graph.ops))
    added = tuple(join(labels, v, s, run.term(v)) for s, v in zip(sums, terms, strict=True))
    return added, tuple(run.made[v.id] for v in pieces)


_JOINS = {
    "sum": jax.lax.add,
    "max": jax.lax.max,
    "min": jax.lax.min,
    "and": jax.lax.bitwise_and,
    "or": jax.lax.bitwise_or,
    "same": lambda _, last: last,
}


def join(labels: Labels, v: Value, sum_: Any, term: Any) -> Any:
    """The terms of a value up to this microbatch's; where it is made in the user's program, there this is done."""
    maker = labels.graph.producer[v.id]
    with _jax.scope(maker.context if maker is not None else None):
        return joins(labels.states[v.id])(sum_, term)


def joins(state: State) -> Callable[[Any, Any], Any]:
    """What joins the terms of two microbatches; of what is the same in each, the last."""
    if isinstance(state, Own):
        return jax.lax.add
    return _JOINS[state.monoid if isinstance(state, Partial) else "same"]


def neutral(v: Value, state: State) -> Any:
    """What changes nothing when it is joined."""
    dtype = v.aval.dtype
    if isinstance(state, Own):
        return jnp.zeros(v.shape, dtype)
    if not isinstance(state, Partial):
        return jax.lax.empty(v.shape, dtype)
    if state.monoid in ("sum", "or"):
        return jnp.zeros(v.shape, dtype)
    if state.monoid == "and":
        return jnp.ones(v.shape, dtype)
    least = state.monoid == "max"
    if jnp.issubdtype(dtype, jnp.inexact):
        return jnp.full(v.shape, -jnp.inf if least else jnp.inf, dtype)
    return jnp.full(v.shape, jnp.iinfo(dtype).min if least else jnp.iinfo(dtype).max, dtype)


class Outside(Plain):
    """What runs on the whole batch, before or after the loop."""

    def __init__(self, labels: Labels, where: Place, made: Mapping[int, Any] | None = None) -> None:
        super().__init__(labels.graph)
        self.labels, self.where = labels, where
        self.made.update(made or {})

    def runs(self, op: Op) -> bool:
        """What has its place here."""
        return self.labels.places[op.index] in (self.where, "everywhere")

    def inner(self, pulse: Any) -> Plain:
        """Bodies run whole."""
        return Plain(self.graph)

    def read(self, a: Atom) -> Any:
        """An array, multiplied by what was not known in the loop."""
        x = super().read(a)
        state = self.labels.states[a.id] if isinstance(a, Value) else None
        for f in state.factors if isinstance(state, Sliced | Partial) else ():
            s = jnp.broadcast_to(self.made[f.value].astype(x.dtype), x.shape)
            x = jax.lax.div(x, s) if f.divides else jax.lax.mul(x, s)
        return x

    def at_barrier(self, op: Op) -> dict[int, Any]:
        """The arrays that are at hand, and are not the loop's."""
        kinds = (After,) if self.where == "after" else (Whole,)
        here = [i for i, s in enumerate(self.labels.parts[op.index].reads) if isinstance(s, kinds)]
        return {i: self.read(op.inputs[i]) for i in here}


class Inside(Run):
    """One microbatch, or a body of a region in it."""

    def __init__(self, labels: Labels, at: Any) -> None:
        super().__init__(labels.graph, at)
        self.labels, self.at = labels, at

    def runs(self, op: Op) -> bool:
        """What has its place in the loop."""
        return self.labels.places[op.index] in ("loop", "everywhere")

    def inner(self, pulse: Any) -> Run:
        """For a body."""
        return Inside(self.labels, self.at)

    def at_barrier(self, op: Op) -> dict[int, Any]:
        """What is the loop's; inside a region, all."""
        reads = self.labels.parts[op.index].reads
        inside = self.labels.places[op.index] == "loop"
        here = [i for i, s in enumerate(reads) if inside or isinstance(s, Sliced | Partial | Own)]
        return {i: self._read(op.inputs[i], reads[i]) for i in here}

    def loop_params(self, op: Op) -> Mapping[str, Any]:
        """Of a loop over the batch the length that a microbatch has."""
        reads = enumerate(self.labels.parts[op.index].reads)
        if not any(self.graph.lane_read[op.index, i][1] and isinstance(s, Sliced) and s.dim == 0 for i, s in reads):
            return op.params
        return {**op.params, "length": op.params["length"] // self.labels.microbatches}

    def operands(self, op: Op) -> list[Any]:
        """What an op reads, as it reads it."""
        return [self._read(a, s) for a, s in zip(op.inputs, self.labels.parts[op.index].reads, strict=True)]

    def results(self, op: Op) -> Sequence[Any]:
        """What an op makes of its part."""
        part, rule = self.labels.parts[op.index], self.labels.rules[op.index]
        if part.cut is None or rule is None:
            params = local_params(op, part.reads[0], self.labels.microbatches) if part.reads else op.params
            return _jax.bind(op.primitive, op.context, _jax.unplaced(params), self.operands(op))
        made = slice_of(op, rule, part.cut, part.reads, part.results, self.labels.microbatches, self.at)
        return made.compute(*self.operands(op))

    def _read(self, a: Atom, as_read: State) -> Any:
        if isinstance(a, Literal):
            return self._once(scalar(a)) if isinstance(as_read, Partial) else scalar(a)
        if isinstance(as_read, Ones):
            return jnp.ones(as_read.spec(a.rank).local_shape(a.shape, {TIME: self.labels.microbatches}), a.aval.dtype)
        state = self.labels.states[a.id]
        if isinstance(as_read, Partial):
            return self._once(self.made[a.id]) if isinstance(state, Whole) else self.term(a)
        if isinstance(state, Sliced | Each) or not isinstance(as_read, Sliced):
            return self._statistic(a)
        if self.graph.is_free(a):
            return self._free(a, as_read)
        return taken(self._statistic(a), as_read, self.labels.microbatches, self.at)

    def term(self, v: Value) -> Any:
        """What this microbatch adds to a sum over all: its term, or its share in a mean of statistics."""
        x = self.made[v.id]
        return x / self.labels.microbatches if isinstance(self.labels.states[v.id], Own) else x

    def _statistic(self, v: Value) -> Any:
        """A term as this microbatch's own statistic; anything else as it is."""
        x, state = self.made[v.id], self.labels.states[v.id]
        return x * self.labels.microbatches if isinstance(state, Partial) and state.monoid == "sum" else x

    def _once(self, x: Any) -> Any:
        """A whole term of a sum: it counts in the first microbatch alone, or as much in each where each has its own."""
        if self.labels.own and jnp.issubdtype(x.dtype, jnp.inexact):
            return x / self.labels.microbatches
        return jnp.where(self.at == 0, x, jnp.zeros_like(x))

    def _free(self, v: Value, wanted: Sliced) -> Any:
        """The part of an array made of literals."""
        op = self.graph.producer[v.id]
        assert op is not None
        rule = self.labels.rules[op.index]
        assert rule is not None
        m = self.labels.microbatches
        cut = cut_of(wanted, rule.results[0], rule.sizes, m)
        if cut is None:
            return taken(self.made[v.id], wanted, m, self.at)
        reads = (WHOLE,) * len(op.inputs)
        (made,) = slice_of(op, rule, cut, reads, (wanted,), m, self.at).compute(
            *(scalar(a) for a in op.inputs if isinstance(a, Literal))
        )
        return made
