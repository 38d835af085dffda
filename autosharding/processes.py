"""What the processes of a step tell each other: bytes, by a jitted collective over one device of each.

All of them call the same function with devices of the same processes, and go on when the last has come. The helpers of
`jax.experimental.multihost_utils` speak to every process there is; a step may run on the devices of some.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Wrapped

from autosharding import _jax

PATIENCE = 3600
"""Seconds that a process waits for the others, which may be planning or compiling; dead ones are noticed before."""


def processes_of(devices: Sequence[Any]) -> tuple[int, ...]:
    """Index of each process that has some of the devices."""
    return tuple(sorted({d.process_index for d in devices}))


def has_some(devices: Iterable[Any]) -> bool:
    """Whether some of the devices are this process's."""
    me = jax.process_index()
    return any(d.process_index == me for d in devices)


def in_turn(run: Callable[..., Any], devices: Iterable[Any]) -> Callable[..., Any]:
    """A program over these devices, run so that it does not stand still on CPUs of several processes.

    A process there may have as many threads as devices, and each device's part of a program holds one while it waits
    for the others; so does each part that is to be started while too many are under way. A program is started when all
    that it reads is there, so that none of its parts waits for what takes a thread elsewhere.

    One over several processes they begin together, when each has compiled it, since a collective gives up after half a
    minute; and it is ended before the next is started, since collectives in flight at once may meet each other's.
    """
    devices = tuple(devices)
    if devices[0].platform != "cpu" or jax.process_count() == 1 or len(devices) == 1:
        return run
    return _InTurn(run, processes_of(devices))


class _InTurn:
    """See `in_turn`."""

    def __init__(self, run: Callable[..., Any], processes: tuple[int, ...]) -> None:
        self.run, self.processes = run, processes
        self.uncompiled = run if isinstance(run, Wrapped) else None

    def __call__(self, *args: Any) -> Any:
        if self.uncompiled is not None:
            self.uncompiled.lower(*args).compile()
            self.uncompiled = None
        jax.block_until_ready(args)
        if len(self.processes) == 1:
            return self.run(*args)
        _meetings(self.processes).meet()
        return jax.block_until_ready(self.run(*args))


class _Meetings:
    """Places where the same processes meet, one after another."""

    def __init__(self, processes: tuple[int, ...]) -> None:
        self.processes = processes
        self.held = 0

    def meet(self) -> None:
        """Go on when all have come."""
        self.held += 1
        _jax.meet(f"autosharding {self.processes} {self.held}", PATIENCE, self.processes)


@functools.cache
def _meetings(processes: tuple[int, ...]) -> _Meetings:
    return _Meetings(processes)


def leads(devices: Sequence[Any]) -> bool:
    """Whether this process is the first of those that have the devices."""
    return jax.process_index() == processes_of(devices)[0]


def share(data: bytes, devices: Sequence[Any]) -> bytes:
    """What the first process says, told to all of them; what the others say is not heard."""
    said = data if leads(devices) else b""
    size = int(_together(np.array([len(said)], np.int32), devices, _added)[0])
    row = np.zeros(size, np.uint8)
    row[: len(said)] = np.frombuffer(said, np.uint8)
    return _together(row, devices, _added).tobytes()


def gather(data: bytes, devices: Sequence[Any]) -> tuple[bytes, ...]:
    """What each process says, in the order of `processes_of`."""
    sizes = _together(np.array([len(data)], np.int32), devices, _as_they_are)[:, 0]
    row = np.zeros(sizes.max(), np.uint8)
    row[: len(data)] = np.frombuffer(data, np.uint8)
    rows = _together(row, devices, _as_they_are)
    return tuple(r[:n].tobytes() for r, n in zip(rows, sizes, strict=True))


def _added(rows: Any) -> Any:
    return jnp.sum(rows, axis=0, dtype=rows.dtype)


def _as_they_are(rows: Any) -> Any:
    return rows


def _together(row: np.ndarray, devices: Sequence[Any], found: Callable[[Any], Any]) -> np.ndarray:
    """`found` of the rows of all processes, float or integer[processes, n] -> anything, on each of them."""
    first = {d.process_index: d for d in reversed(devices)}
    mesh = Mesh(np.array([first[p] for p in sorted(first)]), ("process",))
    rows = jax.make_array_from_callback(
        (len(first), *row.shape), NamedSharding(mesh, PartitionSpec("process")), lambda _: row[None]
    )
    run = jax.jit(found, out_shardings=NamedSharding(mesh, PartitionSpec()))
    _meetings(processes_of(devices)).meet()
    return np.asarray(run(rows).addressable_data(0))
