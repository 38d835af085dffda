"""From a function of arrays to a `Graph`: traced once, calls inlined, dead and doubled work removed.

`jit`, custom derivatives and batching, `composite` and `custom_linear_solve` are replaced by their bodies. So is
`jax.checkpoint`; where it is differentiated its arguments first pass an `optimization_barrier`, which is what keeps XLA
from undoing the recomputation. `scan`, `while` and `cond` become regions of the graph (see `capture_regions`).
Closed-over arrays become inputs like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from autosharding import _jax
from autosharding.capture_regions import DRAFTS, Draft
from autosharding.doubles import without_doubles
from autosharding.errors import UnsupportedProgram
from autosharding.graph import Atom, Graph, Lane, Literal, Op, Port, Region, Value, regions
from ilp.collector import collector_paused


@collector_paused()
def capture(
    fun: Callable[..., Any],
    avals: Sequence[Any],
    *,
    name: str = "step",
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Graph:
    """Trace `fun(*leaves)`, which returns a flat sequence of arrays, into a verified graph.

    Args:
        fun: takes and returns flat arrays.
        avals: a `jax.ShapeDtypeStruct` (or array) for each argument.
        name: what the graph is called.
        input_names: a path for each argument.
        output_names: a path for each result.

    Raises:
        UnsupportedProgram: for ordered effects, which no program over several devices can keep.
    """
    return from_jaxpr(_jax.trace(fun, avals), name=name, input_names=input_names, output_names=output_names)


def from_jaxpr(
    closed: Any,
    *,
    name: str = "step",
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Graph:
    """The graph of a traced step."""
    jaxpr, consts = _jax.open_jaxpr(closed)
    flat = _Flattener()
    arguments = [flat.value(v.aval) for v in jaxpr.invars]
    constants = [flat.constant(c) for c in consts]
    env: dict[Any, Atom] = dict(zip(jaxpr.invars, arguments, strict=True))
    env.update(zip(jaxpr.constvars, constants, strict=True))
    outputs = flat.run(jaxpr, env, _jax.empty_stack())
    inputs = [*arguments, *(v for v, _ in flat.constants)]
    given = list(input_names or (f"[{i}]" for i in range(len(arguments))))
    graph = Graph(
        name=name,
        inputs=tuple(inputs),
        input_names=(*given, *(f"const_{i}" for i in range(len(flat.constants)))),
        constants=tuple(c for _, c in flat.constants),
        ops=tuple(flat.ops),
        outputs=tuple(outputs),
        output_names=tuple(output_names or (f"[{i}]" for i in range(len(outputs)))),
    )
    return renumber(_inference_is_forward(without_dead_code(without_doubles(graph)))).verify()


class _Flattener:
    """Walks jaxprs depth first and appends ops; the only mutable thing in capture, alive during one call."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.constants: list[tuple[Value, Any]] = []
        self._n_values = 0
        self._drafts: list[Draft] = []
        self._cheap: dict[int, Op] = {}
        self._seen_constants: list[dict[int, Value]] = [{}]
        self._lines: dict[int, tuple[Any, str]] = {}
        self._calls: list[str] = []  # the lines of the calls that we are in
        self._barrier = _jax.barrier_primitive()

    def value(self, aval: Any) -> Value:
        """A new value."""
        short, long, itemsize = _jax.dtype_facts(aval)
        self._n_values += 1
        return Value(self._n_values - 1, tuple(aval.shape), short, long, itemsize, aval)

    def constant(self, array: Any) -> Atom:
        """A closed-over array: scalars of Python and numpy are literals, all else an input of its own."""
        if isinstance(array, (bool, int, float, complex, np.generic)):
            aval = _jax.jax.typeof(array)
            return Literal(array, _jax.dtype_facts(aval)[0], aval)
        return self._constant_at(len(self._drafts), array)

    def _constant_at(self, depth: int, array: Any) -> Value:
        """The array as the bodies `depth` deep see it: an input of the step, handed in through all borders."""
        seen = self._seen_constants[depth]
        if id(array) not in seen:
            seen[id(array)] = self.value(_jax.jax.typeof(array))
            if depth == 0:
                self.constants.append((seen[id(array)], array))
            else:
                self._drafts[depth - 1].hand_in(self._constant_at(depth - 1, array), seen[id(array)])
        return seen[id(array)]

    def run(self, jaxpr: Any, env: dict[Any, Atom], stack: Any) -> list[Atom]:
        """Append the ops of one jaxpr under the scopes of `stack`; returns what it returns."""

        def read(v: Any) -> Atom:
            if isinstance(v, _jax.JaxprLiteral):
                return Literal(v.val, _jax.dtype_facts(v.aval)[0], v.aval)
            return env[v]

        for eqn in jaxpr.eqns:
            here = stack + eqn.source_info.name_stack
            inputs = [read(v) for v in eqn.invars]
            body = _jax.inlined_body(eqn)
            if body is not None:
                outputs: Sequence[Atom] = self._inline(eqn, body, inputs, here)
            elif eqn.primitive.name in DRAFTS:
                outputs = self._region(eqn, inputs, here)
            else:
                outputs = self._emit(eqn, inputs, here)
            env.update((v, o) for v, o in zip(eqn.outvars, outputs, strict=True) if not _jax.is_drop(v))
        return [read(v) for v in jaxpr.outvars]

    def _inline(self, eqn: Any, body: Any, inputs: list[Atom], stack: Any) -> list[Atom]:
        inner, consts = _jax.open_jaxpr(body)
        if _jax.is_barrier_region(eqn):
            inputs = self._barred(eqn, inputs, stack)
        env = dict(zip(inner.invars, _jax.inlined_inputs(eqn, inputs), strict=True))
        env.update(zip(inner.constvars, map(self.constant, consts), strict=True))
        self._calls.append(self._line(eqn))
        outputs = self.run(inner, env, stack)
        self._calls.pop()
        return outputs

    def _barred(self, eqn: Any, inputs: list[Atom], stack: Any) -> list[Atom]:
        held = [a for a in inputs if isinstance(a, Value)]
        passed = [self.value(a.aval) for a in held]
        self._append(
            eqn,
            stack,
            "optimization_barrier",
            held,
            passed,
            params={},
            primitive=self._barrier,
            region=_barrier(len(held)),
        )
        after = iter(passed)
        return [next(after) if isinstance(a, Value) else a for a in inputs]

    def _region(self, eqn: Any, inputs: list[Atom], stack: Any) -> Sequence[Atom]:
        """The bodies of a `scan`, `while` or `cond` between their borders."""
        draft = DRAFTS[eqn.primitive.name](eqn, inputs)
        self._check_effects(eqn)
        borders = [len(self.ops)]
        self._append(eqn, stack, draft.kind, (), (), params=draft.params)
        phase = self.ops[-1].phase
        self._drafts.append(draft)
        for body in draft.bodies:
            inner, consts = _jax.open_jaxpr(body)
            self._seen_constants.append({})
            env = dict(zip(inner.invars, self._given(draft, [v.aval for v in inner.invars], inputs), strict=True))
            env.update(zip(inner.constvars, map(self.constant, consts), strict=True))
            draft.end(self.run(inner, env, stack))
            self._seen_constants.pop()
            borders.append(len(self.ops))
            word = "next" if len(borders) <= len(draft.bodies) else "end"
            self._append(eqn, stack, f"{draft.kind}.{word}", (), (), params={})
        self._drafts.pop()
        if phase != "update":  # inside a differentiated op all is of its own phase
            self.ops[borders[0] :] = [replace(op, phase=phase) for op in self.ops[borders[0] :]]
        results = [self.value(v.aval) for v in eqn.outvars]
        region = draft.finished(results)
        for k, (at, ins, outs) in enumerate(zip(borders, draft.ins, draft.outs, strict=True)):
            self.ops[at] = replace(
                self.ops[at], inputs=tuple(ins), outputs=tuple(outs), effects=False, region=region, border=k
            )
        return results

    def _given(self, draft: Draft, avals: Sequence[Any], inputs: Sequence[Atom]) -> list[Atom]:
        """What the next body sees. Broadcasts, iota and zeros are made inside, where they cost no memory."""
        of_outside = draft.of_outside()
        cheap = {i: op for i, p in of_outside.items() if (op := self._cheap_op(inputs[p]))}
        small = {i: op.inputs[0] for i, op in cheap.items() if op.values}
        for i, a in small.items():
            draft.ins[0][of_outside[i]] = a
        given = [self.value(small[i].aval if i in small else aval) for i, aval in enumerate(avals)]
        draft.begin(given)
        seen: list[Atom] = list(given)
        for i, op in cheap.items():
            made = self.value(avals[i])
            self._add(
                replace(op, index=len(self.ops), inputs=(given[i],) if i in small else op.inputs, outputs=(made,))
            )
            seen[i] = made
        return seen

    def _emit(self, eqn: Any, inputs: list[Atom], stack: Any) -> Sequence[Atom]:
        if all(isinstance(a, Literal) for a in inputs) and (folded := _folded(eqn, inputs)):
            return [folded]
        self._check_effects(eqn)
        outputs = [self.value(v.aval) for v in eqn.outvars]
        name = eqn.primitive.name
        region = _barrier(len(outputs)) if name == "optimization_barrier" else None
        self._append(eqn, stack, name, inputs, outputs, params=dict(eqn.params), region=region)
        return outputs

    def _check_effects(self, eqn: Any) -> None:
        for effect in eqn.effects:
            if _jax.is_ordered_effect(effect):
                line = self._line(eqn) or "an unknown line"
                raise UnsupportedProgram(
                    f"The step calls {eqn.primitive.name} with an ordered effect at {line}. "
                    "A program over several devices cannot keep the order of side effects (jax.jit refuses it too). "
                    "Use the unordered form, for example jax.debug.print(..., ordered=False)."
                )

    def _append(
        self,
        eqn: Any,
        stack: Any,
        name: str,
        inputs: Sequence[Atom],
        outputs: Sequence[Value],
        *,
        params: dict[str, Any],
        primitive: Any = None,
        region: Region | None = None,
    ) -> None:
        """One more op, with what the equation says of its place in the user's program."""
        scope, phase = _jax.scope_and_phase(stack)
        self._add(
            Op(
                index=len(self.ops),
                name=name,
                inputs=tuple(inputs),
                outputs=tuple(outputs),
                params=params,
                scope=scope,
                phase=phase,
                source=self._line(eqn),
                effects=region is None and bool(eqn.effects),
                primitive=primitive or eqn.primitive,
                context=_jax.eqn_context(eqn, stack),
                region=region,
            )
        )

    def _cheap_op(self, a: Atom) -> Op | None:
        """The op that makes a value again at next to no cost."""
        return self._cheap.get(a.id) if isinstance(a, Value) else None

    def _add(self, op: Op) -> None:
        self.ops.append(op)
        if op.is_free or (op.name == "broadcast_in_dim" and op.values and op.values[0].size < op.outputs[0].size):
            self._cheap[op.outputs[0].id] = op

    def _line(self, eqn: Any) -> str:
        """The user's line; that of the call, for what JAX itself traced before (the body of `jnp.cumsum`)."""
        tb = eqn.source_info.traceback
        if id(tb) not in self._lines:
            self._lines[id(tb)] = (tb, _jax.user_line(eqn.source_info))  # tb held: its id stays its own
        return self._lines[id(tb)][1] or (self._calls[-1] if self._calls else "")


