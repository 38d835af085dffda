"""The sentence of a rule, `i k, k j -> i j  {k: sum}`, read and written.

Dims are separated by spaces, operands and results by commas. `(a b)` is a dim of two factors, major first;
`1` a dim without factors; `.` an array without dims; `...` any number of dims, the same wherever it stands.
Notes in braces:

- `k: sum` (or max, min, and, or): split along `k`, the devices find terms of that reduction. A factor that no
result has is summed where nothing else is said, as in einsum.
- `s: whole`: never split.
- `j: joined`: what the devices find along `j` is joined by the op itself; the result is whole.
- `h: slides`: a window slides along; the dims of operand and result may differ in size.
- `linear: 0 1`: partial sums in exactly these operands pass through. May be said several times.
- `moves`: the op only rearranges its first operand: partial states of every kind pass.
- `added: 0`: this operand is added to the result; where a reduced factor is split it is partial over the same axes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from autosharding.errors import RuleError
from autosharding.spec import MONOIDS

Dim = tuple[str, ...]
"""The factors of one dim, major to minor; `()` is a dim that stays whole (size 1, or of no factor)."""

Dims = tuple[Dim, ...]

ELLIPSIS: Dim = ("...",)

_TOKEN = re.compile(r"\.\.\.|\(|\)|\.|1\b|[A-Za-z_]\w*")
_RESERVED = frozenset({"linear", "moves", "added"})


@dataclass(frozen=True)
class Notation:
    """A rule without sizes: what the sentence says, field by field as in `Rule`."""

    operands: tuple[Dims, ...]
    results: tuple[Dims, ...]
    reduced: Mapping[str, str] = field(default_factory=dict)
    whole: frozenset[str] = frozenset()
    linear: tuple[frozenset[int], ...] = ()
    moves_data: bool = False
    added: frozenset[int] = frozenset()
    slides: frozenset[str] = frozenset()
    joined: frozenset[str] = frozenset()

    def __str__(self) -> str:
        text = f"{', '.join(map(_write, self.operands))} -> {', '.join(map(_write, self.results))}".strip()
        notes = [f"{f}: {m}" for f, m in self.reduced.items()]
        notes += [f"{f}: whole" for f in sorted(self.whole)]
        notes += [f"{f}: joined" for f in sorted(self.joined)]
        notes += [f"{f}: slides" for f in sorted(self.slides)]
        notes += [f"linear: {' '.join(map(str, sorted(s)))}" for s in self.linear]
        notes += ["moves"] if self.moves_data else []
        notes += [f"added: {' '.join(map(str, sorted(self.added)))}"] if self.added else []
        return text + (f"  {{{'; '.join(notes)}}}" if notes else "")


def _write(dims: Dims) -> str:
    return " ".join("(" + " ".join(d) + ")" if len(d) > 1 else "".join(d) or "1" for d in dims) or "."


def parse(text: str) -> Notation:
    """Read a rule's sentence.

    Raises:
        RuleError: saying what was found and what was expected.
    """
    body, braces, notes = text.strip().partition("{")
    left, arrow, right = body.partition("->")
    if not arrow or "->" in right:
        raise _wrong(text, "one `->` between operands and results is expected")
    if braces and not notes.endswith("}"):
        raise _wrong(text, "the notes begin with `{` and do not end with `}`")
    operands, results = _read_side(text, left), _read_side(text, right)
    found = _read_notes(text, notes.rstrip("}"), _factors(operands + results), len(operands))
    kept = _factors(results) | found.whole | found.joined
    summed = [f for dims in operands for d in dims for f in d if f not in kept and f not in found.reduced]
    reduced = {**dict.fromkeys((f for f in summed if f != "..."), "sum"), **found.reduced}
    return replace(found, operands=operands, results=results, reduced=reduced)


def _wrong(text: str, what: str) -> RuleError:
    return RuleError(
        f"The rule {text!r} cannot be read: {what}. A rule reads like `i k, k j -> i j` or "
        "`b (h d) -> b h d`, with notes as in `b s -> b s {s: whole}`."
    )


def _factors(sides: tuple[Dims, ...]) -> set[str]:
    return {f for dims in sides for d in dims for f in d}


def _read_side(text: str, side: str) -> tuple[Dims, ...]:
    if not side.strip():
        return ()
    return tuple(_read_dims(text, part) for part in side.split(","))


def _read_dims(text: str, part: str) -> Dims:
    tokens = _TOKEN.findall(part)
    if "".join(tokens) != re.sub(r"\s", "", part):
        raise _wrong(text, f"{part.strip()!r} holds something other than names, `(`, `)`, `1`, `.` and `...`")
    if not tokens:
        raise _wrong(text, "there is nothing between two commas; an array without dims is written `.`")
    if tokens == ["."]:
        return ()
    dims: list[Dim] = []
    inside: list[str] | None = None
    for t in tokens:
        if t == "(" and inside is None:
            inside = []
        elif t == ")" and inside:
            dims.append(tuple(inside))
            inside = None
        elif t in "().":
            raise _wrong(text, f"`{t}` is out of place in {part.strip()!r}")
        elif inside is not None:
            inside.append(t)
        else:
            dims.append(() if t == "1" else (t,))
    if inside is not None:
        raise _wrong(text, f"a `)` is missing in {part.strip()!r}")
    _check_names(text, part, dims)
    return tuple(dims)


def _check_names(text: str, part: str, dims: list[Dim]) -> None:
    names = [f for d in dims for f in d]
    if twice := {f for f in names if names.count(f) > 1}:
        raise _wrong(text, f"{', '.join(sorted(twice))} stands twice in {part.strip()!r}")
    if taken := _RESERVED & set(names):
        raise _wrong(text, f"{', '.join(sorted(taken))} is a word of the notes and cannot be a factor")
    if any(len(d) > 1 and {"...", "1"} & set(d) for d in dims):
        raise _wrong(text, f"a dim of several factors in {part.strip()!r} can only hold names")


def _read_notes(text: str, notes: str, factors: set[str], n_operands: int) -> Notation:
    reduced: dict[str, str] = {}
    whole: set[str] = set()
    linear: list[frozenset[int]] = []
    added: frozenset[int] = frozenset()
    slides: set[str] = set()
    joined: set[str] = set()
    moves = False
    for note in filter(None, (n.strip() for n in notes.split(";"))):
        name, _, kind = (p.strip() for p in note.partition(":"))
        if name == "moves" and not kind:
            moves = True
        elif name == "linear":
            linear.append(_positions(text, kind, n_operands))
        elif name == "added":
            added = _positions(text, kind, n_operands)
        elif name not in factors:
            raise _wrong(text, f"the note {note!r} speaks of {name!r}, which is no factor of the rule")
        elif kind == "whole":
            whole.add(name)
        elif kind in ("slides", "joined"):
            (slides if kind == "slides" else joined).add(name)
        elif kind in MONOIDS:
            reduced[name] = kind
        else:
            raise _wrong(text, f"the note {note!r} should say whole, joined, slides, {', '.join(MONOIDS)}")
    return Notation(
        (), (), reduced, frozenset(whole), tuple(linear), moves, added, frozenset(slides), frozenset(joined)
    )


def _positions(text: str, kind: str, n: int) -> frozenset[int]:
    parts = kind.split()
    if not parts or not all(p.isdigit() and int(p) < n for p in parts):
        raise _wrong(text, f"{kind!r} should be positions of operands, from 0 to {n - 1}, separated by spaces")
    return frozenset(map(int, parts))
