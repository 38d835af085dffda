"""A logical mesh as it lies on the wires, and the seconds of a collective over its axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cost_model.device import Device
from cost_model.errors import ClusterError
from cost_model.quantities import count_in, number_in, number_out, show_bytes, show_rate, show_seconds
from cost_model.wiring import Path, Piece, Wiring, wiring_from_json

AXIS_NAMES = ("x", "y", "z", "w")
"""Names of the axes of meshes nobody named, major first."""

ALPA_PENALTY = 0.5
"""Alpa's all-to-all penalty is n/2 (alpa/shard_parallel/auto_sharding.py:133)."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One mesh axis.

    latency: seconds, bandwidth: bytes/s one way per device, both of a collective over this axis alone.
    pieces: the physical positions it spans (see `wiring`); empty when the wires are not known.
    """

    name: str
    size: int
    latency: float
    bandwidth: float
    pieces: tuple[Piece, ...] = ()


# Seconds of one collective over a path of n devices; B as in `Topology.seconds`.
COLLECTIVES: Mapping[str, Callable[[Path, float], float]] = {
    "all-reduce": lambda p, B: p.latency + 2 * (p.devices - 1) / p.devices * B / p.bandwidth,
    "all-gather": lambda p, B: p.latency + (p.devices - 1) / p.devices * B / p.bandwidth,
    "reduce-scatter": lambda p, B: p.latency + (p.devices - 1) / p.devices * B / p.bandwidth,
    "all-to-all": lambda p, B: p.latency + B / p.devices / p.exchange,
    "collective-permute": lambda p, B: p.step + B / p.direct,
}


@dataclass(frozen=True)
class Topology:
    """Device and named axes, major first; immutable, hashable.

    cluster: where it was laid, for people. wiring: the wires, when known. all_to_all_penalty: without
    wiring, an all-to-all over n devices takes max(1, penalty * n) times what a full switch would take. With
    wiring this is not read: a switch needs no penalty, a torus has n/4 from the cut through its middle.
    """

    device: Device
    axes: tuple[Axis, ...]
    cluster: str = ""
    wiring: Wiring | None = None
    all_to_all_penalty: float = 0.0

    def __post_init__(self) -> None:
        names = self.axis_names
        if not names or len(set(names)) != len(names) or not all(axis.size >= 1 for axis in self.axes):
            raise ClusterError(
                f"A mesh needs at least one axis, names that differ and sizes of at least 1; "
                f"{[(axis.name, axis.size) for axis in self.axes]} is not one."
            )

        if self.wiring is not None:
            dims = self.wiring.dims
            for axis in self.axes:
                spanned = math.prod(piece.size for piece in axis.pieces)
                if spanned != axis.size or not all(0 <= piece.dim < len(dims) for piece in axis.pieces):
                    raise ClusterError(
                        f"Axis {axis.name!r} of size {axis.size} must span as many positions of dims {dims}; "
                        f"its pieces are {axis.pieces}."
                    )

    @classmethod
    def alpa(
        cls, sizes: Sequence[int], alpha: float | Sequence[float] = 1.0, beta: float | Sequence[float] = 1.0
    ) -> Topology:
        """Alpa's arbitrary units: no compute cost, axis i with latency alpha_i and bandwidth 1/beta_i.

        alpha does not grow with the axis. All-to-all carries Alpa's n/2. Its tie-breaking addends (+0.1,
        +0.01, +0.001 per collective) are left out.
        """
        alphas = [float(alpha)] * len(sizes) if isinstance(alpha, int | float) else list(alpha)
        betas = [float(beta)] * len(sizes) if isinstance(beta, int | float) else list(beta)
        axes = tuple(
            Axis(name, size, a, 1 / b if b else math.inf)
            for name, size, a, b in zip(AXIS_NAMES, sizes, alphas, betas, strict=False)
        )
        if not len(axes) == len(sizes) == len(alphas) == len(betas):
            raise ClusterError(
                f"Topology.alpa takes up to {len(AXIS_NAMES)} axes and one alpha and one beta for each, "
                f"not sizes {tuple(sizes)} with alpha {alphas}, beta {betas}."
            )
        return cls(Device.ideal(), axes, "alpa", all_to_all_penalty=ALPA_PENALTY)

    @property
    def axis_names(self) -> tuple[str, ...]:
        """Names, major first."""
        return tuple(axis.name for axis in self.axes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes, major first."""
        return tuple(axis.size for axis in self.axes)

    @property
    def shape(self) -> dict[str, int]:
        """Name -> size, major first, as `jax.sharding.Mesh.shape`."""
        return dict(zip(self.axis_names, self.sizes, strict=True))

    @property
    def n_devices(self) -> int:
        """Devices of the whole mesh."""
        return math.prod(self.sizes)

    def size(self, axes: str | Sequence[str]) -> int:
        """Devices along one axis, or in a group over several; 1 for none."""
        names = (axes,) if isinstance(axes, str) else axes
        return math.prod(self._axis(name).size for name in names)

    def path(self, axes: str | Sequence[str]) -> Path:
        """Return what one group of devices over these axes (in any order) sees of the wires.

        With wiring, the axes are taken together as they lie (a group over whole nodes has all network cards,
        whatever each axis has alone). Without, latencies add up and the slowest bandwidth counts.
        """
        names = (axes,) if isinstance(axes, str) else tuple(axes)
        known = self._paths.get(names)
        if known is None:
            known = self._paths[names] = self._find_path(names)
        return known

    def seconds(self, kind: str, axes: str | Sequence[str], bytes: float) -> float:
        """Return seconds of one collective over `axes`, all its groups running at once.

        kind, and B = bytes, per device: the full tensor of one group, before it is scattered or after it is
        gathered

            all-reduce          B of the operand             a + 2 (n-1)/n B / bandwidth
            all-gather          B of the result              a +   (n-1)/n B / bandwidth
            reduce-scatter      B of the operand             a +   (n-1)/n B / bandwidth
            all-to-all          n times the local operand    a +   (n-1)/n B/n / direct           on a switch
                                                             a +   B / (4 bandwidth)              on a torus
                                                             a +   (n-1)/n B/n n/2 / bandwidth    as Alpa
            collective-permute  B of the local operand       step + B / direct

        with n the devices of a group, a its latency (`path`). Nothing moves, and nothing is charged, when n
        is 1 or there are no bytes.
        """
        collective = COLLECTIVES.get(kind)
        if collective is None:
            raise ClusterError(f"There is no collective {kind!r}. The kinds are {', '.join(COLLECTIVES)}.")
        path = self.path(axes)
        return collective(path, bytes) if path.devices > 1 and bytes > 0 else 0.0

    def explain(self) -> str:
        """Return a table of the axes: size, latency, bandwidth, and where each lies."""
        rows = [("axis", "size", "latency", "bandwidth", "lies on" if self.wiring else "")]
        for axis in self.axes:
            where = self.wiring.describe(axis.pieces) if self.wiring and axis.pieces else ""
            rate = show_rate(axis.bandwidth, "B/s")
            rows.append((axis.name, str(axis.size), show_seconds(axis.latency), rate, where))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        memory = show_bytes(self.device.usable_memory)
        title = f"{self.cluster or 'mesh'}: {self.n_devices} x {self.device.name}, {memory} usable on each"
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([title, *("  " + line.rstrip() for line in lines)])

    def __str__(self) -> str:
        return self.explain()

    def to_json(self) -> dict[str, Any]:
        """Return the topology as plain JSON values, loss-free (infinity as "inf")."""
        return {
            "cluster": self.cluster,
            "device": self.device.to_json(),
            "axes": [
                {
                    "name": axis.name,
                    "size": axis.size,
                    "latency": axis.latency,
                    "bandwidth": number_out(axis.bandwidth),
                    "pieces": [[piece.dim, piece.size, piece.stride] for piece in axis.pieces],
                }
                for axis in self.axes
            ],
            "wiring": self.wiring.to_json() if self.wiring else None,
            "all_to_all_penalty": self.all_to_all_penalty,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Topology:
        """Invert `to_json`. Data that is no topology is a `ClusterError`."""
        try:
            axes = tuple(
                Axis(
                    str(axis["name"]),
                    count_in(axis["size"]),
                    number_in(axis["latency"]),
                    number_in(axis["bandwidth"]),
                    tuple(Piece(*(count_in(number) for number in piece)) for piece in axis["pieces"]),
                )
                for axis in data["axes"]
            )
            wiring = wiring_from_json(data["wiring"]) if data["wiring"] is not None else None
            penalty = number_in(data["all_to_all_penalty"])
            return cls(Device.from_json(data["device"]), axes, str(data["cluster"]), wiring, penalty)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ClusterError(
                f"This is not a topology: {error!r}. Expected the keys `Topology.to_json` writes."
            ) from error

    @cached_property
    def _paths(self) -> dict[tuple[str, ...], Path]:
        """Paths asked for so far: pricing asks for the same few again and again."""
        return {}

    @cached_property
    def _by_name(self) -> dict[str, Axis]:
        return {axis.name: axis for axis in self.axes}

    def _axis(self, name: str) -> Axis:
        axis = self._by_name.get(name)
        if axis is None:
            raise ClusterError(f"There is no mesh axis {name!r}. The axes are {', '.join(self.axis_names)}.")
        return axis

    def _find_path(self, names: tuple[str, ...]) -> Path:
        axes = [self._axis(name) for name in names]
        if len(set(names)) != len(names):
            raise ClusterError(f"A collective uses each mesh axis once; it was asked for over {names}.")
        if self.wiring is not None:
            return self.wiring.path(piece for axis in axes for piece in axis.pieces)
        moving = [axis for axis in axes if axis.size > 1]
        n = math.prod(axis.size for axis in moving)
        latency = sum(axis.latency for axis in moving)
        bandwidth = min((axis.bandwidth for axis in moving), default=math.inf)
        slowdown = max(1.0, self.all_to_all_penalty * n)
        exchange = bandwidth * n / (n - 1) / slowdown if n > 1 else math.inf
        return Path(n, latency, bandwidth, latency, bandwidth, exchange)
