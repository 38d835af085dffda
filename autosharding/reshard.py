"""From one spec to another: the cheapest list of collectives, one function for the price and for the run.

`SpecSpace` holds every spec that one kind of array can take on a topology, the price of each change and the moves that
make it. Moves are single collectives: all-gather, reduce-scatter, all-reduce, all-to-all, collective-permute, and two
that cost nothing on the wire: `slice` (keep a piece of what is whole) and `mask` (make a whole value partial: one
device keeps it, the others hold zeros).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numba import njit

from autosharding.rules import axis_index
from autosharding.spec import Spec
from cost_model import Topology

_BOOL_AS_INT = 4

CLOSE = 1e-9
"""Relative difference below which prices are the same."""

WIRE = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True, slots=True)
class Move:
    """One step of a reshard.

    Attributes:
        kind: one of `WIRE`, or "slice", or "mask".
        axes: the mesh axes it runs over.
        before: the spec it starts from.
        after: the spec it arrives at.
        bytes: what the kind counts: all-gather its result, reduce-scatter and all-reduce their operand, all-to-all and
            collective-permute the local array, on one device.
        seconds: its price.
    """

    kind: str
    axes: tuple[str, ...]
    before: Spec
    after: Spec
    bytes: int
    seconds: float

    @property
    def on_wire(self) -> bool:
        """Whether devices talk."""
        return self.kind in WIRE


class SpecSpace:
    """All specs of arrays of one shape, element size and monoid on one topology, and the moves between them.

    Args:
        shape: the global shape.
        itemsize: bytes per element.
        monoid: the reduction of its partial states; None for arrays that are never partial.
        topology: the mesh with its prices.
        splittable: False for arrays that are always whole (typed PRNG keys).
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        itemsize: int,
        monoid: str | None,
        topology: Topology,
        *,
        splittable: bool = True,
    ) -> None:
        self.shape = shape
        self.splittable = splittable
        self.itemsize = itemsize
        self.monoid = monoid
        self.topology = topology
        self.sizes = dict(zip(topology.axis_names, topology.sizes, strict=True))
        self.specs: tuple[Spec, ...] = tuple(self._enumerate())
        self.index = {s: i for i, s in enumerate(self.specs)}

    def _enumerate(self) -> Iterator[Spec]:
        """Every spec whose axes stand in mesh order within a dim."""
        codes = ["R", *(["P"] if self.monoid else []), *(range(len(self.shape)) if self.splittable else ())]
        for labels in product(codes, repeat=len(self.sizes)):
            dims: list[list[str]] = [[] for _ in self.shape]
            partial = []
            for axis, code in zip(self.sizes, labels, strict=True):
                if isinstance(code, int):
                    dims[code].append(axis)
                elif code == "P":
                    partial.append(axis)
            spec = Spec(tuple(map(tuple, dims)), tuple(partial), (self.monoid or "sum") if partial else "sum")
            if spec.fits(self.shape, self.sizes):
                yield spec

    @cached_property
    def whole(self) -> np.ndarray:
        """Indices of the specs that are not partial."""
        return np.array([i for i, s in enumerate(self.specs) if not s.partial])

    @cached_property
    def bytes(self) -> np.ndarray:
        """Bytes of one device's piece under each spec, int64."""
        return np.array([self._local_bytes[s] for s in self.specs], np.int64)

    @cached_property
    def _local_bytes(self) -> Mapping[Spec, int]:
        return {s: prod(shape) * self.itemsize for s, shape in self._local_shapes.items()}

    @cached_property
    def _local_shapes(self) -> Mapping[Spec, tuple[int, ...]]:
        return {s: s.local_shape(self.shape, self.sizes) for s in self.specs}

    @cached_property
    def _of_shape(self) -> Mapping[tuple[int, ...], Sequence[Spec]]:
        """Local shape -> the specs under which an array has it that is not partial."""
        found: dict[tuple[int, ...], list[Spec]] = defaultdict(list)
        for spec, shape in self._local_shapes.items():
            if not spec.partial:
                found[shape].append(spec)
        return found

    @cached_property
    def _closure(self) -> tuple[np.ndarray, np.ndarray, dict[tuple[int, int], Move]]:
        """Floyd-Warshall over single moves: (seconds, next spec on the way, moves); fewer moves break ties."""
        n = len(self.specs)
        seconds = np.full((n, n), np.inf)
        hops = np.full((n, n), n, np.int64)
        follow = np.full((n, n), -1, np.int64)
        np.fill_diagonal(seconds, 0.0)
        np.fill_diagonal(hops, 0)
        moves: dict[tuple[int, int], Move] = {}
        for i, spec in enumerate(self.specs):
            for move in self._moves(spec):
                j = self.index[move.after]
                if move.seconds < seconds[i, j]:
                    seconds[i, j], hops[i, j], follow[i, j] = move.seconds, 1, j
                    moves[i, j] = move
        _shorten(seconds, hops, follow)
        return seconds, follow, moves

    @property
    def seconds(self) -> np.ndarray:
        """float64 [n, n]: the price of getting from one spec to another; inf where there is no way."""
        return self._closure[0]

    def path(self, source: Spec, target: Spec) -> tuple[Move, ...]:
        """The moves of the cheapest way; empty where the specs are equal.

        Raises:
            ValueError: when there is no way (a whole value cannot become partial under a monoid without a zero).
        """
        _, follow, moves = self._closure
        i, j = self.index[source], self.index[target]
        steps = []
        while i != j:
            if follow[i, j] < 0:
                raise ValueError(f"there is no way from {source} to {target}")
            steps.append(moves[i, int(follow[i, j])])
            i = int(follow[i, j])
        return tuple(steps)

    def _move(self, kind: str, axes: tuple[str, ...], before: Spec, after: Spec) -> Move:
        counted = self._local_bytes[after if kind == "all-gather" else before]
        if kind == "all-reduce" and self.monoid in ("and", "or"):
            counted *= _BOOL_AS_INT  # booleans are counted as i32, see `_all_reduce`
        if kind not in WIRE:
            return Move(kind, axes, before, after, counted, 0.0)
        group = prod(self.sizes[a] for a in axes)
        priced = counted * group if kind == "all-to-all" else counted
        return Move(kind, axes, before, after, counted, self.topology.seconds(kind, axes, priced))

    def _moves(self, spec: Spec) -> Iterator[Move]:
        for n in range(1, len(self.sizes) + 1):
            for axes in combinations(self.sizes, n):
                yield from self._moves_over(spec, axes)
        for axis in self.sizes:
            yield from self._free_moves(spec, axis)
        yield from self._permutes(spec)

    def _moves_over(self, spec: Spec, axes: tuple[str, ...]) -> Iterator[Move]:
        """Collectives over these axes as one group."""
        if set(axes) <= set(spec.partial):
            left = tuple(a for a in spec.partial if a not in axes)
            reduced = Spec(spec.dims, left, spec.monoid if left else "sum")
            yield self._move("all-reduce", axes, spec, reduced)
            if spec.monoid == "sum":
                for d in range(len(self.shape)):
                    if (after := self._appended(reduced, d, axes)) is not None:
                        yield self._move("reduce-scatter", axes, spec, after)
        for d, held in enumerate(spec.dims):
            if held[-len(axes) :] != axes:
                continue
            gathered = _with_dim(spec, d, held[: -len(axes)])
            yield self._move("all-gather", axes, spec, gathered)
            for e in range(len(self.shape)):
                if e != d and (after := self._appended(gathered, e, axes)) is not None:
                    yield self._move("all-to-all", axes, spec, after)

    def _free_moves(self, spec: Spec, axis: str) -> Iterator[Move]:
        if axis in spec.axes:
            return
        for d in range(len(self.shape)):
            if (after := self._appended(spec, d, (axis,))) is not None:
                yield self._move("slice", (axis,), spec, after)
        if self.monoid is not None and (not spec.partial or spec.monoid == self.monoid):
            partial = tuple(a for a in self.sizes if a in spec.partial or a == axis)
            yield self._move("mask", (axis,), spec, Spec(spec.dims, partial, self.monoid))

    def _permutes(self, spec: Spec) -> Iterator[Move]:
        """To any spec with the same local shape: each device needs exactly one other's piece."""
        if spec.partial or spec.is_replicated:
            return
        for other in self._of_shape[self._local_shapes[spec]]:
            if other != spec:
                axes = tuple(a for a in self.sizes if a in spec.axes or a in other.axes)
                yield self._move("collective-permute", axes, spec, other)

    def _appended(self, spec: Spec, dim: int, axes: tuple[str, ...]) -> Spec | None:
        after = _with_dim(spec, dim, spec.dims[dim] + axes)
        return after if after in self.index else None


