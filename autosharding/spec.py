"""How one array lies on the mesh: `Spec`, mesh axes per dim plus the axes it is a partial result over.

A spec prints in JAX's notation: `f32[8@x,4]` is split over `x` along its first dim, and `{U:y}` (unreduced) says that
the true value is the sum over `y` of what the devices hold. Shardy writes the same state, MLIR's mesh dialect writes
`partial = sum[1]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

MONOIDS = ("sum", "max", "min", "and", "or")


@dataclass(frozen=True, slots=True)
class Spec:
    """Mesh axes per dim (major to minor), and the axes over which the value is partial.

    Attributes:
        dims: for each dim the mesh axes that split it, major first; `()` means whole.
        partial: axes over which the devices hold terms of a reduction, in mesh order.
        monoid: the reduction that turns the terms into the value: one of `MONOIDS`.
    """

    dims: tuple[tuple[str, ...], ...]
    partial: tuple[str, ...] = ()
    monoid: str = "sum"

    @staticmethod
    def replicated(rank: int) -> Spec:
        """Every device holds the whole array."""
        return Spec(((),) * rank)

    @property
    def axes(self) -> tuple[str, ...]:
        """All mesh axes that this spec uses, in no particular meaning of order."""
        return tuple(a for d in self.dims for a in d) + self.partial

    @property
    def is_replicated(self) -> bool:
        """True when every device holds the whole value."""
        return not self.partial and not any(self.dims)

    def whole(self) -> Spec:
        """The same split with nothing partial."""
        return Spec(self.dims)

    def stacked(self) -> Spec:
        """Of arrays that lie so, stacked along a new first dim."""
        return Spec(((), *self.dims), self.partial, self.monoid)

    def unstacked(self) -> Spec | None:
        """Of one entry along the first dim; None where that dim is split."""
        return None if self.dims[0] else Spec(self.dims[1:], self.partial, self.monoid)

    def parts(self, dim: int, sizes: Mapping[str, int]) -> int:
        """Into how many pieces `dim` is cut on a mesh of these axis sizes."""
        return prod(sizes[a] for a in self.dims[dim])

    def local_shape(self, shape: Sequence[int], sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of one device's piece; dims must divide (see `fits`)."""
        return tuple(n // self.parts(d, sizes) for d, n in enumerate(shape))

    def fits(self, shape: Sequence[int], sizes: Mapping[str, int]) -> bool:
        """Whether rank agrees, each axis is known and used once, and every dim divides."""
        if len(shape) != len(self.dims) or len(set(self.axes)) != len(self.axes):
            return False
        if any(a not in sizes for a in self.axes):
            return False
        return all(n % self.parts(d, sizes) == 0 for d, n in enumerate(shape))

    def local_bytes(self, shape: Sequence[int], itemsize: int, sizes: Mapping[str, int]) -> int:
        """Bytes of one device's piece."""
        return prod(self.local_shape(shape, sizes)) * itemsize

    def annotate(self, dtype: str, shape: Sequence[int]) -> str:
        """`f32[8@x,4]{U:y}`: JAX's notation for an array of this dtype and shape under this spec."""
        dims = ",".join(str(n) + _at(axes) for n, axes in zip(shape, self.dims, strict=True))
        return f"{dtype}[{dims}]{self._suffix()}"

    def __str__(self) -> str:
        return "[" + ",".join(_at(axes) or "-" for axes in self.dims) + "]" + self._suffix()

    def _suffix(self) -> str:
        if not self.partial:
            return ""
        kind = "" if self.monoid == "sum" else f" {self.monoid}"
        return "{U:" + ",".join(self.partial) + kind + "}"


def _at(axes: tuple[str, ...]) -> str:
    if not axes:
        return ""
    return "@" + (axes[0] if len(axes) == 1 else "(" + ",".join(axes) + ")")
