"""What goes in: prices of every range of layers on every submesh, and of what is sent between two of them.

Floats are seconds, ints are bytes, both per device unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from stage_dp.errors import StageError
from stage_dp.submesh import Submesh, check_shapes


@dataclass(frozen=True, slots=True)
class Price:
    """One way to run a range of layers on a submesh."""

    forward: float
    """Seconds per microbatch."""
    backward: float = 0.0
    """Seconds per microbatch for the cotangents of activations."""
    weight: float = 0.0
    """Seconds per microbatch for the weight gradients, where they can be made apart; 0: `backward` has them."""
    before: float = 0.0
    """Seconds per step before the first microbatch (weights gathered or cast once)."""
    after: float = 0.0
    """Seconds per step after the last microbatch (gradients synchronised, state renewed)."""
    state_bytes: int = 0
    """Held all the time: weights, optimizer state, gradient accumulators."""
    microbatch_bytes: int = 0
    """Held per microbatch in flight: activations kept for the backward pass."""
    released_bytes: int = 0
    """Of these, what its backward task is the last to read where the weight gradients are a task of their own."""
    working_bytes: int = 0
    """The most held besides, while a task runs."""
    outside_bytes: int = 0
    """The most held after the last microbatch: the new state beside the old."""

    @property
    def seconds(self) -> float:
        """Per microbatch."""
        return self.forward + self.backward + self.weight

    @property
    def step_seconds(self) -> float:
        """Per step, beside the microbatches."""
        return self.before + self.after

    def bytes(self, in_flight: int) -> int:
        """The most held per device with that many microbatches in flight."""
        return max(self.state_bytes + in_flight * self.microbatch_bytes + self.working_bytes, self.outside_bytes)


Front = tuple[Price, ...]
"""Ways to run one range on one submesh of which none is worse than another in everything."""


def pareto(prices: Sequence[Price]) -> Front:
    """Leave out prices that another equals or betters in seconds and bytes, each kind taken by itself."""
    kept: list[Price] = []
    for price in sorted(dict.fromkeys(prices), key=_merits):
        if not any(all(a <= b for a, b in zip(_merits(best), _merits(price), strict=True)) for best in kept):
            kept.append(price)
    return tuple(kept)


def _merits(price: Price) -> tuple[float, ...]:
    seconds = (price.seconds, price.forward, price.backward, -price.weight, price.before, price.after)
    return (*seconds, price.state_bytes, price.microbatch_bytes, price.working_bytes)


@dataclass(frozen=True, eq=False)
class Transfers:
    """Seconds to send one microbatch over each cut: float64 [n_layers + 1, sender, receiver], by submesh.

    Cut c lies before layer c. What is used only some stages later crosses every cut on its way.
    """

    forward: np.ndarray
    """Activations, from the stage that ends at the cut to the one that starts there."""
    backward: np.ndarray
    """Their cotangents; still [cut, stage that ends, stage that starts], though they go from the latter."""

    @classmethod
    def of(
        cls,
        n_layers: int,
        submeshes: Sequence[Submesh],
        seconds: Callable[[int, Submesh, Submesh], tuple[float, float]],
    ) -> Transfers:
        """From a function of (cut, submesh that ends there, submesh that starts there) to (forward, backward)."""
        both = np.zeros((2, n_layers + 1, len(submeshes), len(submeshes)))
        for cut in range(1, n_layers):
            for i, sender in enumerate(submeshes):
                for j, receiver in enumerate(submeshes):
                    both[:, cut, i, j] = seconds(cut, sender, receiver)
        return cls(both[0], both[1])

    @classmethod
    def free(cls, n_layers: int, n_submeshes: int) -> Transfers:
        """Nothing sent costs anything."""
        zeros = np.zeros((n_layers + 1, n_submeshes, n_submeshes))
        return cls(zeros, zeros)

    @property
    def both(self) -> np.ndarray:
        """Seconds per microbatch, there and back."""
        return self.forward + self.backward


class Columns(NamedTuple):
    """One row for each point of each front."""

    first: np.ndarray
    end: np.ndarray
    submesh: np.ndarray
    point: np.ndarray
    """Position in the front."""
    seconds: np.ndarray
    """float64 [n, 5]: forward, backward, weight, before, after."""
    bytes: np.ndarray
    """int64 [n, 3]: state, each microbatch in flight, working."""


_SECONDS = attrgetter("forward", "backward", "weight", "before", "after")
_BYTES = attrgetter("state_bytes", "microbatch_bytes", "working_bytes")


@dataclass(frozen=True, eq=False)
class Layers:
    """Layers to be cut into stages, with the prices of all the stages that may come of it."""

    n_layers: int
    nodes: int
    per_node: int
    submeshes: tuple[Submesh, ...]
    fronts: Mapping[tuple[int, int, int], Front]
    """(first layer, one past the last, index of the submesh) -> ways to run it. What is absent is impossible."""
    microbatches: int
    """How many the prices are for: their size, and with it every price, hangs on it."""
    transfers: Transfers
    memory: int | None = None
    """Bytes of each device; None: no limit."""

    @property
    def devices(self) -> int:
        """Of the cluster."""
        return self.nodes * self.per_node

    def only(self, stages: Sequence[tuple[int, int, Submesh]]) -> Layers:
        """The same layers with no other stages than these, (first layer, one past the last, submesh).

        For a split made by hand: `split_layers` then prices it, choosing among the ways to run each stage.
        """
        unknown = [str(shape) for _, _, shape in stages if shape not in self.submeshes]
        if unknown:
            raise StageError(
                f"Submeshes {', '.join(unknown)} have no prices; those that have: "
                f"{', '.join(map(str, self.submeshes))}."
            )
        keys = [(first, end, self.submeshes.index(shape)) for first, end, shape in stages]
        return replace(self, fronts={key: self.fronts[key] for key in keys if key in self.fronts})

    def verify(self) -> None:
        """Raise `StageError` at the first thing wrong, in words."""
        if min(self.n_layers, self.microbatches) < 1:
            raise StageError(
                f"There must be at least one layer and one microbatch; {self.n_layers} and {self.microbatches} given."
            )
        check_shapes(self.nodes, self.per_node, self.submeshes)
        shape = (self.n_layers + 1, len(self.submeshes), len(self.submeshes))
        for name, sent in (("forward", self.transfers.forward), ("backward", self.transfers.backward)):
            if sent.shape != shape or not np.all(sent >= 0):
                raise StageError(
                    f"Transfers ({name}) are {sent.shape}, smallest {sent.min(initial=0.0)}; wanted are seconds, none "
                    f"negative, of shape {shape}: every cut, by the submeshes on its two sides."
                )
        columns = self.columns
        wrong = ~((columns.first >= 0) & (columns.first < columns.end) & (columns.end <= self.n_layers))
        wrong |= (columns.submesh < 0) | (columns.submesh >= len(self.submeshes))
        if wrong.any():
            first, end, k = (int(column[wrong.argmax()]) for column in (columns.first, columns.end, columns.submesh))
            raise StageError(
                f"The price table has an entry for layers {first} to {end - 1} on submesh number {k}; there are "
                f"layers 0 to {self.n_layers - 1} and submeshes 0 to {len(self.submeshes) - 1}."
            )
        wrong = ~(np.isfinite(columns.seconds) & (columns.seconds >= 0)).all(1) | (columns.bytes < 0).any(1)
        if wrong.any():
            at = wrong.argmax()
            first, end, k = (int(column[at]) for column in (columns.first, columns.end, columns.submesh))
            raise StageError(
                f"The price of layers {first} to {end - 1} on {self.submeshes[k]} is "
                f"{self.fronts[first, end, k][columns.point[at]]}. Seconds are finite and none is negative, nor are "
                "bytes; leave out what cannot run."
            )

    @cached_property
    def columns(self) -> Columns:
        """The price table as arrays."""
        keys = np.array(list(self.fronts), dtype=np.int64).reshape(-1, 3)
        lengths = np.array([len(front) for front in self.fronts.values()], dtype=np.int64)
        rows = np.repeat(np.arange(len(keys)), lengths)
        point = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        prices = [price for front in self.fronts.values() for price in front]
        seconds = np.array(list(map(_SECONDS, prices)), dtype=np.float64).reshape(-1, 5)
        held = np.array(list(map(_BYTES, prices)), dtype=np.int64).reshape(-1, 3)
        return Columns(keys[rows, 0], keys[rows, 1], keys[rows, 2], point, seconds, held)
