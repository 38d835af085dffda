"""A cluster: devices and the wires between them, and the logical meshes that can be laid on it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cost_model.device import Device
from cost_model.errors import ClusterError
from cost_model.read import read_cluster
from cost_model.topology import AXIS_NAMES, Axis, Topology
from cost_model.wiring import Link, Nodes, Piece, Wiring, cut_into_pieces, wiring_from_json


@dataclass(frozen=True, slots=True)
class Cluster:
    """Equal devices on one wiring. name: as the user wrote it."""

    name: str
    device: Device
    wiring: Wiring

    @classmethod
    def parse(cls, text: str) -> Cluster:
        """Return a cluster from its name or from a device file.

        "h100:8x8" (nodes x devices per node; "h100:8" is one node), "tpu-v5p:4x4x4" (the torus), "cpu:8"
        (virtual devices), or the path of a .json or .toml file with the keys

            name            any text (optional)
            like            a cluster by name, whose values hold where this file is silent (optional)
            device          a name from the table, or a table of: name; flops {dtype: flop/s};
                            memory_bandwidth (bytes/s); memory, reserve (bytes); kernel_seconds
            nodes           how many, and devices_per_node
            fast, slow      the wires inside and between nodes, each: latency (seconds per hop); bandwidth
                            (bytes/s one way per device); small [[devices, bytes/s], ...] (optional)
            start           seconds to start a collective (optional)
            torus           in place of nodes, fast and slow: the dims of the torus
            wraps, link     which dims are rings; the wire between neighbours, as above

        flops and bandwidths are those reached, not peaks; infinity is written "inf".
        """
        data = read_cluster(text)
        try:
            return cls.from_json(data)
        except ClusterError as error:
            raise ClusterError(f"Cluster {text!r} cannot be built. {error}") from error

    @property
    def shape(self) -> tuple[int, ...]:
        """(nodes, devices per node), or the dims of the torus."""
        return self.wiring.dims

    @property
    def n_devices(self) -> int:
        """All devices."""
        return math.prod(self.shape)

    def topology(self, mesh: Mapping[str, int]) -> Topology:
        """Return the user's own mesh, e.g. {"data": 2, "model": 4}; the first axis lies across the nodes."""
        sizes = tuple(mesh.values())
        if not mesh or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes):
            raise ClusterError(f"A mesh maps axis names to sizes of at least 1; {dict(mesh)} does not.")
        if math.prod(sizes) != self.n_devices:
            raise ClusterError(
                f"Mesh {_product(mesh)} has {math.prod(sizes)} devices, cluster {self.name} has "
                f"{self.n_devices}. Sizes must multiply to {self.n_devices}, for example "
                f"{self._examples()}."
            )
        axes = cut_into_pieces(sizes, self.shape)
        if axes is None:
            raise ClusterError(
                f"Mesh {_product(mesh)} does not fit on the wires of cluster {self.name}, which are "
                f"{'x'.join(map(str, self.shape))}: laid out row by row, groups of one axis would take "
                "different shares of different nodes, and no one price holds. Put the axis that spans "
                f"nodes first and let sizes divide the nodes evenly, for example {self._examples()}."
            )
        return self._lay(zip(mesh, axes, strict=True))

    def logical_meshes(self, max_axes: int = 3) -> tuple[Topology, ...]:
        """Meshes worth trying, fewest axes first, axes named x, y, z, w, the major (slow) one first.

        Nodes: all devices as one axis; then one axis across the nodes and every split of a node, in one
        order, into the axes that are left (a node's wires are alike, so the other orders are the same mesh).
        A lone node, or nodes of one device, is split into up to `max_axes`. Torus: its dims and every way to
        merge some of them, each once; dims are not cut.
        """
        if not 1 <= max_axes <= len(AXIS_NAMES):
            raise ClusterError(f"max_axes is {max_axes}; meshes have 1 to {len(AXIS_NAMES)} axes.")
        found = dict.fromkeys(self._meshes(max_axes))
        return tuple(self._lay(zip(AXIS_NAMES, axes, strict=False)) for axes in sorted(found, key=len))

    def part(self, parts: int) -> Cluster:
        """One of so many equal groups of consecutive devices, as a cluster: the devices of a pipeline stage.

        Raises `ClusterError` where the groups would not lie alike: a group is a divisor of a node, or whole nodes; of
        a torus, slices of its first dim.
        """
        return replace(self, name=f"{self.name}/{parts}", wiring=self.wiring.part(parts))

    def group(self, devices: int) -> Cluster:
        """So many devices side by side, as a cluster: a part of a node, whole nodes, or slices of a torus.

        Raises `ClusterError` where they are none of these.
        """
        if devices == self.n_devices:
            return self
        return replace(self, name=f"{devices} of {self.name}", wiring=self.wiring.group(devices))

    @property
    def nodes(self) -> tuple[int, int]:
        """(nodes, devices of each); of a torus the slices of its first dim."""
        return self.shape[0], math.prod(self.shape[1:])

    def link_between(self, a: int, b: int) -> Link:
        """The wire from device number `a` to device number `b`."""
        return self.wiring.link_between(a, b)

    def to_json(self) -> dict[str, Any]:
        """Return the cluster as plain JSON values, loss-free: also the contents of a device file."""
        return {"name": self.name, "device": self.device.to_json(), **self.wiring.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cluster:
        """Invert `to_json`. Data that is no cluster is a `ClusterError`."""
        try:
            cluster = cls(str(data["name"]), Device.from_json(data["device"]), wiring_from_json(data))
        except KeyError as error:
            raise ClusterError(f"The key {error} is missing.") from error
        except (TypeError, AttributeError, ValueError) as error:
            raise ClusterError(f"A value does not read as it should: {error}") from error
        if min(cluster.shape, default=0) < 1:
            raise ClusterError(f"Every size must be at least 1; the shape is {cluster.shape}.")
        return cluster

    def __str__(self) -> str:
        return f"{self.name}: {self.n_devices} devices, {'x'.join(map(str, self.shape))}, {self.device}"

    def _lay(self, named: Iterable[tuple[str, tuple[Piece, ...]]]) -> Topology:
        """Price each axis as it lies."""
        return Topology(self.device, tuple(self._axis(*pair) for pair in named), self.name, self.wiring)

    def _axis(self, name: str, pieces: tuple[Piece, ...]) -> Axis:
        path = self.wiring.path(pieces)
        if path.devices == 1:
            return Axis(name, 1, 0.0, math.inf)
        return Axis(name, path.devices, path.latency, path.bandwidth, pieces)

    def _meshes(self, max_axes: int) -> Iterator[tuple[tuple[Piece, ...], ...]]:
        """Return axes as pieces, possibly repeated."""
        whole = cut_into_pieces((self.n_devices,), self.shape)
        if whole is not None:
            yield whole
        if isinstance(self.wiring, Nodes):
            for sizes in _node_meshes(self.wiring.nodes, self.wiring.per_node, max_axes):
                axes = cut_into_pieces(sizes, self.shape)
                if axes is not None:
                    yield axes
            return
        dims = tuple(Piece(dim, size, 1) for dim, size in enumerate(self.shape) if size > 1)
        seen: set[tuple[tuple[int, ...], ...]] = set()
        for blocks in _partitions(dims):
            alike = tuple(sorted(tuple(sorted(piece.size for piece in block)) for block in blocks))
            if len(blocks) <= max_axes and alike not in seen:
                seen.add(alike)
                yield blocks

    def _examples(self) -> str:
        return ", ".join("x".join(map(str, mesh.sizes)) for mesh in self.logical_meshes()[:4])


def _node_meshes(nodes: int, per_node: int, max_axes: int) -> Iterator[tuple[int, ...]]:
    """Return sizes: one axis across nodes and splits of a node, or splits of the one level there is."""
    if nodes == 1 or per_node == 1:
        yield from _splits(nodes * per_node, max_axes)
        return
    for inner in _splits(per_node, max_axes - 1):
        yield (nodes, *inner)


def _splits(n: int, parts: int, least: int = 2) -> Iterator[tuple[int, ...]]:
    """Return n as a product of at most `parts` factors of at least 2, ascending; n = 1 has none."""
    if parts >= 1 and n >= least:
        yield (n,)
        for first in range(least, math.isqrt(n) + 1):
            if n % first == 0:
                yield from ((first, *rest) for rest in _splits(n // first, parts - 1, first))


def _partitions(items: tuple[Piece, ...]) -> Iterator[tuple[tuple[Piece, ...], ...]]:
    """Return every way to put the items into blocks; blocks and items keep their order."""
    if not items:
        return
    *rest, last = items
    if not rest:
        yield ((last,),)
    for blocks in _partitions(tuple(rest)):
        for i, block in enumerate(blocks):
            yield (*blocks[:i], (*block, last), *blocks[i + 1 :])
        yield (*blocks, (last,))


def _product(mesh: Mapping[str, int]) -> str:
    return " x ".join(f"{name}={size}" for name, size in mesh.items())