def _folded(eqn: Any, inputs: list[Atom]) -> Literal | None:
    """A scalar literal cast or passed on is a literal still."""
    if eqn.primitive.name not in ("convert_element_type", "reshard", "copy", "stop_gradient"):
        return None
    aval = eqn.outvars[0].aval
    assert isinstance(inputs[0], Literal)
    return Literal(np.asarray(inputs[0].value).astype(aval.dtype)[()], _jax.dtype_facts(aval)[0], aval)


def _barrier(lanes: int) -> Region:
    return Region("barrier", 0, 1, tuple(Lane((Port(0, i),), (Port(0, i),)) for i in range(lanes)))


def without_dead_code(graph: Graph) -> Graph:
    """Only the ops and lanes that a result or an effect needs; inputs all stay."""
    needed = _Needed(graph.ops)
    for a in graph.outputs:
        needed.atom(a)
    for i, op in enumerate(graph.ops):
        if op.effects:
            needed.op(i)
    needed.follow()
    return replace(graph, ops=tuple(needed.kept()))


class _Needed:
    """What is needed so far: ops, and lanes of regions; alive during one call."""

    def __init__(self, ops: Sequence[Op]) -> None:
        self.ops = ops
        self.groups = {g[0]: g for g in regions(ops)}
        self.opening = {i: g[0] for g in self.groups.values() for i in g}
        self.around = _around(ops, self.opening)
        self.maker = {v.id: (i, j) for i, op in enumerate(ops) for j, v in enumerate(op.outputs)}
        self.lane_of = {
            (group[p.border], p.position): n
            for group in self.groups.values()
            for n, lane in enumerate(self._lanes(group[0]))
            for p in lane.makes
        }
        self.plain: set[int] = set()
        self.lanes: dict[int, set[int]] = {}
        self.waiting: list[int] = []

    def _lanes(self, opening: int) -> tuple[Lane, ...]:
        region = self.ops[opening].region
        assert region is not None
        return region.lanes

    def atom(self, a: Atom) -> None:
        """A value that is read."""
        if isinstance(a, Value):
            self.waiting.append(a.id)

    def op(self, i: int) -> None:
        """An op that runs, and so the regions around it."""
        if i in self.plain:
            return
        self.plain.add(i)
        for a in self.ops[i].inputs:
            self.atom(a)
        self._regions_around(i)

    def _regions_around(self, i: int) -> None:
        for opening in self.around[i]:
            self._region(opening)

    def _region(self, opening: int) -> None:
        if opening in self.lanes:
            return
        self.lanes[opening] = set()
        self._regions_around(opening)
        for n, lane in enumerate(self._lanes(opening)):
            if lane.whole:
                self._lane(opening, n)

    def _lane(self, opening: int, n: int) -> None:
        self._region(opening)
        if n in self.lanes[opening]:
            return
        self.lanes[opening].add(n)
        for p in self._lanes(opening)[n].reads:
            self.atom(self.ops[self.groups[opening][p.border]].inputs[p.position])

    def follow(self) -> None:
        """Everything that what is needed needs."""
        done: set[int] = set()
        while self.waiting:
            value = self.waiting.pop()
            if value in done or value not in self.maker:
                continue
            done.add(value)
            i, j = self.maker[value]
            if i in self.opening:
                self._lane(self.opening[i], self.lane_of[i, j])
            else:
                self.op(i)

    def kept(self) -> Iterator[Op]:
        """The ops that stay, borders with the lanes that stay."""
        regions: dict[int, Region] = {}
        for i, op in enumerate(self.ops):
            if op.region is None:
                if i in self.plain:
                    yield op
                continue
            opening = self.opening[i]
            if opening not in self.lanes:
                continue
            lanes = self.lanes[opening]
            if opening == i:
                regions[i] = op.region.keep(lanes)
            reads = {p.position for n in lanes for p in op.region.lanes[n].reads if p.border == op.border}
            makes = {p.position for n in lanes for p in op.region.lanes[n].makes if p.border == op.border}
            yield replace(
                op,
                region=regions[opening],
                inputs=tuple(a for k, a in enumerate(op.inputs) if k in reads),
                outputs=tuple(v for k, v in enumerate(op.outputs) if k in makes),
            )


