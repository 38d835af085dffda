"""Collectives read out of a compiled program's text (XLA HLO), in the units in which a plan counts them.

One `HloCollective` for each instruction; `-start` forms count once, their `-done` never. Bytes are one device's and as
`reshard.Move.bytes` has them: an all-gather counts its result, an all-reduce and a reduce-scatter their operand, an
all-to-all and a collective-permute the local array. Collectives that XLA merged into one of several arrays count the
sum. An instruction in a loop body runs as often as the loop, by the trip count that XLA noted; in a branch, once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import prod

import numpy as np

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)

Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class HloCollective:
    """One collective instruction.

    Attributes:
        kind: one of `KINDS`.
        dtypes: the dtypes of the arrays it moves, as HLO names them, each once.
        bytes: on one device; see the module.
        elements: the same, in elements.
        groups: device numbers that talk, one tuple for a group; for a collective-permute its (from, to) pairs.
        name: the instruction's name.
        op_name: the JAX path it came from, `jit(step)/psum`; "" when unknown.
        times: how often it runs.
    """

    kind: str
    dtypes: tuple[str, ...]
    bytes: int
    elements: int
    groups: Groups
    name: str
    op_name: str
    times: int = 1

    def axes(self, mesh: Mapping[str, int]) -> tuple[str, ...] | None:
        """The mesh axes it runs over, devices numbered along the mesh, last axis fastest; in mesh order.

        Axes of size 1 are never named. None where the groups are not those of any axes.
        """
        return _changed_axes(self.groups, mesh) if self.kind == "collective-permute" else group_axes(self.groups, mesh)

    @property
    def is_idle(self) -> bool:
        """Whether nothing goes over a wire: groups of one device, or each device sending to itself."""
        return all(len(set(g)) <= 1 for g in self.groups)


def collectives(text: str, *, unknown_trips: int = 1) -> tuple[HloCollective, ...]:
    """Every collective of an HLO module's text that has something to send, in the order of the text.

    Args:
        text: as `compiled.as_text()` gives it.
        unknown_trips: runs of a loop of which XLA does not know how often it runs.
    """
    found: list[tuple[str, HloCollective]] = []
    calls: list[tuple[str, str, int]] = []
    devices = _device_count(text)
    inside = entry = ""
    for line in text.splitlines():
        if (head := _COMPUTATION.match(line)) is not None:
            inside = head.group(2)
            entry = inside if head.group(1) else entry
            continue
        calls += ((inside, called, n) for called, n in _called(line, unknown_trips))
        one = _instruction(line, devices)
        if one is not None and not one.is_idle:
            found.append((inside, one))
    times = _runs(entry, calls)
    return tuple(replace(one, times=times.get(where, 1)) for where, one in found if times.get(where, 1))


_COMPUTATION = re.compile(r"(ENTRY\s+)?%?([\w.\-]+)\s+\(.*\)\s+->\s+.*\{$")
_CALLED = re.compile(r"\b(body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


def _called(line: str, unknown_trips: int) -> Iterator[tuple[str, int]]:
    """The computations that an instruction runs, and how often."""
    for how, name in _CALLED.findall(line):
        trips = _TRIPS.search(line)
        yield name, (int(trips.group(1)) if trips else unknown_trips) if how in ("body", "condition") else 1
    for names in _BRANCHES.findall(line):
        yield from ((name.strip().lstrip("%"), 1) for name in names.split(","))


def _runs(entry: str, calls: Sequence[tuple[str, str, int]]) -> dict[str, int]:
    """How often each computation runs in one run of the entry; callees stand before their callers."""
    times = {entry: 1}
    by_caller: dict[str, list[tuple[str, int]]] = {}
    for caller, called, n in calls:
        by_caller.setdefault(caller, []).append((called, n))
    for caller in reversed(by_caller):
        for called, n in by_caller[caller]:
            times[called] = times.get(called, 0) + times.get(caller, 0) * n
    return times


def group_axes(groups: Sequence[Sequence[int]], mesh: Mapping[str, int]) -> tuple[str, ...] | None:
    """The axes of a mesh that have exactly these groups; None where none have."""
    names = tuple(a for a, n in mesh.items() if n > 1)
    sizes = [mesh[a] for a in names]
    wanted = {frozenset(g) for g in groups}
    ids = np.arange(prod(sizes)).reshape(sizes)
    for count in range(len(names) + 1):
        for chosen in combinations(range(len(names)), count):
            if {frozenset(map(int, g)) for g in _grouped(ids, chosen)} == wanted:
                return tuple(names[i] for i in chosen)
    return None


def _grouped(ids: np.ndarray, along: Sequence[int]) -> np.ndarray:
    """One row for each group over the dims `along`."""
    rest = [d for d in range(ids.ndim) if d not in along]
    return ids.transpose(*rest, *along).reshape(-1, prod(ids.shape[d] for d in along))


def _changed_axes(pairs: Groups, mesh: Mapping[str, int]) -> tuple[str, ...] | None:
    sizes = tuple(mesh.values())
    if any(i >= prod(sizes) for pair in pairs for i in pair):
        return None
    moved: set[int] = set()
    for source, target in pairs:
        places = zip(np.unravel_index(source, sizes), np.unravel_index(target, sizes), strict=True)
        moved.update(d for d, (a, b) in enumerate(places) if a != b)
    return tuple(a for d, a in enumerate(mesh) if d in moved)


# ---- one instruction -------------------------------------------------------------------------------------

_COMMENT = re.compile(r"/\*.*?\*/")
_DEVICES = re.compile(r"\b(num_partitions|replica_count)=(\d+)")
_NAME = re.compile(r"\s*(?:ROOT\s+)?%?([\w.\-]+)\s+=\s+")
_OPCODE = re.compile(rf"({'|'.join(KINDS)})(-start)?\(")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_ARRAY = re.compile(r"(\w+)\[([^\]]*)\]")

_WIDER = {"pred": 8, "c64": 64, "c128": 128, "token": 0}


def _instruction(line: str, devices: int) -> HloCollective | None:
    if not any(kind in line for kind in KINDS):
        return None
    line = _COMMENT.sub("", line)
    named = _NAME.match(line)
    if named is None:
        return None
    shape, end = _shape(line, named.end())
    opcode = _OPCODE.match(line, end)
    if opcode is None:
        return None
    kind, started = opcode.group(1), opcode.group(2) is not None
    groups = _groups(line[opcode.end() :], kind, devices)
    moved = list(_arrays(_result(shape, kind) if started else shape))
    scale = max(map(len, groups), default=1) if kind == "reduce-scatter" else 1
    sizes = [(dtype, prod(dims)) for dtype, dims in moved]
    op_name = _OP_NAME.search(line)
    return HloCollective(
        kind,
        tuple(dict.fromkeys(dtype for dtype, _ in sizes)),
        scale * sum((n * bits(dtype) + 7) // 8 for dtype, n in sizes),
        scale * sum(n for _, n in sizes),
        groups,
        named.group(1),
        op_name.group(1) if op_name else "",
    )


def bits(dtype: str) -> int:
    """Bits of one element of an HLO dtype: `bf16` 16, `f8e4m3fn` 8, `pred` 8."""
    if dtype in _WIDER:
        return _WIDER[dtype]
    digits = re.match(r"[a-z]+(\d+)", dtype)
    return int(digits.group(1)) if digits else 0


def _device_count(text: str) -> int:
    head = text.partition("\n")[0]
    return prod(int(n) for _, n in _DEVICES.findall(head))


# ---- shapes: (dtype, dims), or a list of shapes for a tuple ----------------------------------------------

Array = tuple[str, tuple[int, ...]]
Shape = Array | list["Shape"]


def _shape(text: str, at: int) -> tuple[Shape, int]:
    """The shape that stands at `at`, and where the next word begins."""
    if text.startswith("(", at):
        parts: list[Shape] = []
        at += 1
        while at < len(text) and text[at] != ")":
            if text[at] in ", ":
                at += 1
                continue
            part, after = _shape(text, at)
            if after == at:
                return parts, at
            parts.append(part)
            at = after
        return parts, _skip_spaces(text, at + 1)
    array = _ARRAY.match(text, at)
    if array is None:
        return [], at
    dims = tuple(int(d.strip().removeprefix("<=")) for d in array.group(2).split(",") if d.strip())
    at = array.end()
    if text.startswith("{", at):  # a layout, `{1,0:T(8,128)}`
        at = text.index("}", at) + 1
    return (array.group(1), dims), _skip_spaces(text, at)


def _skip_spaces(text: str, at: int) -> int:
    while at < len(text) and text[at] == " ":
        at += 1
    return at


def _result(shape: Shape, kind: str) -> Shape:
    """The result within what a `-start` gives: (operands, results, ...), but an all-reduce's results alone."""
    return shape[1] if kind != "all-reduce" and isinstance(shape, list) and len(shape) > 1 else shape


