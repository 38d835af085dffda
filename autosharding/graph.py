"""The operator graph: ops in program order over values, as captured from a jaxpr. Knows nothing of JAX or of meshes.

`str(graph)` prints it in JAX's own notation. Every field that holds a JAX object (`aval`, `primitive`, `params`,
`context`) is opaque here: it is carried from capture to the executor and compared by nobody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from math import prod
from typing import Any

PHASES = ("forward", "backward", "update")


@dataclass(frozen=True, slots=True)
class Value:
    """One array of the program.

    Attributes:
        id: position in the order of definition, unique in its graph.
        shape: global shape.
        dtype: short name as JAX prints it: `f32`, `bf16`, `i32`, `bool`, `key<fry>`.
        dtype_name: numpy's long name (`float32`), for prices.
        itemsize: bytes per element (a typed PRNG key counts its words).
        aval: JAX's own abstract value.
    """

    id: int
    shape: tuple[int, ...]
    dtype: str
    dtype_name: str
    itemsize: int
    aval: Any = field(compare=False, repr=False)

    @property
    def rank(self) -> int:
        """Number of dims."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return self.size * self.itemsize

    @property
    def type(self) -> str:
        """`f32[8,4]`."""
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"

    @property
    def name(self) -> str:
        """A letter code as in JAX's printed jaxprs: a, b, ..., z, ba, bb, ..."""
        return letters(self.id)

    def __str__(self) -> str:
        return f"{self.name}:{self.type}"


@dataclass(frozen=True, slots=True)
class Literal:
    """A scalar written into the program."""

    value: Any
    dtype: str
    aval: Any = field(compare=False, repr=False)

    shape: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        """Always 0."""
        return 0

    def __str__(self) -> str:
        return f"{self.value}:{self.dtype}[]"


Atom = Value | Literal


@dataclass(frozen=True, slots=True)
class Op:
    """One operator application.

    Attributes:
        index: position in program order.
        name: the primitive's name.
        inputs: values and literals read.
        outputs: values defined.
        params: the primitive's parameters.
        scope: the user's name scopes, `layer_0/attn`, without transformations.
        phase: "forward", "backward" or "update", from JAX's name stack.
        source: the user's own line, `train.py:12 (loss)`; "" when unknown.
        effects: whether the op does something besides returning results.
        barrier: for `optimization_barrier` lanes made from one `jax.checkpoint` region: the region's number.
        primitive: the JAX primitive, opaque.
        context: what binding needs besides params (name stack, tracing context), opaque.
    """

    index: int
    name: str
    inputs: tuple[Atom, ...]
    outputs: tuple[Value, ...]
    params: Mapping[str, Any] = field(compare=False)
    scope: str
    phase: str
    source: str
    effects: bool
    primitive: Any = field(compare=False, repr=False)
    context: Any = field(compare=False, repr=False)

    @property
    def values(self) -> tuple[Value, ...]:
        """The inputs that are values, in order, repeated as often as read."""
        return tuple(a for a in self.inputs if isinstance(a, Value))

    @property
    def is_free(self) -> bool:
        """Made of literals alone (iota, zeros): every reader makes its own, in the split it wants, at no cost."""
        return not self.values and not self.effects and self.name in ("iota", "broadcast_in_dim")

    @property
    def where(self) -> str:
        """The op, its phase and the user's line, for messages."""
        return f"{self.name} ({self.source or self.scope or 'no source line'})"

    def __str__(self) -> str:
        outs = " ".join(map(str, self.outputs)) or "_"
        ins = " ".join(a.name if isinstance(a, Value) else str(a) for a in self.inputs)
        shown = ", ".join(f"{k}={_short(v)}" for k, v in self.params.items() if _worth_showing(v))
        return f"{outs} = {self.name}{'[' + shown + ']' if shown else ''} {ins}".rstrip()


