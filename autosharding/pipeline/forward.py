"""The forward pass of a labelled step as a pipeline may cut it: units in program order, and what a cut would send."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from autosharding.errors import StageError
from autosharding.microbatch.label import Labels
from autosharding.pipeline.units import Unit, is_whole, units_of
from autosharding.planner.roles import roles
from stage_dp import NoStages, cluster_layers

SLACK = 0.05
"""By how much a piece may cost more than the mean; doubled until the program has such a cut."""


@dataclass(frozen=True, eq=False)
class Forward:
    """A labelled step, and its forward pass in the loop over microbatches.

    Attributes:
        labels: of the step.
        state: result index -> index of the input whose new state it is.
        donated: inputs whose buffers their new state takes over.
    """

    labels: Labels
    state: Mapping[int, int]
    donated: frozenset[int] = frozenset()

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """All units of the step, in program order."""
        return tuple(units_of(self.labels))

    @cached_property
    def maker(self) -> Mapping[int, int]:
        """Id of each value that a unit makes -> index of the unit."""
        return {v: n for n, u in enumerate(self.units) for v in u.makes}

    @cached_property
    def roles(self) -> tuple[str, ...]:
        """What each input is to the step."""
        return roles(self.labels.graph, self.state)

    @cached_property
    def roots(self) -> Mapping[int, frozenset[int]]:
        """Id of each value known before the loop -> the arrays of the state, or weights, that it is made of."""
        graph = self.labels.graph
        parameters = (i for i, role in enumerate(self.roles) if role == "parameter")
        states = {graph.inputs[i].id for i in (*self.state.values(), *parameters)}
        found = {v.id: frozenset({v.id} if v.id in states and v.rank else ()) for v in graph.inputs}
        for u in self.units:
            above = frozenset().union(*(found.get(v, frozenset()) for v in u.reads if self.whole(v)))
            found.update((v, above) for v in u.makes if self.whole(v))
        return found

    @cached_property
    def light(self) -> frozenset[int]:
        """Units in the loop that need no state, and so no cotangents: made where they are wanted."""
        found: set[int] = set()
        for n, u in enumerate(self.units):
            if u.place == "loop" and all(self._is_light_value(v, found) for v in u.reads):
                found.add(n)
        return frozenset(found)

    @cached_property
    def cuttable(self) -> tuple[int, ...]:
        """Indices of the units that a cut parts: of the forward pass in the loop, and not light."""
        units = enumerate(self.units)
        return tuple(n for n, u in units if u.place == "loop" and not u.backward and n not in self.light)

    @cached_property
    def work(self) -> tuple[float, ...]:
        """Of each cuttable unit, floating-point operations in one step."""
        return tuple(self.units[n].work for n in self.cuttable)

    @cached_property
    def sent(self) -> tuple[int, ...]:
        """For each cuttable unit the bytes that are sent for the whole batch when a piece begins with it.

        What is computed again for the backward pass (`jax.checkpoint`) begins with a barrier; a cut through what it
        repeats would send all that the barrier lets pass.
        """
        last = {v: i for i, n in enumerate(self.cuttable) for v in self.units[n].reads}
        change = [0] * (len(self.cuttable) + 1)
        for i, n in enumerate(self.cuttable):
            for v in self.units[n].makes:
                size = self.labels.graph.values[v].nbytes
                change[i + 1] += size
                change[last.get(v, i) + 1] -= size
        for first, end, size in self._repeated():
            change[first + 1] += size
            change[end + 1] -= size
        return tuple(accumulate(change[:-1]))

    def is_cut_like(self, other: Forward) -> bool:
        """Whether the ops of another, of the same step in other microbatches, have the same places."""
        kinds = [[type(state) for state in forward.labels.states] for forward in (self, other)]
        same = self.labels.graph is other.labels.graph and self.labels.places == other.labels.places
        return same and kinds[0] == kinds[1] and self.sent == other.sent and self.work == other.work

    def _repeated(self) -> list[tuple[int, int, int]]:
        """(first cuttable unit, last, bytes let pass by the barrier) of what is computed again."""
        readers: dict[int, list[int]] = {}
        for i, n in enumerate(self.cuttable):
            for v in self.units[n].reads:
                readers.setdefault(v, []).append(i)
                for root in self.roots.get(v, ()) if self.whole(v) else ():
                    readers.setdefault(root, []).append(i)
        found = []
        for u in self.units:
            region = self.labels.graph.ops[u.first].region
            if u.backward and region is not None and not region.bodies:
                roots = {r for v in u.reads if self.whole(v) for r in self.roots.get(v, ())}
                at = [i for r in roots for i in readers.get(r, ())]
                if at:
                    size = sum(self.labels.graph.values[v].nbytes for v in u.reads)
                    found.append((min(at), max(at), size))
        return found

    def even(self, n_pieces: int) -> tuple[int, ...]:
        """Where so many pieces begin among the cuttable units, and the end.

        They are as alike as the units allow, and of such as send little.

        Raises:
            StageError: when there are not so many units.
        """
        slack = SLACK
        while True:
            try:
                return cluster_layers(self.work, self.sent, n_pieces, slack)
            except NoStages as error:
                if slack >= n_pieces:
                    raise StageError(
                        f"The step {self.labels.graph.name!r} was to be cut into {n_pieces} pieces: {error}"
                        f"{self._in_a_loop}"
                    ) from error
                slack *= 2

    @property
    def _in_a_loop(self) -> str:
        """For errors: the loop that holds most of the work, which is one op to the cut."""
        share, n = max(zip(self.work, self.cuttable, strict=True), default=(0.0, 0))
        op = self.labels.graph.ops[self.units[n].first] if self.units else None
        loops = op is not None and op.region is not None and op.region.kind in ("scan", "while")
        if op is None or not loops or op.params.get("length") == 1 or 2 * share <= sum(self.work):
            return ""
        return (
            f" Most of the work is in {op.where}, which stays in one piece, for it does not run over the parameters of "
            "layers. A loop over parts of the batch can be left out: the step on the whole batch, with microbatches, "
            "does the same."
        )

    def whole(self, value: int) -> bool:
        """Whether a value is there before the loop."""
        return is_whole(self.labels, value)

    def _is_light_value(self, value: int, light: set[int]) -> bool:
        if value in self.maker and not self.whole(value):
            return self.maker[value] in light
        return not self.roots.get(value)
