"""How devices are wired, and what a group of them sees of the wires.

A group is the set of devices that take part in one instance of a collective. All groups of one collective
run at once, so each is priced with the share of the wires that is left to it. Two wirings are known:

- `Nodes`: devices in nodes, a fast switch inside each node, a network between the nodes (GPUs, CPUs).
- `Torus`: a grid of devices joined to their neighbours (TPUs).

Both number their devices row-major over `dims`. A mesh axis is a tuple of `Piece`s of those dims.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cost_model.errors import ClusterError
from cost_model.quantities import count_in, flag_in, number_in, number_out


@dataclass(frozen=True, slots=True)
class Link:
    """One kind of wire.

    latency: seconds per hop. bandwidth: bytes/s one way per device.
    small: (devices, bytes/s) for groups that do not leave the wire and are measured to get less than
    `bandwidth`; a group is priced by the first entry that is at least its size.
    """

    latency: float
    bandwidth: float
    small: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.latency < math.inf or not all(r > 0 for r in (self.bandwidth, *dict(self.small).values())):
            raise ClusterError(
                "A link needs a finite latency that is not negative and a bandwidth above zero; this one "
                f"has latency {self.latency} s, bandwidth {self.bandwidth} bytes/s, small groups "
                f"{self.small}."
            )

    def bandwidth_for(self, devices: int) -> float:
        """Bytes/s, one way per device, in a group of that many devices."""
        return next((rate for size, rate in sorted(self.small) if devices <= size), self.bandwidth)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, loss-free."""
        small = [[size, number_out(rate)] for size, rate in self.small]
        return {"latency": self.latency, "bandwidth": number_out(self.bandwidth), "small": small}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Link:
        """Invert `to_json`; `small` may be left out."""
        small = tuple((count_in(size), number_in(rate)) for size, rate in data.get("small", ()))
        return cls(number_in(data["latency"]), number_in(data["bandwidth"]), small)


@dataclass(frozen=True, slots=True)
class Piece:
    """`size` positions of physical dimension `dim`, `stride` apart."""

    dim: int
    size: int
    stride: int


@dataclass(frozen=True, slots=True)
class Path:
    """What a group of devices sees of the wires.

    latency: seconds before the first result of a ring collective. bandwidth: bytes/s of the ring, one way
    per device. step: seconds before a message sent straight to another member arrives. direct: bytes/s of
    such messages. exchange: bytes/s at which each device's own buffer goes through an all-to-all.
    """

    devices: int
    latency: float
    bandwidth: float
    step: float
    direct: float
    exchange: float