@dataclass(frozen=True)
class Graph:
    """A whole step.

    Attributes:
        name: the step's name.
        inputs: its arguments' leaves, then its constants.
        input_names: a path for each input, `[0].params['w']` or `const_3`.
        constants: arrays for the last `len(constants)` inputs: what the step closed over.
        ops: in program order, each value defined once before use.
        outputs: what it returns.
        output_names: a path for each output.
    """

    name: str
    inputs: tuple[Value, ...]
    input_names: tuple[str, ...]
    constants: tuple[Any, ...]
    ops: tuple[Op, ...]
    outputs: tuple[Atom, ...]
    output_names: tuple[str, ...]

    @property
    def n_arguments(self) -> int:
        """Number of inputs that the caller passes."""
        return len(self.inputs) - len(self.constants)

    @cached_property
    def values(self) -> tuple[Value, ...]:
        """Every value, by id: `graph.values[v.id] is v`."""
        found = {v.id: v for v in self.inputs}
        found.update((v.id, v) for op in self.ops for v in op.outputs)
        return tuple(found[i] for i in range(len(found)))

    @cached_property
    def producer(self) -> tuple[Op | None, ...]:
        """For each value id the op that defines it; None for inputs."""
        made: list[Op | None] = [None] * len(self.values)
        for op in self.ops:
            for v in op.outputs:
                made[v.id] = op
        return tuple(made)

    @cached_property
    def readers(self) -> tuple[tuple[tuple[Op, int], ...], ...]:
        """For each value id its uses by ops: (op, operand position)."""
        uses: list[list[tuple[Op, int]]] = [[] for _ in self.values]
        for op in self.ops:
            for i, a in enumerate(op.inputs):
                if isinstance(a, Value):
                    uses[a.id].append((op, i))
        return tuple(tuple(u) for u in uses)

    def is_free(self, atom: Atom) -> bool:
        """A literal, or a value made of literals alone (see `Op.is_free`)."""
        if isinstance(atom, Literal):
            return True
        op = self.producer[atom.id]
        return op is not None and op.is_free

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the program's text: equal programs on equal shapes have equal fingerprints."""
        return hashlib.sha256("\n".join(self._lines(sources=False)).encode()).hexdigest()[:16]

    def verify(self) -> Graph:
        """Check that every value is defined once, before use, and ids run from 0; returns itself.

        Raises:
            ValueError: naming the first op that breaks this.
        """
        defined: set[int] = set()

        def define(v: Value, what: str) -> None:
            if v.id in defined:
                raise ValueError(f"{what} defines {v} a second time")
            defined.add(v.id)

        for v in self.inputs:
            define(v, "the argument list")
        for i, op in enumerate(self.ops):
            if op.index != i:
                raise ValueError(f"op {op} carries index {op.index} but stands at {i}")
            for a in op.values:
                if a.id not in defined:
                    raise ValueError(f"op {i} ({op}) reads {a} before it is defined")
            for v in op.outputs:
                define(v, f"op {i}")
        for a in self.outputs:
            if isinstance(a, Value) and a.id not in defined:
                raise ValueError(f"the step returns {a}, which nothing defines")
        if defined != set(range(len(defined))):
            raise ValueError("value ids are not the numbers from 0 up")
        if len(self.inputs) != len(self.input_names) or len(self.outputs) != len(self.output_names):
            raise ValueError("a name is missing for an input or an output")
        return self

    def _lines(self, *, sources: bool) -> Iterator[str]:
        args = " ".join(map(str, self.inputs))
        yield f"{{ lambda {args} . let  # {self.name}"
        for op in self.ops:
            note = f"  # {op.phase} {op.source}".rstrip() if sources else ""
            yield f"    {op}{note}"
        outs = ", ".join(a.name if isinstance(a, Value) else str(a) for a in self.outputs)
        yield f"  in ({outs}) }}"

    def __str__(self) -> str:
        return "\n".join(self._lines(sources=True))

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{op.index}</td><td>{op.phase}</td><td>{escape(op.scope)}</td>"
            f"<td><code>{escape(str(op))}</code></td><td>{escape(op.source)}</td></tr>"
            for op in self.ops
        )
        head = "<tr><th>#</th><th>phase</th><th>scope</th><th>op</th><th>source</th></tr>"
        title = f"{escape(self.name)}: {len(self.ops)} ops, {len(self.inputs)} inputs, {len(self.outputs)} outputs"
        return f"<table><caption>{title}</caption><thead>{head}</thead><tbody>{rows}</tbody></table>"


def letters(n: int) -> str:
    """0 -> a, 25 -> z, 26 -> ba: the names that JAX prints."""
    text = ""
    while True:
        n, r = divmod(n, 26)
        text = chr(97 + r) + text
        if n == 0:
            return text


def _worth_showing(v: Any) -> bool:
    return v is not None and v is not False and v != () and not callable(v)


def _short(v: Any) -> str:
    text = str(v)
    return text if len(text) <= 120 else f"<{type(v).__name__} {hashlib.sha256(text.encode()).hexdigest()[:8]}>"
