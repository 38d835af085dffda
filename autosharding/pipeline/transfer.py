"""Arrays between the CPUs of several processes, by JAX's transfer server.

Every process has one. What is put into a wire is offered under a number that both ends know, tile by tile, and pulled
by the process that wants it: neither waits for the other, and no order has to be kept between wires, as collectives
would need. A tile is an array of one device at both ends, since an array pulled into another split than it was offered
in comes out wrong. The server reads an array when it is pulled, which may be long after it was offered: of one that may
be donated by then a copy is offered.
"""

from __future__ import annotations

import functools
import socket
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import transfer
from jax.sharding import NamedSharding, SingleDeviceSharding

from autosharding.keys import is_key
from autosharding.pipeline.channel import Channel, DevicePut, KeyWire, Wire, absent, devices_of, route
from autosharding.pipeline.permute import Permute
from autosharding.processes import gather, processes_of

PLACES = 40
"""Bits of a message's number that count the messages of one wire to one process; the rest says which."""


CHANNELS = ("auto", "device_put", "permute", "transfer")
"""What can be asked for."""


def channel_between(devices: Iterable[Any], means: str = "auto") -> Channel:
    """What brings arrays from one of the devices to another, whose ever they are; all processes call it alike.

    Args:
        devices: of all stages.
        means: one of `CHANNELS`; "auto": by `jax.device_put` within a process and between accelerators, by the transfer
            server between CPUs of several processes, where it needs no order and lets both ends go on.
    """
    every = tuple(devices)
    if means == "permute":
        return Permute()
    if means == "device_put" or len(processes_of(every)) == 1 or (means == "auto" and every[0].platform != "cpu"):
        return DevicePut()
    return _transfer(every)


@functools.cache
def _transfer(devices: tuple[Any, ...]) -> Transfer:
    return Transfer(devices)


class Transfer:
    """Between the processes that have the devices; all of them make one together."""

    def __init__(self, devices: Sequence[Any]) -> None:
        own = next(d for d in devices if d.process_index == jax.process_index())
        host = _own_address(devices)
        self.server = transfer.start_transfer_server(own.client, f"{host}:0", [f"{host}:0"])
        addresses = gather(self.server.address().encode(), devices)
        self.addresses = dict(zip(processes_of(devices), map(bytes.decode, addresses), strict=True))
        self._connections: dict[int, Any] = {}
        self.wires = 0

    def wire(self, came: jax.ShapeDtypeStruct, to: NamedSharding, *, exact: bool = True, lent: bool = False) -> Wire:
        """A wire."""
        self.wires += 1
        if is_key(came.dtype):
            return KeyWire(lambda words, arrives: _Pulled(self, words, arrives, exact=True, lent=lent), came, to)
        return _Pulled(self, came, to, exact=exact, lent=lent)

    def number(self, process: int) -> int:
        """Where the numbers begin of what the newest wire sends to a process."""
        n = max(self.addresses) + 1
        return (self.wires * n + process) << PLACES

    def connection(self, process: int) -> Any:
        """To the server of another process."""
        if process not in self._connections:
            self._connections[process] = self.server.connect(self.addresses[process])
        return self._connections[process]


def _own_address(devices: Sequence[Any]) -> str:
    """Under which the other processes find this host."""
    name = socket.gethostname()
    if len(set(gather(name.encode(), devices))) == 1:
        return "127.0.0.1"
    return socket.gethostbyname(name)


class _Pulled:
    """A wire between processes; what stays in one process is put there as `jax.device_put` does."""

    def __init__(
        self, channel: Transfer, came: jax.ShapeDtypeStruct, to: NamedSharding, *, exact: bool, lent: bool
    ) -> None:
        assert isinstance(came.sharding, NamedSharding)
        self.channel, self.came, self.lent, me = channel, came, lent, jax.process_index()
        self.route = route(came.sharding, to, len(came.shape), exact=exact)
        self.lies = self.route.over if self.route.arrive is None else to
        ends = list(zip(self.route.sources, devices_of(self.route.over).flat, strict=True))
        tile = self.route.over.shard_shape(came.shape)
        self.own = [(a, b) for a, b in ends if a.process_index == b.process_index == me]
        self.offers = {
            p: [a for a, b in ends if a.process_index == me and b.process_index == p]
            for p in sorted({b.process_index for a, b in ends if a.process_index == me} - {me})
        }
        self.pulls = {
            p: [
                jax.ShapeDtypeStruct(tile, came.dtype, sharding=SingleDeviceSharding(b))
                for a, b in ends
                if a.process_index == p and b.process_index == me
            ]
            for p in sorted({a.process_index for a, b in ends if b.process_index == me} - {me})
        }
        self.order = [b for _, b in ends if b.process_index == me]
        self.to_process = {p: channel.number(p) for p in self.offers}
        self.to_me = channel.number(me)
        self.offered = self.got = 0
        self.queue: deque[list[Any]] = deque()

    def put(self, x: Any | None) -> None:
        """Offer the tiles of an array."""
        if x is None:
            return
        left: Any = x if self.route.leave is None else self.route.leave(x)
        tiles = {s.device: s.data for s in left.addressable_shards}
        for process, devices in self.offers.items():
            offered = [jnp.copy(tiles[d]) if self.lent else tiles[d] for d in devices]
            self.channel.server.await_pull(self.to_process[process] + self.offered, offered)
        self.offered += 1
        if self.own:
            self.queue.append([jax.device_put(tiles[a], b) for a, b in self.own])

    def get(self) -> Any:
        """Pull the tiles of the next array."""
        if not self.order:
            return absent(self.came, self.lies)
        tiles: list[Any] = list(self.queue.popleft()) if self.own else []
        for process, wanted in self.pulls.items():
            tiles += self.channel.connection(process).pull(self.to_me + self.got, wanted)
        self.got += 1
        there = {next(iter(t.sharding.device_set)): t for t in tiles}
        x = jax.make_array_from_single_device_arrays(
            self.came.shape, self.route.over, [there[d] for d in self.order], dtype=self.came.dtype
        )
        return x if self.route.arrive is None else self.route.arrive(x)