@dataclass(frozen=True, slots=True)
class Nodes:
    """`nodes` nodes of `per_node` devices. dims: (nodes, per_node).

    fast: the wire inside a node. slow: the network between nodes, bytes/s **per device** (a node's share
    when all its devices send). start: seconds to start any collective.

    A group with k devices in each of m nodes (n = m k), as NCCL's ring:

        latency   = start + (n - m) fast.latency + (m - 1) slow.latency
        bandwidth = fast for k devices               when m = 1
                  = min(fast, k slow)                otherwise: k network cards carry each ring

    so an axis with one device per node gets one card, an axis over whole nodes all of them. NCCL's table for
    H100 all-gathers, 2 to 32 nodes, with 1 and with 8 devices per node, is reproduced to 1% (tests). Trees
    and in-switch reduction are not modelled; NCCL's tuned all-reduce has about the latency of one ring pass
    at 2 nodes, less above. A message sent straight to a member of another node has one card, whatever k.
    """

    nodes: int
    per_node: int
    fast: Link
    slow: Link
    start: float = 0.0

    @property
    def dims(self) -> tuple[int, ...]:
        """Physical dimensions, major first."""
        return (self.nodes, self.per_node)

    def part(self, parts: int) -> Nodes:
        """One of so many equal groups: a part of a node, or whole nodes."""
        size, left = divmod(self.nodes * self.per_node, parts)
        if left or (self.per_node % size and size % self.per_node):
            raise ClusterError(
                f"{self.nodes} nodes of {self.per_node} devices do not part into {parts} equal groups that are parts "
                f"of a node or whole nodes. Numbers that do: {_numbers(self._parts())}."
            )
        return self.group(size)

    def group(self, devices: int) -> Nodes:
        """So many devices side by side: a part of a node, or whole nodes."""
        inside = devices <= self.per_node
        if devices < 1 or (self.per_node % devices if inside else devices % self.per_node):
            raise ClusterError(
                f"{devices} devices are no part of a node of {self.per_node} nor whole nodes. Numbers that are: "
                f"{_numbers(k for k in range(1, self.per_node) if self.per_node % k == 0)} and multiples of "
                f"{self.per_node}."
            )
        nodes, per_node = (1, devices) if inside else (devices // self.per_node, self.per_node)
        return replace(self, nodes=nodes, per_node=per_node)

    def _parts(self) -> list[int]:
        within = [self.nodes * k for k in range(1, self.per_node + 1) if self.per_node % k == 0]
        return sorted({*(n for n in range(1, self.nodes + 1) if self.nodes % n == 0), *within})

    def link_between(self, a: int, b: int) -> Link:
        """The wire from device number `a` to device number `b`."""
        return self.fast if a // self.per_node == b // self.per_node else self.slow

    def path(self, pieces: Iterable[Piece]) -> Path:
        """Return what the group that spans these pieces sees."""
        spans = [1, 1]
        for piece in pieces:
            spans[piece.dim] *= piece.size
        m, k = spans
        n = m * k
        far = m > 1
        direct = self.slow.bandwidth if far else self.fast.bandwidth
        return Path(
            devices=n,
            latency=self.start + (n - m) * self.fast.latency + (m - 1) * self.slow.latency,
            bandwidth=min(self.fast.bandwidth, k * self.slow.bandwidth) if far else self.fast.bandwidth_for(k),
            step=self.start + (self.slow if far else self.fast).latency,
            direct=direct,
            exchange=direct * n / (n - 1) if n > 1 else math.inf,
        )

    def describe(self, pieces: Iterable[Piece]) -> str:
        """Return where a group that spans these pieces lies, in words."""
        spans = [1, 1]
        for piece in pieces:
            spans[piece.dim] *= piece.size
        m, k = spans
        if m == 1:
            return f"{k} of {self.per_node} devices of a node"
        return f"{m} of {self.nodes} nodes, {k} of {self.per_node} devices of each"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, loss-free."""
        return {
            "nodes": self.nodes,
            "devices_per_node": self.per_node,
            "fast": self.fast.to_json(),
            "slow": self.slow.to_json(),
            "start": self.start,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Nodes:
        """Invert `to_json`; `slow` may be left out of a single node, `start` always."""
        fast = Link.from_json(data["fast"])
        nodes = count_in(data["nodes"])
        slow = Link.from_json(data["slow"]) if nodes > 1 or "slow" in data else fast
        return cls(nodes, count_in(data["devices_per_node"]), fast, slow, number_in(data.get("start", 0.0)))


@dataclass(frozen=True, slots=True)
class Torus:
    """A grid of devices. dims: the grid; wraps: which of them are rings; link: the wire between neighbours.

    A group that spans f positions of a dim, `stride` apart (so `stride` groups share each wire):

        on a line          W = link / stride                          (f - 1) stride hops
        around a ring      W = 2 link / stride (both directions)      f/2 stride hops

    Several dims: their W add up (the collective is cut in as many parts), their hops too. An all-to-all is
    bound by the cut through the middle: each dim carries (own bytes) f / (4 W). All as in the scaling book,
    sharding.md.
    """

    dims: tuple[int, ...]
    wraps: tuple[bool, ...]
    link: Link
    start: float = 0.0

    def __post_init__(self) -> None:
        if len(self.dims) != len(self.wraps):
            raise ClusterError(f"A torus of dims {self.dims} needs as many `wraps`; {self.wraps} are given.")

    def part(self, parts: int) -> Torus:
        """One of so many equal groups: slices of the first dim, which are no rings any more."""
        if self.dims[0] % parts:
            fits = [n for n in range(1, self.dims[0] + 1) if self.dims[0] % n == 0]
            raise ClusterError(
                f"A torus {self.dims} does not part into {parts} slices of its first dim. Numbers that do: "
                f"{_numbers(fits)}."
            )
        return self.group(math.prod(self.dims) // parts)

    def group(self, devices: int) -> Torus:
        """So many devices side by side: slices of the first dim, which are no rings any more."""
        slices, left = divmod(devices, math.prod(self.dims[1:]))
        if left or not slices:
            raise ClusterError(
                f"{devices} devices are no slices of the first dim of a torus {self.dims}: a slice has "
                f"{math.prod(self.dims[1:])}."
            )
        rings = (self.wraps[0] and slices == self.dims[0], *self.wraps[1:])
        return replace(self, dims=(slices, *self.dims[1:]), wraps=rings)

    def link_between(self, a: int, b: int) -> Link:
        """The wire from device number `a` to device number `b`."""
        return self.link

    def path(self, pieces: Iterable[Piece]) -> Path:
        """Return what the group that spans these pieces sees."""
        hops, rate, slowest, exchange = 0.0, 0.0, math.inf, math.inf
        devices = 1
        for dim, (size, stride) in self._spans(pieces).items():
            ring = self.wraps[dim] and size * stride == self.dims[dim]
            width = (2 if ring else 1) * self.link.bandwidth / stride
            hops += (size / 2 if ring else size - 1) * stride
            rate += width
            slowest = min(slowest, self.link.bandwidth / stride)
            exchange = min(exchange, 4 * width / size)
            devices *= size
        latency = self.start + hops * self.link.latency
        return Path(devices, latency, rate or math.inf, latency, slowest, exchange)

    def describe(self, pieces: Iterable[Piece]) -> str:
        """Return where a group that spans these pieces lies, in words."""
        return ", ".join(
            f"{size} of dim {dim}"
            + (" (ring)" if self.wraps[dim] and size * stride == self.dims[dim] else " (line)")
            + (f", every {stride}" if stride > 1 else "")
            for dim, (size, stride) in self._spans(pieces).items()
        )

    @staticmethod
    def _spans(pieces: Iterable[Piece]) -> dict[int, tuple[int, int]]:
        """Return per dim: positions spanned and their stride."""
        spans: dict[int, tuple[int, int]] = {}
        for piece in pieces:
            size, stride = spans.get(piece.dim, (1, piece.stride))
            spans[piece.dim] = (size * piece.size, min(stride, piece.stride))
        return spans

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, loss-free."""
        link = self.link.to_json()
        return {"torus": list(self.dims), "wraps": list(self.wraps), "link": link, "start": self.start}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Torus:
        """Invert `to_json`; `start` may be left out."""
        dims = tuple(count_in(size) for size in data["torus"])
        wraps = tuple(flag_in(wrap) for wrap in data["wraps"])
        return cls(dims, wraps, Link.from_json(data["link"]), number_in(data.get("start", 0.0)))


Wiring = Nodes | Torus


def wiring_from_json(data: Mapping[str, Any]) -> Wiring:
    """Return the wiring, told apart by its keys."""
    return Torus.from_json(data) if "torus" in data else Nodes.from_json(data)


def cut_into_pieces(sizes: Iterable[int], dims: tuple[int, ...]) -> tuple[tuple[Piece, ...], ...] | None:
    """Lay axes of these sizes on the dims, major first; None where an axis would cut a dim unevenly.

    (16, 4) on dims (8, 8): the first axis takes the 8 nodes and every fourth device, the second 4 neighbours.
    """
    dim, left = -1, 1
    axes: list[tuple[Piece, ...]] = []
    for size in sizes:
        pieces: list[Piece] = []
        while size > 1:
            while left == 1:
                dim, left = dim + 1, dims[dim + 1]
            part = math.gcd(size, left)
            if part not in (size, left):
                return None
            size, left = size // part, left // part
            pieces.append(Piece(dim, part, left))
        axes.append(tuple(pieces))
    return tuple(axes)


def _numbers(found: Iterable[int]) -> str:
    return ", ".join(map(str, found))
