"""Loops over layers taken apart: a `scan` over stacked parameters as scans of slices of them, one after another.

A pipeline cuts between ops, and a `scan` is one. Where it runs over parameters, its slices hand the carry on, the last
one's to the next; its transposed scan in the backward pass goes from the last slice to the first. The dim of the layers
is followed through the rest of the step by the factors of the rules: gradients, moments and new parameters are made
slice by slice, a norm of them is a sum over the slices, and each slice of an argument is an argument of its own, so
that a stage holds the slices of its own layers alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax

from autosharding import _jax
from autosharding.capture import from_jaxpr
from autosharding.graph import Atom, Graph, Op, Value
from autosharding.microbatch.loop import joins
from autosharding.microbatch.slice import runs_in_pieces, slice_of
from autosharding.microbatch.states import WHOLE, Cut, Partial, Sliced, State, is_uncuttable, sliced_by
from autosharding.planner.roles import roles
from autosharding.rules import Rule, rules_of
from autosharding.run_graph import Plain


@dataclass(frozen=True)
class InSlices:
    """A step whose loops over layers are taken apart.

    Attributes:
        graph: the step on slices.
        state: result index -> index of the input whose new state it is, of the graph on slices.
        donated: inputs whose buffers their new state takes over, of the graph on slices.
        inputs: where each input of the step is among those of the graph on slices.
        outputs: likewise of its results.
        pieces: into how many pieces it was to be cut.
    """

    graph: Graph
    state: Mapping[int, int]
    donated: frozenset[int]
    inputs: tuple[Place, ...]
    outputs: tuple[Place, ...]
    pieces: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where an array of the step is in the step on slices.

    Attributes:
        first: index of its first slice.
        count: how many slices it has.
        dim: along which.
    """

    first: int
    count: int = 1
    dim: int = 0

    @property
    def indices(self) -> range:
        """Of its slices."""
        return range(self.first, self.first + self.count)


def in_slices(graph: Graph, state: Mapping[int, int], donated: Set[int], pieces: int) -> InSlices:
    """Take the loops over layers apart, so that the step can be cut into some pieces.

    Args:
        graph: the step.
        state: result index -> index of the input whose new state it is.
        donated: inputs whose buffers their new state takes over.
        pieces: how many; each loop gets the least number of equal slices that is no less, if it runs so often. For one
            piece all stays as it is.
    """
    layers = Layers(graph, state, pieces)
    cut = layers.arguments
    ins = _places(layers, graph.inputs, [i in cut for i in range(len(graph.inputs))])
    outs = _places(layers, graph.outputs, [state.get(o) in cut for o in range(len(graph.outputs))])
    if not layers.loops:
        return InSlices(graph, state, frozenset(donated), ins, outs, pieces)
    made = from_jaxpr(
        _jax.trace(
            lambda *leaves: _InSlices(layers).leaves(leaves, ins, outs),
            [aval for v, p in zip(graph.inputs, ins, strict=True) for aval in _avals(v, p)],
        ),
        name=graph.name,
        input_names=_names(graph.input_names, graph.inputs, ins),
        output_names=_names(graph.output_names, graph.outputs, outs),
    )
    made = replace(made, constants=(*graph.constants, *made.constants))
    pairs = [(ins[i], outs[o]) for o, i in state.items()]
    new_state = {o: i for a, b in pairs for i, o in zip(a.indices, b.indices, strict=True)}
    given = frozenset(i for k in donated for i in ins[k].indices)
    return InSlices(made, new_state, given, ins, outs, pieces)


def _places(layers: Layers, atoms: Sequence[Atom], cut: Sequence[bool]) -> tuple[Place, ...]:
    found, first = [], 0
    for a, is_cut in zip(atoms, cut, strict=True):
        place = Place(first, layers.count(a), layers.dims[a.id]) if is_cut and isinstance(a, Value) else Place(first)
        found.append(place)
        first += place.count
    return tuple(found)