def _arrays(shape: Shape) -> Iterator[Array]:
    if isinstance(shape, tuple):
        yield shape
        return
    for part in shape:
        yield from _arrays(part)


# ---- who talks to whom: three ways to print groups -------------------------------------------------------

_PAIRS = re.compile(r"source_target_pairs=\{((?:\{[\d,\s]*\},?\s*)*)\}")
_LISTED = re.compile(r"replica_groups=\{((?:\{[\d,\s]*\},?\s*)*)\}")
_IOTA = re.compile(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)")
_MESH = re.compile(r"replica_groups=@?mesh[\[<]([^\]>]*)[\]>](?:,?\s*(?:device_ids=)?\(([^{]*)\))?\s*\{([^}]*)\}")
_AXIS = re.compile(r"['\"]?([\w.\-]+?)['\"]?\s*=\s*(\d+)")
_AXIS_REF = re.compile(r"['\"]?([\w.\-]+)['\"]?(?::\((\d+)\)(\d+))?")


def _groups(text: str, kind: str, devices: int) -> Groups:
    if kind == "collective-permute":
        pairs = _PAIRS.search(text)
        return _listed(pairs.group(1)) if pairs else ()
    if found := _LISTED.search(text):
        return _listed(found.group(1)) or (tuple(range(devices)),)
    if found := _IOTA.search(text):
        return _rows(iota(found.group(1)))
    if found := _MESH.search(text):
        return _mesh_groups(*found.groups())
    return (tuple(range(devices)),)


