"""A linear program over index arrays: the paper's rows, before any solver sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse

__all__ = ["Program"]


@dataclass(slots=True)
class Program:
    """``min cost·x`` over ``0 <= x <= upper`` and named rows ``lo <= Ax <= hi``; columns may be integer.

    Filled by ``columns`` and ``rows`` in any order; ``matrix`` hands the rows over.
    """

    cost: list[np.ndarray] = field(default_factory=list)
    upper: list[np.ndarray] = field(default_factory=list)
    integer: list[np.ndarray] = field(default_factory=list)
    entries: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)
    lo: list[np.ndarray] = field(default_factory=list)
    hi: list[np.ndarray] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    width: int = 0
    height: int = 0

    def columns(self, cost: np.ndarray, *, integer: bool) -> np.ndarray:
        """Add one 0..1 variable per entry of ``cost`` and return their indices, in the same shape.

        An infinite cost forbids the variable: it is fixed to 0 at no cost.
        """
        allowed = np.isfinite(cost).ravel()
        index = np.arange(self.width, self.width + cost.size).reshape(cost.shape)
        self.cost.append(np.where(allowed, cost.ravel(), 0.0))
        self.upper.append(allowed.astype(np.float64))
        self.integer.append(np.full(cost.size, integer))
        self.width += cost.size
        return index

    def rows(
        self,
        name: str,
        terms: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray | float]],
        lo: float,
        hi: float,
        n: int,
    ) -> None:
        """Add ``n`` rows named ``name``: each term is (row of 0..n-1, variable, coefficient), as arrays of a shape."""
        for row, variable, coefficient in terms:
            row, variable, coefficient = np.broadcast_arrays(row, variable, coefficient)
            self.entries.append((row.ravel() + self.height, variable.ravel(), coefficient.ravel().astype(np.float64)))
        self.lo.append(np.full(n, lo, dtype=np.float64))
        self.hi.append(np.full(n, hi, dtype=np.float64))
        self.names += [name] * n
        self.height += n

    def matrix(self) -> sparse.csr_matrix:
        """All rows as one sparse matrix."""
        if not self.entries:
            return sparse.csr_matrix((self.height, self.width))
        row, variable, coefficient = (np.concatenate(part) for part in zip(*self.entries, strict=True))
        return sparse.csr_matrix((coefficient, (row, variable)), shape=(self.height, self.width))
