"""The operator graph: ops in program order over values, as captured from a jaxpr. Knows nothing of JAX or of meshes.

Control flow lies flat in it. A `scan`, `while` or `cond` is a `Region`: its bodies stand among the other ops, between
border ops that say where a body begins and ends, as in WebAssembly; the first border is the op itself. What crosses the
borders does so in lanes (`Lane`): one array, seen from outside and from inside, read and made at several borders.
A pass that looks at ops one by one sees the ops of all bodies; one that follows values asks `Graph.lanes`.

`str(graph)` prints it in JAX's own notation. Every field that holds a JAX object (`aval`, `primitive`, `params`,
`context`) is opaque here: it is carried from capture to the executor and compared by nobody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from itertools import pairwise
from math import prod
from operator import itemgetter
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
    def kind(self) -> Hashable:
        """What there is to know of it besides which one it is."""
        return self.shape, self.dtype

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

    @property
    def kind(self) -> Hashable:
        """What there is to know of it."""
        return str(self.value), self.dtype, str(self.aval)

    def __str__(self) -> str:
        return f"{self.value}:{self.dtype}[]"


Atom = Value | Literal


@dataclass(frozen=True, slots=True)
class Port:
    """Where a lane crosses a border of its region.

    Attributes:
        border: number of the border, 0 for the op that opens the region.
        position: among the border's inputs or outputs.
        stacked: whether the array here has a leading dim more, one entry for each run of the body.
    """

    border: int
    position: int
    stacked: bool = False

    def __str__(self) -> str:
        return f"{self.border}.{self.position}{'*' if self.stacked else ''}"


@dataclass(frozen=True, slots=True)
class Lane:
    """One array across the borders of a region: it lies on the mesh in one way at all its ports.

    Attributes:
        reads: among the inputs of borders: the array goes in.
        makes: among the outputs of borders: the array comes out.
        whole: whether every device must hold all of it: what decides which body runs.
    """

    reads: tuple[Port, ...]
    makes: tuple[Port, ...]
    whole: bool = False

    @property
    def is_carried(self) -> bool:
        """Handed from one run of a body to the next."""
        return self.is_entering and any(p.border > 0 for p in self.reads)

    @property
    def is_entering(self) -> bool:
        """Read from outside."""
        return any(p.border == 0 for p in self.reads)

    @property
    def is_stacked(self) -> bool:
        """Outside, an array of one entry for each run."""
        return any(p.stacked for p in (*self.reads, *self.makes))

    def __str__(self) -> str:
        arrow = f"{','.join(map(str, self.reads))}>{','.join(map(str, self.makes))}"
        return f"!{arrow}" if self.whole else arrow


@dataclass(frozen=True, slots=True)
class Region:
    """What its border ops have in common.

    Attributes:
        kind: "barrier", "scan", "while" or "cond".
        bodies: how many; there is one border more. A barrier has none: its one border reads and makes all lanes.
        times: how often each body runs for one run of the op, for prices.
        lanes: what crosses the borders.
    """

    kind: str
    bodies: int
    times: int
    lanes: tuple[Lane, ...]

    def keep(self, lanes: Container[int]) -> Region:
        """With these lanes alone, their ports close together."""
        left = [lane for n, lane in enumerate(self.lanes) if n in lanes]
        ins = _places(p for lane in left for p in lane.reads)
        outs = _places(p for lane in left for p in lane.makes)
        return replace(
            self,
            lanes=tuple(
                replace(
                    lane,
                    reads=tuple(replace(p, position=ins[p.border, p.position]) for p in lane.reads),
                    makes=tuple(replace(p, position=outs[p.border, p.position]) for p in lane.makes),
                )
                for lane in left
            ),
        )

    def __str__(self) -> str:
        return " ".join(map(str, self.lanes))


def _places(ports: Iterable[Port]) -> dict[tuple[int, int], int]:
    """(border, position) -> position when the ports of each border close up."""
    found: dict[tuple[int, int], int] = {}
    count: dict[int, int] = {}
    for border, position in sorted((p.border, p.position) for p in ports):
        found[border, position] = count.get(border, 0)
        count[border] = count.get(border, 0) + 1
    return found


@dataclass(frozen=True, slots=True)
class Crossing:
    """A lane of a graph, with the ops and values themselves.

    Attributes:
        lane: what it is.
        region: its region.
        opening: index of the op that opens the region.
        reads: (op index, operand position, stacked).
        makes: (value, stacked).
    """

    lane: Lane
    region: Region
    opening: int
    reads: tuple[tuple[int, int, bool], ...]
    makes: tuple[tuple[Value, bool], ...]


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
        source: the user's own line, `train.py:12 (loss)`, or that of a package's model, `model.py:7 (call), from
            train.py:12`; "" when unknown.
        effects: whether the op does something besides returning results.
        primitive: the JAX primitive, opaque.
        context: what binding needs besides params (name stack, tracing context), opaque.
        region: for border ops the region they belong to.
        border: which of its borders this is.
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
    region: Region | None = None
    border: int = 0

    @property
    def values(self) -> tuple[Value, ...]:
        """The inputs that are values, in order, repeated as often as read."""
        return tuple(a for a in self.inputs if isinstance(a, Value))

    @property
    def is_free(self) -> bool:
        """Made of literals alone (iota, zeros): every reader makes its own, in the split it wants, at no cost."""
        return self.name in ("iota", "broadcast_in_dim", "empty", "empty2") and not self.values and not self.effects

    @property
    def kind(self) -> Hashable:
        """What it computes, whatever it computes it of: equal for the ops of identical layers."""
        operands = tuple(a.kind for a in self.inputs)
        return self.name, operands, tuple(v.kind for v in self.outputs), same_params(self.params)

    @property
    def where(self) -> str:
        """The op, its phase and the user's line, for messages."""
        return f"{self.name} ({self.source or self.scope or 'no source line'})"

    def __str__(self) -> str:
        outs = " ".join(map(str, self.outputs)) or "_"
        ins = " ".join(a.name if isinstance(a, Value) else str(a) for a in self.inputs)
        shown = ", ".join(f"{k}={_short(v)}" for k, v in self.params.items() if _worth_showing(v))
        lanes = f" {{{self.region}}}" if self.region is not None and self.region.bodies and not self.border else ""
        return f"{outs} = {self.name}{'[' + shown + ']' if shown else ''}{lanes} {ins}".rstrip()


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

    @cached_property
    def kinds(self) -> tuple[int, ...]:
        """For each op the number of its kind: ops of one kind compute the same of operands of the same types."""
        known: dict[Hashable, int] = {}
        return tuple(known.setdefault(op.kind, len(known)) for op in self.ops)

    @cached_property
    def borders(self) -> Mapping[int, tuple[int, ...]]:
        """Index of each op that opens a region -> the indices of all borders of that region, in program order."""
        return dict(sorted((group[0], group) for group in regions(self.ops)))

    @cached_property
    def border_after(self) -> Mapping[int, int]:
        """Index of each border that begins a body -> index of the one that ends it."""
        return {a: b for group in self.borders.values() for a, b in pairwise(group)}

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """For each op in how many bodies it stands; a border that opens or ends a region stands outside."""
        depth, found = 0, []
        for op in self.ops:
            bodies = op.region.bodies if op.region is not None else 0
            depth -= bool(bodies and op.border)
            found.append(depth)
            depth += bool(bodies and op.border < bodies)
        return tuple(found)

    @cached_property
    def lanes(self) -> tuple[Crossing, ...]:
        """The lanes of all regions."""
        found = []
        for opening, group in self.borders.items():
            region = self.ops[opening].region
            assert region is not None
            for lane in region.lanes:
                reads = tuple((group[p.border], p.position, p.stacked) for p in lane.reads)
                makes = tuple((self.ops[group[p.border]].outputs[p.position], p.stacked) for p in lane.makes)
                found.append(Crossing(lane, region, opening, reads, makes))
        return tuple(found)

    @cached_property
    def lane_read(self) -> Mapping[tuple[int, int], tuple[int, bool]]:
        """(border op, operand position) -> (number in `lanes`, stacked)."""
        return {(i, p): (n, stacked) for n, lane in enumerate(self.lanes) for i, p, stacked in lane.reads}

    @cached_property
    def lane_made(self) -> Mapping[int, tuple[int, bool]]:
        """Id of a value that a border makes -> (number in `lanes`, stacked)."""
        return {v.id: (n, stacked) for n, lane in enumerate(self.lanes) for v, stacked in lane.makes}

    @cached_property
    def times(self) -> tuple[int, ...]:
        """For each value id how often it is made in one step."""
        found = [1] * len(self.values)
        for op, (_, made) in zip(self.ops, self._runs, strict=True):
            for v in op.outputs:
                found[v.id] = made
        return tuple(found)

    @cached_property
    def op_times(self) -> tuple[int, ...]:
        """For each op how often it runs in one step."""
        return tuple(runs for runs, _ in self._runs)

    @cached_property
    def _runs(self) -> list[tuple[int, int]]:
        """For each op (how often what stands before it in its body runs, how often what it makes is made)."""
        found = []
        around = [1]
        for op in self.ops:
            before = around[-1]
            if op.region is not None and op.region.bodies:
                if op.border:
                    around.pop()
                if op.border < op.region.bodies:
                    around.append(around[-1] * op.region.times)
            found.append((before, around[-1]))
        return found

    @cached_property
    def repeated(self) -> frozenset[int]:
        """Ids of the values inside loops that are the same in every run of the body: made of constants of the loop."""
        found: set[int] = set()
        for op in self.ops:
            if op.region is None:
                if op.values and not op.effects and all(v.id in found for v in op.values):
                    found.update(v.id for v in op.outputs)
                continue
            for v in op.outputs:
                lane = self.lanes[self.lane_made[v.id][0]]
                inside = op.border < lane.region.bodies
                loop = lane.region.kind in ("scan", "while")
                if inside and loop and not lane.lane.is_carried and not lane.lane.is_stacked:
                    found.add(v.id)
        return frozenset(found)

    def is_free(self, atom: Atom) -> bool:
        """A literal, or a value made of literals alone (see `Op.is_free`)."""
        return isinstance(atom, Literal) or atom.id in self._free

    @cached_property
    def _free(self) -> frozenset[int]:
        return frozenset(v.id for op in self.ops if op.is_free for v in op.outputs)

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
        self._verify_regions()
        for a in self.outputs:
            if isinstance(a, Value) and a.id not in defined:
                raise ValueError(f"the step returns {a}, which nothing defines")
        if defined != set(range(len(defined))):
            raise ValueError("value ids are not the numbers from 0 up")
        if len(self.inputs) != len(self.input_names) or len(self.outputs) != len(self.output_names):
            raise ValueError("a name is missing for an input or an output")
        return self

    def _verify_regions(self) -> None:
        for group in regions(self.ops):
            region = self.ops[group[0]].region
            assert region is not None
            for ports, ends in (
                ([p for lane in region.lanes for p in lane.reads], [len(self.ops[i].inputs) for i in group]),
                ([p for lane in region.lanes for p in lane.makes], [len(self.ops[i].outputs) for i in group]),
            ):
                if sorted((p.border, p.position) for p in ports) != [
                    (b, i) for b, n in enumerate(ends) for i in range(n)
                ]:
                    raise ValueError(f"the lanes of {self.ops[group[0]]} are not what its borders read and make")

    def _lines(self, *, sources: bool) -> Iterator[str]:
        args = " ".join(map(str, self.inputs))
        yield f"{{ lambda {args} . let  # {self.name}"
        for op, depth in zip(self.ops, self.depths, strict=True):
            note = f"  # {op.phase} {op.source}".rstrip() if sources else ""
            yield f"    {'  ' * depth}{op}{note}"
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