@njit(cache=True)
def _shorten(seconds: np.ndarray, hops: np.ndarray, follow: np.ndarray) -> None:
    """Floyd-Warshall in place, from single moves: by seconds, then by hops."""
    n = len(seconds)
    for k in range(n):
        for i in range(n):
            if np.isinf(seconds[i, k]):
                continue
            for j in range(n):
                via, via_hops = seconds[i, k] + seconds[k, j], hops[i, k] + hops[k, j]
                # sums of the same prices in another order are the same price
                close = abs(via - seconds[i, j]) <= CLOSE * seconds[i, j]
                if via_hops < hops[i, j] if close else via < seconds[i, j]:
                    seconds[i, j], hops[i, j], follow[i, j] = via, via_hops, follow[i, k]


def _with_dim(spec: Spec, dim: int, axes: tuple[str, ...]) -> Spec:
    return Spec((*spec.dims[:dim], axes, *spec.dims[dim + 1 :]), spec.partial, spec.monoid)


def apply(move: Move, x: Any, mesh: Mapping[str, int]) -> Any:
    """Run one move on a device's piece, inside `shard_map`.

    Args:
        move: the move.
        x: the local array, laid out as `move.before`.
        mesh: axis -> size.

    Returns:
        The local array, laid out as `move.after`.
    """
    return _APPLY[move.kind](move, x, mesh)