def _around(ops: Sequence[Op], opening: Mapping[int, int]) -> list[tuple[int, ...]]:
    """For each position the openings of the regions in whose bodies it stands, outer first."""
    stack: list[int] = []
    found = []
    for i, op in enumerate(ops):
        if op.region is not None and op.border:
            stack.pop()
        found.append(tuple(stack))
        if op.region is not None and op.border < op.region.bodies:
            stack.append(opening[i])
    return found


def _inference_is_forward(graph: Graph) -> Graph:
    """A step that is never differentiated is all forward."""
    if any(op.phase != "update" for op in graph.ops):
        return graph
    return replace(graph, ops=tuple(replace(op, phase="forward") for op in graph.ops))


def renumber(graph: Graph) -> Graph:
    """Value ids and op indices without holes, in order of definition."""
    ids: dict[int, Value] = {}

    def new(v: Value) -> Value:
        ids[v.id] = replace(v, id=len(ids))
        return ids[v.id]

    def now(a: Atom) -> Atom:
        return ids[a.id] if isinstance(a, Value) else a

    inputs = tuple(map(new, graph.inputs))
    ops = tuple(
        replace(op, index=i, inputs=tuple(map(now, op.inputs)), outputs=tuple(map(new, op.outputs)))
        for i, op in enumerate(graph.ops)
    )
    return replace(graph, inputs=inputs, ops=ops, outputs=tuple(map(now, graph.outputs)))