def _avals(v: Value, place: Place) -> list[jax.ShapeDtypeStruct]:
    shape = tuple(n // place.count if d == place.dim else n for d, n in enumerate(v.shape))
    return [jax.ShapeDtypeStruct(shape, v.aval.dtype, weak_type=v.aval.weak_type)] * place.count


def _names(names: Sequence[str], atoms: Sequence[Atom], places: Sequence[Place]) -> list[str]:
    found = []
    for name, a, place in zip(names, atoms, places, strict=True):
        each = a.shape[place.dim] // place.count if place.count > 1 else 0
        runs = [f"[{':, ' * place.dim}{k * each}:{(k + 1) * each}]" for k in range(place.count)]
        found += [name + run for run in runs] if place.count > 1 else [name]
    return found


class Layers:
    """Where the dim of the layers is in a step, and what is done slice by slice.

    Args:
        graph: the step.
        state: result index -> index of the input whose new state it is.
        pieces: into how many pieces the step is to be cut.

    Attributes:
        dims: id of each value that has the dim -> which it is.
        loops: ops that open the loops that are taken apart.
        cuts: index of each op that is done slice by slice -> how it is cut.
    """

    def __init__(self, graph: Graph, state: Mapping[int, int], pieces: int) -> None:
        self.graph, self.state, self.pieces = graph, state, pieces
        self.rules = rules_of(graph)
        self.dims: dict[int, int] = {}
        self.loops: dict[int, int] = {}
        self.cuts: dict[int, Cut] = {}
        if pieces > 1:
            for opening in self._over_parameters():
                self._take_apart(opening)
            self._follow()

    def slices(self, runs: int) -> int:
        """Into how many slices a loop of so many runs is taken apart."""
        return next((k for k in range(self.pieces, runs + 1) if runs % k == 0), runs)

    def count(self, v: Value) -> int:
        """How many slices a value has."""
        return self.slices(v.shape[self.dims[v.id]])

    @cached_property
    def arguments(self) -> frozenset[int]:
        """Inputs of which each slice is an argument of its own: weights, or their new state is made in slices too."""
        found = {i for i in self.weights if self.graph.inputs[i].id in self.dims}
        for o, i in self.state.items():
            old, new = self.graph.inputs[i], self.graph.outputs[o]
            if isinstance(new, Value) and self.dims.get(old.id, -1) == self.dims.get(new.id, -2):
                found.add(i)
        return frozenset(found)

    @cached_property
    def weights(self) -> frozenset[int]:
        """Inputs that are weights of a step which hands on no new ones."""
        kinds = enumerate(roles(self.graph, self.state))
        return frozenset(i for i, kind in kinds if kind == "parameter") - set(self.state.values())

    # ---- which loops -----------------------------------------------------------------------------------------

    def _over_parameters(self) -> list[int]:
        """The loops of the forward pass, outside of others, over slices of what is made of state or weights alone."""
        graph = self.graph
        of_state = {graph.inputs[i].id for i in (*self.state.values(), *self.weights)}
        for op in graph.ops:
            if op.region is None and op.values and all(v.id in of_state for v in op.values):
                of_state.update(v.id for v in op.outputs)
        return [
            i
            for i in graph.borders
            if self._is_loop(graph.ops[i])
            and graph.ops[i].phase == "forward"
            and any(v.id in of_state for v in self._stacks(i))
        ]

    def _is_loop(self, op: Op) -> bool:
        assert op.region is not None
        return op.region.kind == "scan" and not self.graph.depths[op.index] and op.region.times > 1

    def _goes_with_others(self, op: Op) -> bool:
        """Whether a loop runs over what has the dim: the transposed one over what that of the forward pass left."""
        return self._is_loop(op) and any(self.dims.get(v.id) == 0 for v in self._stacks(op.index))

    def _stacks(self, opening: int) -> list[Value]:
        """The arrays outside a loop that have an entry for each of its runs."""
        found = []
        for crossing in (c for c in self.graph.lanes if c.opening == opening):
            read = [self.graph.ops[i].inputs[p] for i, p, stacked in crossing.reads if stacked]
            found += [a for a in read if isinstance(a, Value)] + [v for v, stacked in crossing.makes if stacked]
        return found

    def _take_apart(self, opening: int) -> None:
        region = self.graph.ops[opening].region
        assert region is not None
        self.loops[opening] = self.slices(region.times)
        for v in self._stacks(opening):
            self.dims.setdefault(v.id, 0)

    # ---- where their dim goes --------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Follow the dim, forth and back, until no value more has it."""
        outside = [op for op, depth in zip(self.graph.ops, self.graph.depths, strict=True) if not depth]
        count = -1
        while count < len(self.dims):
            count = len(self.dims)
            for op in outside:
                if op.region is None:
                    self._follow_through(op)
                elif op.index in self.graph.borders and op.index not in self.loops and self._goes_with_others(op):
                    self._take_apart(op.index)

    def _follow_through(self, op: Op) -> None:
        """Through an op whose operands and results have the dim as one factor."""
        rule = self.rules[op.index]
        assert rule is not None
        arrays = [*zip(op.inputs, rule.operands, strict=True), *zip(op.outputs, rule.results, strict=True)]
        found = {dims[self.dims[a.id]] for a, dims in arrays if isinstance(a, Value) and a.id in self.dims}
        if len(found) != 1 or len(next(iter(found))) != 1:
            self.cuts.pop(op.index, None)
            return
        ((factor,),) = found
        cut = Cut(factor, 1, rule.sizes[factor] // self.slices(rule.sizes[factor]))
        if not self._runs_in_slices(op, rule, cut):
            return
        self.cuts[op.index] = cut
        for a, dims in arrays:
            if isinstance(a, Value) and (factor,) in dims:
                self.dims.setdefault(a.id, dims.index((factor,)))

    def _runs_in_slices(self, op: Op, rule: Rule, cut: Cut) -> bool:
        count = self.slices(rule.sizes[cut.factor])
        if op.effects or is_uncuttable(rule, cut, count) or cut.factor in rule.joined or rule.added:
            return False
        return runs_in_pieces(slice_of(op, rule, cut, *states_of(op, rule, cut), count, 0))


def states_of(op: Op, rule: Rule, cut: Cut) -> tuple[Sequence[State], Sequence[State]]:
    """What the operands and results of an op are to one slice of it."""
    monoid = rule.reduced.get(cut.factor)
    made = Partial(monoid) if monoid else WHOLE
    reads = [sliced_by(cut, dims, rule.sizes) or WHOLE for dims in rule.operands]
    return reads, [sliced_by(cut, dims, rule.sizes) or made for dims in rule.results]


class _InSlices(Plain):
    """One trace of the step."""

    def __init__(self, layers: Layers) -> None:
        super().__init__(layers.graph)
        self.layers = layers
        self.parts: dict[int, list[Any]] = {}

    def leaves(self, arrays: Sequence[Any], ins: Sequence[Place], outs: Sequence[Place]) -> list[Any]:
        """The results, cut as `outs` says, of inputs cut as `ins` says."""
        for v, place in zip(self.graph.inputs, ins, strict=True):
            given = [arrays[i] for i in place.indices]
            if place.count > 1:
                self.parts[v.id] = given
            else:
                (self.made[v.id],) = given
        self.run(0, len(self.graph.ops))
        return [
            x
            for a, place in zip(self.graph.outputs, outs, strict=True)
            for x in (self._slices(a) if place.count > 1 and isinstance(a, Value) else [self.read(a)])
        ]

    def inner(self, pulse: Any) -> Plain:
        """Bodies run as they are."""
        return Plain(self.graph, pulse)

    def read(self, a: Atom) -> Any:
        """A whole array."""
        if isinstance(a, Value) and a.id not in self.made:
            self.made[a.id] = jax.lax.concatenate(self.parts[a.id], self.layers.dims[a.id])
        return super().read(a)

    def _slices(self, v: Value) -> list[Any]:
        """An array that has the dim of the layers, in slices."""
        if v.id not in self.parts:
            x, dim, count = self.made[v.id], self.layers.dims[v.id], self.layers.count(v)
            each = x.shape[dim] // count
            self.parts[v.id] = [jax.lax.slice_in_dim(x, k * each, (k + 1) * each, axis=dim) for k in range(count)]
        return self.parts[v.id]

    def _run_one(self, op: Op) -> None:
        if op.index in self.layers.loops:
            self._run_loop(op)
        elif op.index in self.layers.cuts:
            self._run_cut(op, self.layers.cuts[op.index])
        else:
            super()._run_one(op)

    def _run_cut(self, op: Op, cut: Cut) -> None:
        """An op, slice by slice."""
        rule = self.layers.rules[op.index]
        assert rule is not None
        count = self.layers.slices(rule.sizes[cut.factor])
        reads, makes = states_of(op, rule, cut)
        for at in range(count):
            operands = [self._operand(a, s, at) for a, s in zip(op.inputs, reads, strict=True)]
            results = slice_of(op, rule, cut, reads, makes, count, at).compute(*operands)
            for v, s, x in zip(op.outputs, makes, results, strict=True):
                if isinstance(s, Sliced):
                    self.parts.setdefault(v.id, []).append(x)
                else:
                    self.made[v.id] = joins(s)(self.made[v.id], x) if at else x

    def _operand(self, a: Atom, state: State, at: int) -> Any:
        if isinstance(state, Sliced) and isinstance(a, Value):
            return self._slices(a)[at]
        return self.read(a)

    def _run_loop(self, op: Op) -> None:
        """A loop as loops over its slices, each beginning with the carry of the one before."""
        graph, count = self.graph, self.layers.loops[op.index]
        closing = graph.ops[graph.borders[op.index][-1]]
        order = range(count)[::-1] if op.params["reverse"] else range(count)
        found: dict[int, dict[int, Any]] = {}
        carries: dict[int, Any] = {}
        for at in order:
            one = _OneSlice(self, at, carries)
            one.run(op.index, op.index + 1)
            found[at] = one.made
            carries = one.carried(op, closing)
        for v in closing.outputs:
            if graph.lane_made[v.id][1]:
                self.parts[v.id] = [found[at][v.id] for at in range(count)]
            else:
                self.made[v.id] = found[order[-1]][v.id]


class _OneSlice(Plain):
    """A loop over one slice.

    Args:
        whole: what is made of the step so far.
        at: which slice.
        carries: lane -> what the slice before has left; empty for the first.
    """

    def __init__(self, whole: _InSlices, at: int, carries: Mapping[int, Any]) -> None:
        super().__init__(whole.graph)
        self.whole, self.at, self.carries = whole, at, carries

    def inner(self, pulse: Any) -> Plain:
        """Bodies run as they are."""
        return Plain(self.graph, pulse)

    def operands(self, op: Op) -> list[Any]:
        """What the loop reads."""
        return [self._operand(a, *self.graph.lane_read[op.index, p]) for p, a in enumerate(op.inputs)]

    def _operand(self, a: Atom, lane: int, stacked: bool) -> Any:
        if lane in self.carries:
            return self.carries[lane]
        if stacked and isinstance(a, Value):
            return self.whole._slices(a)[self.at]
        return self.whole.read(a)

    def loop_params(self, op: Op) -> Mapping[str, Any]:
        """With the length of a slice."""
        return {**op.params, "length": op.params["length"] // self.whole.layers.loops[op.index]}

    def carried(self, op: Op, closing: Op) -> dict[int, Any]:
        """Lane -> what the slice leaves to the next."""
        lanes = {self.graph.lane_made[v.id][0]: v for v in closing.outputs}
        return {n: self.made[v.id] for n, v in lanes.items() if self.graph.lanes[n].lane.is_carried}