def regions(ops: Sequence[Op]) -> list[tuple[int, ...]]:
    """For each region the positions of its borders, inner regions before outer ones.

    Raises:
        ValueError: when a border is missing or out of place.
    """
    found: list[tuple[int, ...]] = []
    waiting: list[list[int]] = []
    for i, op in enumerate(ops):
        if op.region is None:
            continue
        if op.border == 0:
            waiting.append([])
        if not waiting or op.border != len(waiting[-1]) or ops[(waiting[-1] or [i])[0]].region is not op.region:
            raise ValueError(f"op {i} ({op.name}) is a border of no region that is open")
        waiting[-1].append(i)
        if op.border == op.region.bodies:
            found.append(tuple(waiting.pop()))
    if waiting:
        raise ValueError(f"the region of op {waiting[-1][0]} ({ops[waiting[-1][0]].name}) does not end")
    return found


def same_params(params: Mapping[str, Any]) -> Hashable:
    """Equal for equal params; where one of them cannot be hashed (an array), for this very mapping alone."""
    key = tuple(sorted(params.items(), key=itemgetter(0)))
    try:
        hash(key)
    except TypeError:
        return id(params)
    return key


def letters(n: int) -> str:
    """0 -> a, 25 -> z, 26 -> ba: the names that JAX prints."""
    text = ""
    while True:
        n, r = divmod(n, 26)
        text = chr(97 + r) + text
        if n == 0:
            return text


def _worth_showing(v: Any) -> bool:
    empty = isinstance(v, tuple) and not v  # `v != ()` of a number of numpy is an array
    return v is not None and v is not False and not empty and not callable(v)


def _short(v: Any) -> str:
    text = str(v)
    return text if len(text) <= 120 else f"<{type(v).__name__} {hashlib.sha256(text.encode()).hexdigest()[:8]}>"
