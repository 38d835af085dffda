"""The price table: what every range of layers takes on every submesh, from plans of few of them.

Layers that do the same have one price; of each kind one is planned, as a piece, on the meshes of every submesh. A
range costs the sum of its layers. Where memory is short, a plan that holds less is worth more seconds; how many is not
known before the stages are. So each submesh is priced for several rents on the bytes that are held: the plans that are
best for some rent are the corners of the front of seconds and bytes, and one rent for all layers of a range is what
makes the sum of their best plans the best of the range.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from operator import add
from typing import Any

from autosharding.errors import Infeasible
from autosharding.pipeline.alike import classes_of
from autosharding.pipeline.assign import Assignment, assign
from autosharding.pipeline.build import NO_LIMIT, Planner
from autosharding.pipeline.forward import Forward
from autosharding.pipeline.layers import layers_of
from autosharding.pipeline.parts import Parts
from autosharding.pipeline.piece import Piece, piece_of
from autosharding.pipeline.tally import price_of
from cost_model import Cluster, Topology
from stage_dp import Layers, Price, Submesh, Transfers, pareto

RENTS = (0.3, 0.01)
"""For holding all that a layer's state needs, these shares of the layer's time, the highest first. At the last, of
plans that take about as long the one that holds least is taken."""

MOST_AXES = 2
"""Axes of the logical meshes that are priced: a third has cost ten times the planning and gained under 3%."""

WORTH = 0.99
"""A mesh of more axes is taken if the commonest kind of layer takes on it less than so many times the seconds that it
takes on the best of fewer axes; less is held at a rent if it is less than so many times the bytes."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a range was priced: the logical mesh, and seconds for a byte held all the time."""

    topology: Topology
    rent: float


@dataclass(frozen=True)
class Table:
    """A price table, and how each price was come by.

    Attributes:
        layers: the table.
        starts: where the layers begin among the cuttable units of the forward pass, and the number of these.
        ways: (first layer, one past the last, index of the submesh) -> for each point of the front the way.
    """

    layers: Layers
    starts: tuple[int, ...]
    ways: Mapping[tuple[int, int, int], tuple[Way, ...]]


@dataclass(frozen=True, slots=True)
class Priced:
    """The prices of layers run in one way.

    Attributes:
        way: the way.
        singles: kind -> price of one layer; without those that cannot run so.
    """

    way: Way
    singles: Mapping[int, Price]