def _listed(text: str) -> Groups:
    return tuple(tuple(map(int, g.split(","))) for g in re.findall(r"\{([\d,\s]+)\}", text))


def _rows(ids: np.ndarray) -> Groups:
    return tuple(tuple(map(int, row)) for row in ids.reshape(-1, ids.shape[-1]))


def iota(text: str) -> np.ndarray:
    """`[4,2]<=[2,4]T(1,0)`: the numbers from 0 in a box [2,4], its dims transposed, then cut into rows [4,2]."""
    shape, _, rest = text.partition("<=")
    box, _, order = rest.partition("T")
    ids = np.arange(prod(_numbers(box))).reshape(_numbers(box))
    if order:
        ids = ids.transpose(_numbers(order))
    return ids.reshape(_numbers(shape))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def _mesh_groups(axes: str, ids: str | None, over: str) -> Groups:
    """`mesh['a'=2,'b'=4] {'a'}`; `'b':(2)2` is the part of size 2 of axis b that has size 2 before it."""
    sizes = {name: int(n) for name, n in _AXIS.findall(axes)}
    cuts: dict[str, set[int]] = {name: {1, n} for name, n in sizes.items()}
    refs = [(n, int(pre or 1), int(size) if size else sizes[n]) for n, pre, size in _AXIS_REF.findall(over)]
    for name, pre, size in refs:
        cuts[name] |= {pre, pre * size}
    parts = [(n, a, b // a) for n in sizes for a, b in zip(sorted(cuts[n]), sorted(cuts[n])[1:], strict=False)]
    along = [
        d
        for d, (name, pre, size) in enumerate(parts)
        if any(name == n and p <= pre and pre * size <= p * s for n, p, s in refs)
    ]
    count = prod(sizes.values())
    flat = np.arange(count)
    if ids and "<=" in ids:
        flat = iota(ids).reshape(-1)
    elif ids and "T" in ids:
        flat = iota(f"[{count}]<={ids}")
    elif ids and len(_numbers(ids)) == count:
        flat = np.array(_numbers(ids))
    return _rows(_grouped(flat.reshape([size for *_, size in parts]), along))
