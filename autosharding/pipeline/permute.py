"""Arrays between the devices of several processes by `jax.lax.ppermute` over the devices of both ends together.

It is a collective of XLA, and opens no port besides those of `jax.distributed`. Both ends start it at one place in the
order of all tasks, and what a device is given afterwards waits for it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from autosharding.keys import is_key
from autosharding.pipeline.channel import DevicePut, KeyWire, Wire, absent, devices_of, route
from autosharding.processes import has_some, in_turn, processes_of

AXIS = "device"


class Permute:
    """Between processes; what stays in one goes as `jax.device_put` does."""

    def wire(self, came: jax.ShapeDtypeStruct, to: NamedSharding, *, exact: bool = True, lent: bool = False) -> Wire:
        """A wire."""
        assert isinstance(came.sharding, NamedSharding)
        if len(processes_of([*devices_of(came.sharding).flat, *devices_of(to).flat])) == 1:
            return DevicePut().wire(came, to, exact=exact, lent=lent)
        if is_key(came.dtype):
            return KeyWire(lambda words, arrives: PermutedWire(words, arrives, exact=True), came, to)
        return PermutedWire(came, to, exact=exact)


class PermutedWire:
    """A wire between processes."""

    def __init__(self, came: jax.ShapeDtypeStruct, to: NamedSharding, *, exact: bool) -> None:
        assert isinstance(came.sharding, NamedSharding)
        self.came, self.me = came, jax.process_index()
        self.route = route(came.sharding, to, len(came.shape), exact=exact)
        self.lies = self.route.over if self.route.arrive is None else to
        self.there = list(devices_of(self.route.over).flat)
        self.devices = list(dict.fromkeys([*self.route.sources, *self.there]))
        self.here = has_some(self.devices)
        self.tile = self.route.over.shard_shape(came.shape) or (1,)
        self.round_of = _rounds(self.route.sources)
        mesh = Mesh(np.array(self.devices), (AXIS,), axis_types=(AxisType.Auto,))
        self.lying = NamedSharding(mesh, PartitionSpec(AXIS))
        self.shape = (len(self.devices) * self.tile[0], *self.tile[1:])
        sent = jax.shard_map(self._sent, mesh=mesh, in_specs=self.lying.spec, out_specs=self.lying.spec)
        self.run = in_turn(jax.jit(sent), self.devices)
        self.nothing: dict[Any, Any] = {}
        self.queue: deque[Any] = deque()

    def _sent(self, tile: Any) -> tuple[Any, ...]:
        """The tiles that arrive in each round, on one device."""
        place = {d: i for i, d in enumerate(self.devices)}
        ends = list(zip(self.route.sources, self.there, self.round_of, strict=True))
        every = range(max(self.round_of) + 1)
        return tuple(jax.lax.ppermute(tile, AXIS, [(place[a], place[b]) for a, b, r in ends if r == n]) for n in every)

    def put(self, x: Any | None) -> None:
        """Be one end of the program that sends the array; all that have it bring it into the tiles that go over."""
        tiles = {} if x is None else self._tiles(x)
        if not self.here:
            return
        own = [d for d in self.devices if d.process_index == self.me]
        found = self.run(
            jax.make_array_from_single_device_arrays(
                self.shape, self.lying, [tiles[d] if d in tiles else self._nothing(d) for d in own]
            )
        )
        if has_some(self.there):
            self.queue.append(found)

    def _tiles(self, x: Any) -> dict[Any, Any]:
        """Device -> the tile that it sends."""
        left: Any = x if self.route.leave is None else self.route.leave(x)
        tiles = {s.device: s.data for s in left.addressable_shards}
        return {d: tiles[d].reshape(self.tile) for d in self.route.sources if d in tiles}

    def _nothing(self, device: Any) -> Any:
        """What a device gives that sends nothing."""
        if device not in self.nothing:
            self.nothing[device] = jax.device_put(np.zeros(self.tile, self.came.dtype), device)
        return self.nothing[device]

    def get(self) -> Any:
        """The next array."""
        if not has_some(self.there):
            return absent(self.came, self.lies)
        rounds = [{s.device: s.data for s in found.addressable_shards} for found in self.queue.popleft()]
        ends = zip(self.there, self.round_of, strict=True)
        shape = self.route.over.shard_shape(self.came.shape)
        tiles = [rounds[r][d].reshape(shape) for d, r in ends if d.process_index == self.me]
        x = jax.make_array_from_single_device_arrays(self.came.shape, self.route.over, tiles, dtype=self.came.dtype)
        return x if self.route.arrive is None else self.route.arrive(x)


def _rounds(sources: Sequence[Any]) -> tuple[int, ...]:
    """In which round each device gets its tile: a source sends to one device at a time."""
    sent: Counter[Any] = Counter()
    found = []
    for d in sources:
        found.append(sent[d])
        sent[d] += 1
    return tuple(found)
