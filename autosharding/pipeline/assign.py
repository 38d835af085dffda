"""Which piece of the pipeline runs what: the forward pass cut in program order, and all else where its data is.

A backward op runs on the latest piece, not later than its cotangents', at which every forward value it reads is at
hand: made there, or sent there for the forward pass. So every weight gradient falls on its weight's piece and one
cotangent crosses each boundary. What is made of the batch or of literals alone (masks, positions, slices of tokens) is
made again on each piece that wants it. The update of a state is where its gradient is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from autosharding.graph import Value
from autosharding.microbatch.label import Labels
from autosharding.microbatch.states import AFTER, Partial
from autosharding.pipeline.forward import Forward
from autosharding.pipeline.units import Unit


@dataclass(frozen=True)
class Assignment:
    """A labelled step over the pieces of a pipeline.

    Attributes:
        labels: of the step; sums whose terms are made on several pieces are put off until after the loop.
        units: what is assigned, in program order.
        runs: for each piece the indices of its units, those in the loop and those after it.
        made_on: id of each value made in the loop or after it -> the piece that makes it; light values are not in it.
        rounds: id of each value known after the loop -> how often something had to be sent before it could be made.
    """

    labels: Labels
    units: tuple[Unit, ...]
    runs: tuple[tuple[int, ...], ...]
    made_on: Mapping[int, int]
    rounds: Mapping[int, int]

    @property
    def n_pieces(self) -> int:
        """How many."""
        return len(self.runs)

    def received(self, piece: int, place: str) -> list[int]:
        """Ids of the values that the units of a piece in the loop, or after it, read from other pieces."""
        return self._received[piece].get(place, [])

    @cached_property
    def _received(self) -> tuple[Mapping[str, list[int]], ...]:
        """For each piece, of each place."""
        found = []
        for piece in range(self.n_pieces):
            units = self.units_of(piece)
            here = {v for u in units for v in u.makes}
            wanted: dict[str, dict[int, None]] = {}
            for u in units:
                wanted.setdefault(u.place, {}).update(dict.fromkeys(u.reads))
            elsewhere = {v for v, maker in self.made_on.items() if maker != piece} - here
            found.append({place: [v for v in read if v in elsewhere] for place, read in wanted.items()})
        return tuple(found)

    def units_of(self, piece: int) -> list[Unit]:
        """The units of a piece."""
        return [self.units[u] for u in self.runs[piece]]

    def before(self, piece: int, also: Iterable[int]) -> frozenset[int]:
        """First ops of the units that make before the loop what a piece reads, and these values.

        A barrier in the loop also lets pass, before it, what does not depend on the batch.
        """
        labels, units = self.labels, self.units_of(piece)
        found = {u.first for u in units if labels.places[u.first] == "everywhere"}
        todo = [*also, *(v for u in units for v in u.reads), *(v.id for i in found for v in labels.graph.ops[i].values)]
        seen: set[int] = set()
        while todo:
            v = todo.pop()
            u = self.maker.get(v)
            if v in seen or u is None or labels.places[u.first] not in ("before", "everywhere"):
                continue
            seen.add(v)
            found.add(u.first)
            todo += u.reads
        return frozenset(found)

    @cached_property
    def maker(self) -> Mapping[int, Unit]:
        """Id of each value that a unit makes -> the unit."""
        return {v: u for u in self.units for v in u.makes}

    def sent(self, piece: int, place: str) -> list[int]:
        """Ids of the values of a piece that others read in the loop, or after it."""
        return self._sent[place][piece]

    @cached_property
    def _sent(self) -> Mapping[str, tuple[list[int], ...]]:
        """For the loop and what comes after it, of each piece."""
        found = {}
        for place in ("loop", "after"):
            read = {v for p in range(self.n_pieces) for v in self.received(p, place)}
            by_piece: tuple[list[int], ...] = tuple([] for _ in range(self.n_pieces))
            for v in sorted(read):
                by_piece[self.made_on[v]].append(v)
            found[place] = by_piece
        return found


def assign(forward: Forward, starts: Sequence[int]) -> Assignment:
    """Cut a step into pieces.

    Args:
        forward: of the step in microbatches.
        starts: where the pieces begin among its cuttable units, and their number.
    """
    return _Assigner(forward, starts).done()


class _Assigner:
    """Alive during one call of `assign`."""

    def __init__(self, forward: Forward, starts: Sequence[int]) -> None:
        self.labels, self.starts, self.n_pieces = forward.labels, starts, len(starts) - 1
        self.cuttable, self.units, self.maker = forward.cuttable, forward.units, forward.maker
        self.roots, self.light, self.whole = forward.roots, forward.light, forward.whole
        self.piece: dict[int, int] = {}  # unit -> piece
        self.late: set[int] = set()  # units that were in the loop and wait now

    def done(self) -> Assignment:
        """All units in their places."""
        self._forward()
        self._backward()
        self._after()
        runs: list[set[int]] = [set() for _ in range(self.n_pieces)]
        for n, piece in self.piece.items():
            runs[piece].add(n)
        for piece in range(self.n_pieces):
            self._add_light(runs[piece], self._returned_light() if piece == 0 else ())
        units = tuple(replace(u, place="after") if n in self.late else u for n, u in enumerate(self.units))
        made_on = {v: piece for n, piece in self.piece.items() for v in self.units[n].makes if not self.whole(v)}
        labels = self._put_off()
        order = tuple(tuple(sorted(r)) for r in runs)
        return Assignment(labels, units, order, made_on, self._rounds(units, made_on))

    # ---- what can be anywhere --------------------------------------------------------------------------------

    def _add_light(self, runs: set[int], also: Sequence[int]) -> None:
        """With what is light and read here."""
        runs.update(also)
        todo = list(runs)
        while todo:
            for v in self.units[todo.pop()].reads:
                n = self.maker.get(v)
                if n in self.light and n not in runs:
                    runs.add(n)
                    todo.append(n)

    def _returned_light(self) -> list[int]:
        graph = self.labels.graph
        made = [self.maker.get(a.id) for a in graph.outputs if isinstance(a, Value)]
        return [n for n in made if n in self.light]

    # ---- forward and backward --------------------------------------------------------------------------------

    def _forward(self) -> None:
        for piece, (a, b) in enumerate(pairwise(self.starts)):
            self.piece.update((n, piece) for n in self.cuttable[a:b])

    def _backward(self) -> None:
        at_hand = self._at_hand()
        for n, u in enumerate(self.units):
            if u.place != "loop" or not u.backward or n in self.light:
                continue
            pieces = [self.piece[self.maker[v]] for v in u.reads if self._comes_back(v)]
            if self._joins_terms(u, pieces):
                self.late.add(n)
                continue
            latest = min(pieces, default=self.n_pieces - 1)
            sets = [at_hand(v) for v in u.reads if not self._comes_back(v)]
            everywhere = set(range(latest + 1)).intersection(*sets)
            nearest = min((max(s) for s in sets if s), default=latest)
            self.piece[n] = max(everywhere) if everywhere else min(latest, nearest)

    def _comes_back(self, value: int) -> bool:
        """Whether it is made in the loop by the backward pass."""
        n = self.maker.get(value)
        if n is None or n in self.late or n in self.light:
            return False
        return self.units[n].backward and self.units[n].place == "loop"

    def _joins_terms(self, u: Unit, pieces: Sequence[int]) -> bool:
        """Whether terms of a sum come together here from several pieces: each is then summed up where it is made."""
        part = self.labels.parts.get(u.first)
        if part is None or part.cut is not None or not any(isinstance(s, Partial) for s in part.reads):
            return False
        return len(set(pieces)) > 1 or any(self.maker.get(v) in self.late for v in u.reads)

    def _at_hand(self) -> Callable[[int], set[int]]:
        """For a value of the forward pass the pieces that have it."""
        everywhere = set(range(self.n_pieces))
        by_value: dict[int, set[int]] = {}
        by_root: dict[int, set[int]] = {}
        for n, piece in self.piece.items():
            for v in self.units[n].makes:
                by_value.setdefault(v, set()).add(piece)
            for v in self.units[n].reads:
                by_value.setdefault(v, set()).add(piece)
                for root in self.roots.get(v, ()) if self.whole(v) else ():
                    by_root.setdefault(root, set()).add(piece)

        def at_hand(value: int) -> set[int]:
            if self.maker.get(value) in self.light or (value not in self.maker and not self.whole(value)):
                return everywhere
            if self.whole(value):
                return everywhere.intersection(*(by_root.get(r, everywhere) for r in self.roots.get(value, ())))
            return by_value[value]

        return at_hand

    # ---- after the loop --------------------------------------------------------------------------------------

    def _after(self) -> None:
        """Each unit where what it reads is made, arrays counting before scalars."""
        for n, u in enumerate(self.units):
            if u.place == "after" or n in self.late:
                sizes = {v: self.labels.graph.values[v].size for v in u.reads}
                made = {v: self.piece[m] for v in u.reads if (m := self.maker.get(v)) in self.piece}
                arrays = [p for v, p in made.items() if sizes[v] > 1]
                self.piece[n] = min(arrays) if arrays else max(made.values(), default=0)

    def _put_off(self) -> Labels:
        """The labels with what waits now after the loop."""
        if not self.late:
            return self.labels
        states, places = list(self.labels.states), list(self.labels.places)
        for n in self.late:
            places[self.units[n].first] = "after"
            for v in self.units[n].makes:
                states[v] = AFTER
        gone = {self.units[n].first for n in self.late}
        parts = {i: p for i, p in self.labels.parts.items() if i not in gone}
        return replace(self.labels, states=tuple(states), places=tuple(places), parts=parts)

    def _rounds(self, units: Sequence[Unit], made_on: Mapping[int, int]) -> dict[int, int]:
        found: dict[int, int] = {}
        for n, u in enumerate(units):
            if u.place == "loop":
                found.update(dict.fromkeys(u.makes, 0))
            elif u.place == "after":
                piece = self.piece[n]
                before = [found[v] + (made_on[v] != piece) for v in u.reads if v in made_on]
                found.update(dict.fromkeys(u.makes, max(before, default=0)))
        return found
