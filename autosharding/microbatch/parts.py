"""How one op runs on one microbatch, given what its operands are; or why it cannot."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from autosharding.graph import Op
from autosharding.microbatch.blocks import in_blocks
from autosharding.microbatch.slice import runs_in_pieces, slice_of
from autosharding.microbatch.states import (
    OWN,
    WHOLE,
    Cut,
    Each,
    Factor,
    Ones,
    Own,
    Partial,
    Sliced,
    State,
    Whole,
    cut_of,
    is_uncuttable,
    sliced_by,
)
from autosharding.rules import Rule

WAITS = "reads what is known only when the whole batch is through"
NEEDS_ALL = "needs the batch dim whole"


@dataclass(frozen=True, slots=True)
class Part:
    """An op inside the loop.

    Attributes:
        cut: the factor cut; None where it runs on terms, on whole blocks, or on what is the same each time.
        reads: what each operand is as it is read: a whole array read as `Sliced` is cut there, one read as `Partial`
            counts in the first microbatch alone; a term read as anything but `Partial` stands for the statistic of the
            microbatch's own examples, and such a statistic read as `Partial` for a term.
        results: what each result is.
    """

    cut: Cut | None
    reads: tuple[State, ...]
    results: tuple[State, ...]


def part_of(
    op: Op,
    rule: Rule,
    given: Sequence[State],
    microbatches: int,
    twins: Mapping[str, str],
    zeros: Collection[int],
    own: bool = False,
) -> Part | str:
    """The part of an op some of whose operands are the loop's; a text where it has to wait for all of the batch.

    Args:
        op: the op.
        rule: its rule.
        given: what its operands are.
        microbatches: how many.
        twins: looked-up factor -> the index batch factor along which each example looks up itself.
        zeros: the operands that are zero throughout.
        own: whether it takes the sums over a microbatch for those over the batch.
    """
    if op.effects:
        return "acts on the whole batch at once"
    sliced = {i: s for i, s in enumerate(given) if isinstance(s, Sliced)}
    if not sliced:
        found = _on_terms(op, rule, given)
        return _on_own(op, given) if own and isinstance(found, str) else found
    if own:
        given = [OWN if _is_statistic(op, i, s) else s for i, s in enumerate(given)]
    if any(isinstance(s, Each) for s in given):
        return NEEDS_ALL
    cuts = {cut_of(s, rule.operands[i], rule.sizes, microbatches) for i, s in sliced.items()}
    cut = _one(cuts, twins)
    coupled = NEEDS_ALL if None in cuts else "pairs each example with the others"
    part = coupled if cut is None else part_by(op, rule, cut, given, microbatches)
    if isinstance(part, Part):
        return _with_factors(rule, given, part, zeros)
    blocks = in_blocks(op, given, microbatches)
    return part if blocks is None else Part(None, *blocks)


def _one(cuts: set[Cut | None], twins: Mapping[str, str]) -> Cut | None:
    """The one cut that these are, a looked-up factor going with the index batch that looks up itself."""
    found: set[Cut] = set()
    for c in cuts:
        if c is None:
            return None
        batch = next((b for v, b in twins.items() if c.factor in (v, b)), None)
        looked_up = next((v for v, b in twins.items() if b == batch), None)
        found.add(c if batch is None else Cut(batch, c.outer, c.inner, looked_up))
    return found.pop() if len(found) == 1 else None


def part_by(op: Op, rule: Rule, cut: Cut, given: Sequence[State], microbatches: int) -> Part | str:
    """The part of an op of which a factor is cut."""
    if is_uncuttable(rule, cut, microbatches):
        return NEEDS_ALL
    monoid = rule.reduced.get(cut.factor)
    reads: list[State] = []
    for i, state in enumerate(given):
        own = sliced_by(cut, rule.operands[i], rule.sizes)
        counts_once = monoid is not None and i in rule.added and own is None
        if isinstance(state, Partial) and not (counts_once and state.monoid == monoid):
            return f"reads a {state.monoid} over the whole batch"
        alike = isinstance(state, Whole | Own)
        reads.append(state if not alike else Partial("sum") if counts_once else own or state)
    results = [sliced_by(cut, dims, rule.sizes) or (Partial(monoid) if monoid else None) for dims in rule.results]
    if None in results:
        return NEEDS_ALL
    part = Part(cut, tuple(reads), tuple(r for r in results if r is not None))
    if not runs_in_pieces(slice_of(op, rule, cut, part.reads, part.results, microbatches, 0)):
        return NEEDS_ALL
    return part


def part_of_whole(op: Op, rule: Rule, given: Sequence[State], microbatches: int) -> tuple[State, ...]:
    """What an op that runs on the whole batch before the loop makes: the loop takes its parts along the same dim."""
    for i, s in enumerate(given):
        if isinstance(s, Sliced):
            cut = cut_of(s, rule.operands[i], rule.sizes, microbatches)
            by_rule = [cut and sliced_by(cut, dims, rule.sizes) for dims in rule.results]
            like = op.inputs[i]
            alike = [v.rank == like.rank and v.shape[s.dim] == like.shape[s.dim] for v in op.outputs]
            return tuple(r or (s if ok else WHOLE) for r, ok in zip(by_rule, alike, strict=True))
    return (WHOLE,) * len(op.outputs)


def part_with_ones(
    op: Op, rule: Rule, given: Sequence[State], microbatches: int, at: int, scalar: int, zeros: Collection[int]
) -> Part | str:
    """The part of a product or quotient whose operand `at` is a scalar known after the loop: ones stand for it."""
    divides = op.name == "div" and at == 1
    if not divides and not (op.name in ("mul", "div") and frozenset({at}) in rule.linear):
        return WAITS
    without = [WHOLE if i == at else s for i, s in enumerate(given)]
    part = part_of(op, rule, without, microbatches, {}, zeros)
    if isinstance(part, str) or part.cut is None:
        return WAITS
    reads = tuple(Ones(s if isinstance(s, Sliced) else WHOLE) if i == at else s for i, s in enumerate(part.reads))
    factor = Factor(scalar, divides)
    results = tuple(replace(s, factors=(*s.factors, factor)) for s in part.results if isinstance(s, Sliced | Partial))
    return Part(part.cut, reads, results)


def _with_factors(rule: Rule, given: Sequence[State], part: Part, zeros: Collection[int]) -> Part | str:
    """What is still to be multiplied by a scalar passes through where the op is linear in it."""
    scaled = {i: s.factors for i, s in enumerate(given) if isinstance(s, Sliced | Partial) and s.factors}
    if not scaled:
        return part
    joint = next((s for s in rule.linear if s >= set(scaled) and s <= {*scaled, *zeros}), None)
    if joint is None or len(set(scaled.values())) > 1:
        return WAITS
    factors = next(iter(scaled.values()))
    results = tuple(replace(s, factors=factors) if isinstance(s, Sliced | Partial) else s for s in part.results)
    return replace(part, results=results)


def _on_terms(op: Op, rule: Rule, given: Sequence[State]) -> Part | str:
    """Of an operator that is linear in its partial operands, a whole one of a sum counting once."""
    terms = {i: s for i, s in enumerate(given) if isinstance(s, Partial)}
    each = {i: s for i, s in enumerate(given) if isinstance(s, Each)}
    if not terms and any(isinstance(s, Own) for s in given):
        return _on_own(op, given)
    if not terms:
        return Part(None, tuple(given), (next(iter(each.values())),) * len(op.outputs))
    kinds = set(terms.values())
    kind = next(iter(kinds))
    waits = f"reads a {kind.monoid} over the whole batch"
    if len(kinds) > 1 or any(isinstance(s, Ones) for s in given):
        return waits
    if rule.moves_data and set(terms) == {0} and not each:
        return Part(None, tuple(given), tuple(kind for _ in op.outputs))
    joint = next((s for s in rule.linear if s >= {*terms, *each}), None)
    once = [i for i in joint or () if isinstance(given[i], Whole | Own)]
    if kind.monoid != "sum" or joint is None or (once and kind.factors):
        return waits
    reads = tuple(kind if i in once else s for i, s in enumerate(given))
    return Part(None, reads, tuple(kind for _ in op.outputs))


def _on_own(op: Op, given: Sequence[State]) -> Part | str:
    """Of statistics of the microbatch's own examples."""
    reads = tuple(OWN if _is_statistic(op, i, s) else s for i, s in enumerate(given))
    if not all(isinstance(s, Whole | Own) for s in reads):
        return NEEDS_ALL
    return Part(None, reads, (OWN,) * len(op.outputs))


def _is_statistic(op: Op, i: int, state: State) -> bool:
    """Whether an operand is a term of which a statistic can be made: integers have no `1 / M` of a constant."""
    exact = state == Partial("sum") and not op.inputs[i].dtype.startswith(("f", "bf", "c"))
    return isinstance(state, Partial) and not state.factors and not exact