def _all_reduce(move: Move, x: Any, mesh: Mapping[str, int]) -> Any:
    monoid = move.before.monoid
    if monoid == "sum":
        return jax.lax.psum(x, move.axes)
    if monoid in ("max", "min"):
        return (jax.lax.pmax if monoid == "max" else jax.lax.pmin)(x, move.axes)
    counted = jax.lax.psum(x.astype(jnp.int32), move.axes)
    return counted == prod(mesh[a] for a in move.axes) if monoid == "and" else counted > 0


def _all_gather(move: Move, x: Any, mesh: Mapping[str, int]) -> Any:
    return jax.lax.all_gather(x, move.axes, axis=_changed(move), tiled=True)


def _reduce_scatter(move: Move, x: Any, mesh: Mapping[str, int]) -> Any:
    return jax.lax.psum_scatter(x, move.axes, scatter_dimension=_changed(move), tiled=True)


def _all_to_all(move: Move, x: Any, mesh: Mapping[str, int]) -> Any:
    lost = next(d for d, (b, a) in enumerate(_dims(move)) if len(a) < len(b))
    won = next(d for d, (b, a) in enumerate(_dims(move)) if len(a) > len(b))
    return jax.lax.all_to_all(x, move.axes, split_axis=won, concat_axis=lost, tiled=True)


def _slice(move: Move, x: Any, mesh: Mapping[str, int]) -> Any:
    d = _changed(move)
    size = x.shape[d] // prod(mesh[a] for a in move.axes)
    return jax.lax.dynamic_slice_in_dim(x, axis_index(move.axes, mesh) * size, size, axis=d)


def _mask(move: Move, x: Any, mesh: Mapping[str, int]) -> Any:
    if move.after.monoid != "sum":
        return x  # max, min, and, or of equal values are the value
    return jnp.where(axis_index(move.axes, mesh) == 0, x, jnp.zeros_like(x))


def _permute(move: Move, x: Any, mesh: Mapping[str, int]) -> Any:
    return jax.lax.ppermute(x, move.axes, permutation(move, mesh))


def permutation(move: Move, mesh: Mapping[str, int]) -> list[tuple[int, int]]:
    """(from, to) pairs over `move.axes` such that each device receives the piece that `move.after` wants."""
    sizes = [mesh[a] for a in move.axes]

    def piece(spec: Spec, place: tuple[int, ...]) -> tuple[int, ...]:
        at = dict(zip(move.axes, place, strict=True))
        index = []
        for axes in spec.dims:
            i = 0
            for a in axes:
                i = i * mesh[a] + at[a]
            index.append(i)
        return tuple(index)

    places = list(product(*map(range, sizes)))
    holders: dict[tuple[int, ...], list[int]] = {}
    for n, place in enumerate(places):
        holders.setdefault(piece(move.before, place), []).append(n)
    wanted = [piece(move.after, place) for place in places]
    pairs: dict[int, int] = {}
    for n, want in enumerate(wanted):
        if n in holders[want]:  # a device that has its piece keeps it
            holders[want].remove(n)
            pairs[n] = n
    for n, want in enumerate(wanted):
        if n not in pairs:
            pairs[n] = holders[want].pop(0)
    return [(source, target) for target, source in sorted(pairs.items())]


def _dims(move: Move) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    return list(zip(move.before.dims, move.after.dims, strict=True))


def _changed(move: Move) -> int:
    return next(d for d, (b, a) in enumerate(_dims(move)) if a != b)


_APPLY = {
    "all-reduce": _all_reduce,
    "all-gather": _all_gather,
    "reduce-scatter": _reduce_scatter,
    "all-to-all": _all_to_all,
    "collective-permute": _permute,
    "slice": _slice,
    "mask": _mask,
}