class Pricer:
    """Prices the layers of a step in microbatches.

    Args:
        forward: of the step.
        planner: of pieces.
        splits_backward: whether weight gradients are tasks of their own.
        like: of the same step in other microbatches, if there is one: where the program is cut alike, its layers and
            their kinds are the same.
    """

    def __init__(
        self, forward: Forward, planner: Planner, *, splits_backward: bool, like: Pricer | None = None
    ) -> None:
        self.forward, self.planner = forward, planner
        self.splits_backward = splits_backward
        self.microbatches = forward.labels.microbatches
        self.like = like if like is not None and like.forward.is_cut_like(forward) else None
        self._known: dict[tuple[int, Way], Price | None] = {}
        self._known_ways: dict[Cluster, list[tuple[Way, Price]]] = {}

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where the layers begin among the cuttable units, and the number of these."""
        return self.like.starts if self.like is not None else layers_of(self.forward)

    @cached_property
    def kinds(self) -> tuple[int, ...]:
        """For each layer the first that does the same."""
        return self.like.kinds if self.like is not None else classes_of(self._assigned)

    @cached_property
    def commonest(self) -> int:
        """The kind that most layers are of; of equally many, that with most work."""
        forward, kinds = self.forward, self.kinds
        spans = list(pairwise(self.starts))
        return max(dict.fromkeys(kinds), key=lambda k: (kinds.count(k), sum(forward.work[slice(*spans[k])])))

    def table(self, cluster: Cluster, submeshes: Sequence[Submesh], memory: int | None) -> Table:
        """The prices of all ranges on all submeshes.

        Args:
            cluster: all devices.
            submeshes: the shares of it that a stage may get.
            memory: bytes that a device may hold; None: its own less its reserve.
        """
        budget = memory if memory is not None else cluster.device.usable_memory
        n = len(self.kinds)
        in_place = self.forward.donated.issuperset(self.forward.state.values())
        fronts, ways = {}, {}
        for k, submesh in enumerate(submeshes):
            ranges: dict[tuple[int, int], dict[Price, Way]] = {}
            for priced in self._priced(cluster.group(submesh.devices), budget):
                for span, price in _ranges(self.kinds, priced, budget, in_place=in_place):
                    ranges.setdefault(span, {}).setdefault(price, priced.way)
            for (i, j), found in ranges.items():
                front = pareto(list(found))
                fronts[i, j, k] = front
                ways[i, j, k] = tuple(found[price] for price in front)
        nodes, per_node = cluster.nodes
        sent = Transfers.of(n, submeshes, lambda c, a, b: self._sent(cluster, c, a, b))
        layers = Layers(n, nodes, per_node, tuple(submeshes), fronts, self.microbatches, sent, budget)
        return Table(layers, self.starts, ways)

    def promised(self, cluster: Cluster, submesh: Submesh, memory: int | None) -> float:
        """Seconds of a step if all layers were of the commonest kind, in equal stages; inf where there is no room.

        Args:
            cluster: all devices.
            submesh: of each stage.
            memory: as for `table`.
        """
        budget = memory if memory is not None else cluster.device.usable_memory
        spans = list(pairwise(self.starts))
        n_layers = sum(self.forward.work) / max(1.0, sum(self.forward.work[slice(*spans[self.commonest])]))
        layers = max(1.0, n_layers * submesh.devices / cluster.n_devices)
        stages = n_layers / layers
        in_flight = min(stages, self.microbatches)
        return min(
            (
                layers * ((self.microbatches + stages - 1) * price.seconds + price.step_seconds)
                for _, price in self._ways(cluster.group(submesh.devices))
                if layers * (price.state_bytes + in_flight * price.microbatch_bytes) + price.working_bytes <= budget
            ),
            default=math.inf,
        )

    # ---- pieces ----------------------------------------------------------------------------------------------

    @cached_property
    def _assigned(self) -> Assignment:
        return assign(self.forward, self.starts)

    def _piece_of(self, kind: int) -> Piece:
        """A piece of one layer of a kind."""
        if kind not in self._pieces:
            self._pieces[kind] = piece_of(self._assigned, kind, self.forward)
        return self._pieces[kind]

    @cached_property
    def _pieces(self) -> dict[int, Piece]:
        return {}

    # ---- prices ----------------------------------------------------------------------------------------------

    def _priced(self, group: Cluster, budget: int) -> list[Priced]:
        """The prices of all kinds of layers on a submesh, for each way worth pricing."""
        if self._least(self.commonest) / group.n_devices > budget:
            return []
        found = []
        for way, _ in self._ways(group):
            singles: dict[int, Price] = {}
            for kind in dict.fromkeys(self.kinds):
                price = self._price(kind, way)
                if price is not None:
                    singles[kind] = price
            found.append(Priced(way, singles))
        return found

    def _ways(self, group: Cluster) -> list[tuple[Way, Price]]:
        """The ways that are worth pricing, with the price of the commonest kind."""
        if group not in self._known_ways:
            self._known_ways[group] = self._found_ways(group)
        return self._known_ways[group]

    def _found_ways(self, group: Cluster) -> list[tuple[Way, Price]]:
        meshes = group.logical_meshes(MOST_AXES)
        found = [(Way(t, 0.0), price) for t in meshes if (price := self._common(Way(t, 0.0))) is not None]
        if not found or group.n_devices == 1:
            return found
        least = min((price for _, price in found), key=self._seconds)
        rent = self._seconds(least) / max(1, least.state_bytes)
        best = [self._best(found)]
        for share in RENTS:
            way = Way(best[0][0].topology, share * rent)
            price = self._common(way)
            if price is None or price.state_bytes > WORTH * best[-1][1].state_bytes:
                break  # the highest rent comes first: nothing more can be saved
            best.append((way, price))
        return best[:1] if len(best) == 1 else best[1:]

    def _best(self, ways: Sequence[tuple[Way, Price]]) -> tuple[Way, Price]:
        """The fastest way, fewer axes first."""
        best = ways[0]
        for way in ways[1:]:
            if self._seconds(way[1]) < WORTH * self._seconds(best[1]):
                best = way
        return best

    def _common(self, way: Way) -> Price | None:
        return self._price(self.commonest, way)

    def _seconds(self, price: Price) -> float:
        """Of a step."""
        return self.microbatches * price.seconds + price.step_seconds

    def _price(self, kind: int, way: Way) -> Price | None:
        """The price of a layer of a kind; None where it cannot run so."""
        if (kind, way) not in self._known:
            self._known[kind, way] = self._price_of(self._piece_of(kind), way)
        return self._known[kind, way]

    def _price_of(self, piece: Piece, way: Way) -> Price | None:
        try:
            plan = self.planner(piece, way.topology, NO_LIMIT, way.rent)
        except Infeasible:
            return None
        parts = Parts(piece, plan, self._assigned.rounds, splits_backward=self.splits_backward)
        return price_of(parts, self.microbatches)

    def _least(self, kind: int) -> int:
        """Bytes that the state of a layer takes on all devices together."""
        piece = self._piece_of(kind)
        return sum(piece.graph.inputs[i].nbytes for i in set(piece.state.values()))

    def _sent(self, cluster: Cluster, at: int, a: Submesh, b: Submesh) -> tuple[float, float]:
        """Seconds to send a microbatch over a cut; between nodes, if there are several."""
        link = cluster.link_between(0, cluster.n_devices - 1)
        size = self.forward.sent[self.starts[at]] / self.microbatches
        seconds = link.latency + size / min(a.devices, b.devices) / link.bandwidth
        return seconds, seconds


_ADDED = ("forward", "backward", "weight", "before", "after", "state_bytes", "microbatch_bytes", "released_bytes")
"""What of the prices of layers adds up to that of a range; of what is held while a task runs the most counts."""


def _ranges(
    kinds: Sequence[int], way: Priced, budget: int, *, in_place: bool
) -> Iterator[tuple[tuple[int, int], Price]]:
    """The prices of the ranges of layers that fit.

    Where state is renewed in place, what the update makes besides is there for one layer at a time.
    """
    join = max if in_place else add
    for i in range(len(kinds)):
        sums: dict[str, Any] = dict.fromkeys(_ADDED, 0)
        working = outside = 0
        for j in range(i, len(kinds)):
            price = way.singles.get(kinds[j])
            if price is None:
                break
            for name in _ADDED:
                sums[name] += getattr(price, name)
            working = max(working, price.working_bytes)
            outside = join(outside, max(0, price.outside_bytes - price.state_bytes))
            price = Price(**sums, working_bytes=working, outside_bytes=sums["state_bytes"] + outside)
            if price.bytes(1) <= budget:
                yield (i, j + 1), price
