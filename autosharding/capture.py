"""From a function of arrays to a `Graph`: traced once, calls inlined, dead and doubled work removed.

`jit`, `custom_jvp_call`, `custom_vjp_call` and `closed_call` are replaced by their bodies. So is `jax.checkpoint`;
where it is differentiated its arguments first pass an `optimization_barrier`, which is what keeps XLA from undoing the
recomputation. `scan`, `while` and `cond` stay whole, as ops. Closed-over arrays become inputs like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from autosharding import _jax
from autosharding.errors import UnsupportedProgram
from autosharding.graph import Atom, Graph, Literal, Op, Value


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
        self._seen_constants: dict[int, Value] = {}
        self._lines: dict[int, tuple[Any, str]] = {}
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
        if id(array) not in self._seen_constants:
            self._seen_constants[id(array)] = self.value(_jax.jax.typeof(array))
            self.constants.append((self._seen_constants[id(array)], array))
        return self._seen_constants[id(array)]

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
            outputs = self._emit(eqn, inputs, here) if body is None else self._inline(eqn, body, inputs, here)
            env.update((v, o) for v, o in zip(eqn.outvars, outputs, strict=True) if not _jax.is_drop(v))
        return [read(v) for v in jaxpr.outvars]

    def _inline(self, eqn: Any, body: Any, inputs: list[Atom], stack: Any) -> list[Atom]:
        inner, consts = _jax.open_jaxpr(body)
        if _jax.is_barrier_region(eqn):
            inputs = self._barred(eqn, inputs, stack)
        env = dict(zip(inner.invars, inputs, strict=True))
        env.update(zip(inner.constvars, map(self.constant, consts), strict=True))
        return self.run(inner, env, stack)

    def _barred(self, eqn: Any, inputs: list[Atom], stack: Any) -> list[Atom]:
        held = [a for a in inputs if isinstance(a, Value)]
        passed = [self.value(a.aval) for a in held]
        scope, phase = _jax.scope_and_phase(stack)
        self.ops.append(
            Op(
                index=len(self.ops),
                name="optimization_barrier",
                inputs=tuple(held),
                outputs=tuple(passed),
                params={},
                scope=scope,
                phase=phase,
                source=self._line(eqn),
                effects=False,
                primitive=self._barrier,
                context=_jax.eqn_context(eqn, stack),
            )
        )
        after = iter(passed)
        return [next(after) if isinstance(a, Value) else a for a in inputs]

    def _emit(self, eqn: Any, inputs: list[Atom], stack: Any) -> Sequence[Atom]:
        if all(isinstance(a, Literal) for a in inputs) and (folded := _folded(eqn, inputs)):
            return [folded]
        for effect in eqn.effects:
            if _jax.is_ordered_effect(effect):
                line = self._line(eqn) or "an unknown line"
                raise UnsupportedProgram(
                    f"The step calls {eqn.primitive.name} with an ordered effect at {line}. "
                    "A program over several devices cannot keep the order of side effects (jax.jit refuses it too). "
                    "Use the unordered form, for example jax.debug.print(..., ordered=False)."
                )
        outputs = [self.value(v.aval) for v in eqn.outvars]
        scope, phase = _jax.scope_and_phase(stack)
        self.ops.append(
            Op(
                index=len(self.ops),
                name=eqn.primitive.name,
                inputs=tuple(inputs),
                outputs=tuple(outputs),
                params=dict(eqn.params),
                scope=scope,
                phase=phase,
                source=self._line(eqn),
                effects=bool(eqn.effects),
                primitive=eqn.primitive,
                context=_jax.eqn_context(eqn, stack),
            )
        )
        return outputs

    def _line(self, eqn: Any) -> str:
        tb = eqn.source_info.traceback
        if id(tb) not in self._lines:
            self._lines[id(tb)] = (tb, _jax.user_line(eqn.source_info))  # tb held: its id stays its own
        return self._lines[id(tb)][1]


def _folded(eqn: Any, inputs: list[Atom]) -> Literal | None:
    """A scalar literal cast or passed on is a literal still."""
    if eqn.primitive.name not in ("convert_element_type", "reshard", "copy", "stop_gradient"):
        return None
    aval = eqn.outvars[0].aval
    assert isinstance(inputs[0], Literal)
    return Literal(np.asarray(inputs[0].value).astype(aval.dtype)[()], _jax.dtype_facts(aval)[0], aval)


def without_dead_code(graph: Graph) -> Graph:
    """Only the ops that a result or an effect needs; inputs all stay."""
    needed = {a.id for a in graph.outputs if isinstance(a, Value)}
    kept: list[Op] = []
    for op in reversed(graph.ops):
        if op.name == "optimization_barrier":
            op = _live_lanes(op, needed)
        if op.effects or any(v.id in needed for v in op.outputs):
            kept.append(op)
            needed.update(v.id for v in op.values)
    return replace(graph, ops=tuple(reversed(kept)))


def _live_lanes(op: Op, needed: set[int]) -> Op:
    lanes = [(a, v) for a, v in zip(op.inputs, op.outputs, strict=True) if v.id in needed]
    return replace(op, inputs=tuple(a for a, _ in lanes), outputs=tuple(v for _, v in lanes))


def without_doubles(graph: Graph) -> Graph:
    """Each op on the same operands once (common subexpressions); never across an `optimization_barrier`."""
    same: dict[int, Value] = {}
    seen: dict[Any, tuple[Value, ...]] = {}
    kept: list[Op] = []

    def now(a: Atom) -> Atom:
        return same.get(a.id, a) if isinstance(a, Value) else a

    for op in graph.ops:
        op = replace(op, inputs=tuple(map(now, op.inputs)))
        key = _meaning(op)
        if key is not None and key in seen:
            same.update((v.id, w) for v, w in zip(op.outputs, seen[key], strict=True))
            continue
        if key is not None:
            seen[key] = op.outputs
        kept.append(op)
    return replace(graph, ops=tuple(kept), outputs=tuple(map(now, graph.outputs)))


def _meaning(op: Op) -> Any:
    if op.effects or op.name == "optimization_barrier":
        return None
    atoms = tuple(a.id if isinstance(a, Value) else (str(a.value), a.dtype, str(a.aval)) for a in op.inputs)
    key = (
        op.name,
        atoms,
        tuple(sorted(op.params.items(), key=lambda kv: kv[0])),
        tuple(v.type for v in op.outputs),
    )
    try:
        hash(key)
    except TypeError:
        return None
    return key


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
