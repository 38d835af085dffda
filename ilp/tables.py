"""Tables shared by content, and an algebra on them that computes each thing once.

A graph of ten thousand edges has a few hundred distinct cost matrices; so has every graph that a reduction makes
of it. Equal tables are one object, and each operation remembers its answers, so that the hundredth identical
layer costs a dictionary look-up.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import numpy as np
from numba import njit

__all__ = ["Table", "Tables"]

EXACT = 2e-15
"""Two sums that differ by less than this, relative to the largest term, differ by rounding alone."""


class Table:
    """An array that is never written to; equal only to itself."""

    __slots__ = ("_ends", "array", "serial")

    def __init__(self, array: np.ndarray, serial: int) -> None:
        self.array = array
        self.serial = serial
        self._ends: tuple[int, int] | None = None

    @property
    def ends(self) -> tuple[int, int]:
        """Of bytes: the fewest and the most."""
        if self._ends is None:
            self._ends = int(self.array.min()), int(self.array.max())
        return self._ends

    def __len__(self) -> int:
        return len(self.array)


class Tables:
    """The algebra. Matrices are indexed [u, v], vectors [u]; infinities are forbidden entries."""

    def __init__(self, memo_bytes: int = 600 << 20) -> None:
        self._known: dict[bytes, Table] = {}
        self._by_id: dict[int, tuple[np.ndarray, Table]] = {}
        self._memo: dict[tuple[Any, ...], Any] = {}
        self._bytes = self._made = 0
        self._memo_bytes = memo_bytes

    def table(self, array: np.ndarray) -> Table:
        """The one table with this content."""
        digest = blake2b(np.ascontiguousarray(array).data, digest_size=16)
        digest.update(repr((array.shape, array.dtype.char)).encode())
        key = digest.digest()
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = Table(np.ascontiguousarray(array), self._made)
            self._made += 1
            self._bytes += array.nbytes
        return found

    def shared(self, array: np.ndarray) -> Table:
        """The table of an input array, known by its identity where it was seen before."""
        seen = self._by_id.get(id(array))
        if seen is None:
            seen = self._by_id[id(array)] = (array, self.table(array))
        return seen[1]

    def remember(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """The value of ``make()``, made once per ``key``; the memory is emptied when it grows too large."""
        if key in self._memo:
            return self._memo[key]
        if self._bytes > self._memo_bytes:
            self._memo.clear()
            self._known.clear()
            self._bytes = 0
        value = self._memo[key] = make()
        return value

    def turned(self, a: Table) -> Table:
        """The transpose."""
        return self.remember(("turned", a), lambda: self.table(a.array.T))

    def plus(self, a: Table, b: Table) -> Table:
        """The sum, entry by entry."""
        return self.remember(("plus", a, b), lambda: self.table(a.array + b.array))

    def rows(self, a: Table, at: Table) -> Table:
        """The rows (of a vector: the entries) at the indices ``at``, in that order."""
        return self.remember(("rows", a, at), lambda: self.table(a.array[at.array]))

    def row(self, a: Table, at: int) -> Table:
        """One row, as a vector."""
        return self.remember(("row", a, at), lambda: self.table(a.array[at]))

    def less(self, a: Table, value: float) -> Table:
        """Every entry less ``value``."""
        return self.remember(("less", a, value), lambda: self.table(a.array - value))

    def diagonal(self, a: Table, f: Table) -> Table:
        """The vector a[i, f[i]]."""
        return self.remember(("diagonal", a, f), lambda: self.table(a.array[np.arange(len(a)), f.array]))

    def alive(self, a: Table) -> np.ndarray | None:
        """The rows in which something is allowed, as a mask; None if that is all of them."""

        def make() -> np.ndarray | None:
            allowed = np.isfinite(a.array).reshape(len(a), -1)
            mask = np.asarray(allowed.any(axis=1))
            return None if mask.all() else mask

        return self.remember(("alive", a), make)

    def function(self, a: Table) -> Table | None:
        """The map f with only (i, f[i]) allowed in every row i; None if some row allows several."""

        def make() -> Table | None:
            finite = np.isfinite(a.array)
            if (finite.sum(axis=1) != 1).any():
                return None
            return self.table(finite.argmax(axis=1))

        return self.remember(("function", a), make)

    def split(self, a: Table) -> tuple[Table, Table] | None:
        """The vectors p, q with a[i, j] = p[i] + q[j]; None if there are none."""

        def make() -> tuple[Table, Table] | None:
            if not np.isfinite(a.array).all():
                return None
            p, q = a.array[:, 0], a.array[0] - a.array[0, 0]
            off = np.abs(p[:, None] + q[None, :] - a.array).max()
            if off > EXACT * np.abs(a.array).max():
                return None
            return self.table(p), self.table(q)

        return self.remember(("split", a), make)

    def promise(self, a: Table) -> tuple[np.ndarray, float]:
        """G[i, k] >= min_j a[i, j] - a[k, j], what i costs more than k at the least; and the largest entry.

        Quick: where i is cheapest it costs min a[i] and k at least min a[k]; so it is where k is dearest.
        """
        return self.remember(("promise", a), lambda: (_promise(a.array), _largest(a.array)))

    def least(self, cost: Table, a: Table) -> Table:
        """The vector min_u cost[u] + a[u, v]."""
        return self.remember(("least", cost, a), lambda: self.table((cost.array[:, None] + a.array).min(axis=0)))

    def through(self, cost: Table, a: Table, b: Table) -> Table:
        """The matrix min_u cost[u] + a[u, v] + b[u, w], over v and w."""
        return self.remember(("through", cost, a, b), lambda: self.table(_through(cost.array, a.array, b.array)))


def _largest(a: np.ndarray) -> float:
    return float(np.abs(a[np.isfinite(a)]).max(initial=0.0))


def _promise(a: np.ndarray) -> np.ndarray:
    least = a.min(axis=1)
    gain = least[:, None] - least[None, :]
    most = a.max(axis=1)
    if np.isfinite(most).all():
        gain = np.minimum(gain, most[:, None] - most[None, :])
    return gain


@njit(cache=True, fastmath={"nnan"})
def _through(cost: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    out = np.full((a.shape[1], b.shape[1]), np.inf)
    for v in range(a.shape[1]):
        row = out[v]
        for u in range(len(cost)):
            first = cost[u] + a[u, v]
            if first < np.inf:
                for w in range(b.shape[1]):
                    both = first + b[u, w]
                    row[w] = both if both < row[w] else row[w]
    return out
