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
        self._into: dict[NamedSharding, Any] = {}

    def send(self, x: Any, to: NamedSharding) -> Any:
        """The array on the devices of `to`, lying so."""
        came: Any = x.sharding
        devices = np.asarray(to.mesh.devices)
        if came == to or came.mesh.devices.size != devices.size:
            return jax.device_put(x, to)
        there = Mesh(devices.reshape(came.mesh.devices.shape), came.mesh.axis_names)
        over = jax.device_put(x, NamedSharding(there, came.spec))
        if over.sharding.is_equivalent_to(to, x.ndim):
            return jax.device_put(over, to)
        if to not in self._into:
            self._into[to] = jax.jit(lambda x: x, out_shardings=to)
        return self._into[to](over)
