"""How an array gets from the devices of one stage to those of another."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding


class Channel(Protocol):
    """Brings arrays to other devices."""

    def send(self, x: Any, to: NamedSharding) -> Any:
        """The array on the devices of `to`, lying so."""
        ...


class DevicePut:
    """`jax.device_put` within one process.

    It returns at once only where every piece that arrives is a piece that was there; so the array first goes over as
    it lies, and is brought into its new split on the devices where it arrives.
    """

    def __init__(self) -> None:
        self._ways: dict[tuple[Any, NamedSharding], tuple[NamedSharding, Any]] = {}

    def send(self, x: Any, to: NamedSharding) -> Any:
        """The array on the devices of `to`, lying so."""
        over, into = self._ways.get((x.sharding, to)) or self._way(x, to)
        there = jax.device_put(x, over)
        return there if into is None else into(there)

    def _way(self, x: Any, to: NamedSharding) -> tuple[NamedSharding, Any]:
        """(how it goes over, what brings it into its split there), kept."""
        came: Any = x.sharding
        devices = np.asarray(to.mesh.devices)
        over, into = to, None
        if came.mesh.devices.size == devices.size:
            same = NamedSharding(Mesh(devices.reshape(came.mesh.devices.shape), came.mesh.axis_names), came.spec)
            if not same.is_equivalent_to(to, x.ndim):
                over, into = same, jax.jit(lambda x: x, out_shardings=to)
        self._ways[came, to] = over, into
        return over, into
