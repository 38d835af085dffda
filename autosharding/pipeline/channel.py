"""How arrays get from the devices of one stage to those of another: by wires, one for each kind of array sent.

What is put in at one end of a wire is got at the other, in the same order. Every process that has devices at an end
puts, at one place in the order of all tasks, which all processes share; those at the far end put None.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from autosharding import _jax
from autosharding.keys import is_key, keys_of, words_of
from autosharding.processes import has_some, in_turn


class Wire(Protocol):
    """A way for arrays of one shape, dtype and sharding."""

    @property
    def lies(self) -> NamedSharding:
        """How they lie where they arrive."""
        ...

    def put(self, x: Any | None) -> None:
        """Send an array; None where it is another process's."""
        ...

    def get(self) -> Any:
        """The next array, where it arrives."""
        ...


class Channel(Protocol):
    """Makes wires. All processes ask for the same ones in the same order."""

    def wire(self, came: jax.ShapeDtypeStruct, to: NamedSharding, *, exact: bool = True, lent: bool = False) -> Wire:
        """A wire for arrays as `came`, with its sharding, that are wanted as `to`: just so, or only on its devices.

        What is lent may be donated to a program as soon as it is put.
        """
        ...


@dataclass(frozen=True)
class Route:
    """How an array goes over: whole tiles, each to one device or several, and nothing is cut on the way.

    Attributes:
        leave: brings it into the tiles that go over; None where it has them.
        left: how it lies then.
        over: how it lies where it arrives; the j-th device there has the tile of the device `sources[j]`.
        sources: device of origin for each device of `over`, in its order.
        arrive: brings it into the split wanted; None where it has it.
    """

    leave: Callable[[Any], Any] | None
    left: NamedSharding
    over: NamedSharding
    sources: tuple[Any, ...]
    arrive: Callable[[Any], Any] | None


def route(came: NamedSharding, to: NamedSharding, rank: int, *, exact: bool = True) -> Route:
    """The route of an array of this rank, to lie as wanted or, if that need not be exact, on the devices wanted.

    As many devices: as it lies. A multiple of them: as it lies, each tile to several devices. Else it leaves whole.
    """
    from_, there = devices_of(came), devices_of(to)
    n = there.size
    leave, left = None, came
    if n % from_.size:
        left = NamedSharding(came.mesh, PartitionSpec())
        leave = None if came.is_fully_replicated else _brought(left)
    if left.is_fully_replicated:
        over = to if to.is_fully_replicated else NamedSharding(to.mesh, PartitionSpec())
        sources = tuple(_near(from_, j, d) for j, d in enumerate(there.flat))
    else:
        each = n // from_.size
        names = (*left.mesh.axis_names, "".join(left.mesh.axis_names) + "_copies")
        over = NamedSharding(Mesh(there.reshape(*from_.shape, each), names), left.spec)
        sources = tuple(np.repeat(from_.ravel(), each))
    if over.is_equivalent_to(to, rank):
        return Route(leave, left, to, sources, None)
    return Route(leave, left, over, sources, _brought(to) if exact else None)


def _near(devices: np.ndarray, j: int, to: Any) -> Any:
    """The j-th of the devices, counted round; of those in the process of `to` where there are some."""
    near = [d for d in devices.flat if d.process_index == to.process_index] or list(devices.flat)
    return near[j % len(near)]


def _brought(to: NamedSharding) -> Callable[[Any], Any]:
    return in_turn(jax.jit(lambda x: x, out_shardings=to), devices_of(to).flat)


def carrier(route: Route, shape: tuple[int, ...]) -> Callable[[Any], Any]:
    """What brings an array of this shape over, within one process: it returns at once, and no tile is cut."""
    from_, there = list(devices_of(route.left).flat), list(devices_of(route.over).flat)
    if tuple(from_) == route.sources:
        whole = _jax.copies([route.over])
        return lambda x: whole([x])[0]
    tiles = _jax.copies([SingleDeviceSharding(d) for d in there])
    sources = [from_.index(d) for d in route.sources]

    def carried(x: Any) -> Any:
        came = tiles([x.addressable_data(j) for j in sources])
        return jax.make_array_from_single_device_arrays(shape, route.over, came)

    return carried


def devices_of(sharding: NamedSharding) -> np.ndarray:
    """The devices of its mesh, in the mesh's shape."""
    return np.asarray(sharding.mesh.devices)


class DevicePut:
    """`jax.device_put`: within one process, and between processes where JAX can do that (accelerators).

    It returns at once where every piece that arrives is a piece that was there, as on a `Route`. Within one process the
    copies that it would make are made without it, since it looks at each array anew; but for keys.
    """

    def wire(self, came: jax.ShapeDtypeStruct, to: NamedSharding, *, exact: bool = True, lent: bool = False) -> Wire:
        """A wire."""
        return _Put(came, to, exact, lent)


class _Put:
    def __init__(self, came: jax.ShapeDtypeStruct, to: NamedSharding, exact: bool, lent: bool) -> None:
        self.came = came
        assert isinstance(came.sharding, NamedSharding)
        self.route = route(came.sharding, to, len(came.shape), exact=exact)
        self.lies = self.route.over if self.route.arrive is None else to
        self.here = has_some(devices_of(to).flat)
        near = came.sharding.is_fully_addressable and to.is_fully_addressable
        self.waits = near and not lent
        self.carried = carrier(self.route, came.shape) if near and not is_key(came.dtype) else self._put_over
        self.queue: deque[Any] = deque()

    def put(self, x: Any | None) -> None:
        """Send an array."""
        if x is not None and self.route.leave is not None:
            x = self.route.leave(x)
        if self.waits:
            self.queue.append(x)  # goes when it is wanted: until then it takes no room there
            return
        if x is None and not self.here:
            return
        x = self.carried(x)
        if self.here:
            self.queue.append(x)

    def _put_over(self, x: Any | None) -> Any:
        return jax.device_put(absent(self.came, self.route.left) if x is None else x, self.route.over)

    def get(self) -> Any:
        """The next array."""
        x = self.queue.popleft()
        if self.waits:
            x = self.carried(x)
        return x if self.route.arrive is None else self.route.arrive(x)


class KeyWire:
    """A wire for typed keys, which go as their words.

    Args:
        make: (the words, how they arrive) -> the wire for them.
        came, to: as of `Channel.wire`.
    """

    def __init__(
        self, make: Callable[[jax.ShapeDtypeStruct, NamedSharding], Wire], came: jax.ShapeDtypeStruct, to: NamedSharding
    ) -> None:
        assert isinstance(came.sharding, NamedSharding)
        arrives = words_of(came, to).sharding
        assert isinstance(arrives, NamedSharding)
        self.dtype, self.lies = came.dtype, to
        self.words = make(words_of(came, came.sharding), arrives)

    def put(self, x: Any | None) -> None:
        """Send keys."""
        self.words.put(None if x is None else jax.random.key_data(x))

    def get(self) -> Any:
        """The next keys."""
        return keys_of(self.words.get(), self.dtype, self.lies)


def absent(like: Any, sharding: NamedSharding) -> Any:
    """An array on devices of which this process has none."""
    if is_key(like.dtype):
        words = words_of(like, sharding)
        assert isinstance(words.sharding, NamedSharding)
        return keys_of(absent(words, words.sharding), like.dtype, sharding)
    return jax.make_array_from_single_device_arrays(like.shape, sharding, [], dtype=like.dtype)
