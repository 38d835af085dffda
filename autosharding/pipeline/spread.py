"""Arrays brought from some devices to others, of whatever processes: out of a pipeline's stages and back into them.

What lies on the devices of one stage is, on every other process, an array without data. Much of what handles arrays of
many processes (checkpoints by orbax, `jax.experimental.multihost_utils`) wants a part of each on every process instead.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from autosharding import _jax, placing
from autosharding.pipeline.channel import Wire, absent
from autosharding.pipeline.transfer import Transfer
from autosharding.processes import PATIENCE, has_some, processes_of


def spread(tree: Any) -> Any:
    """The same arrays with a part of each on every process, split over all devices as far as a dim divides.

    As in `manager.save(step, args=StandardSave(asd.spread(state)))`. All processes call it alike; with one process it
    changes nothing. Of a `jax.ShapeDtypeStruct` it tells the sharding, which is what a checkpoint is restored into
    before `bring` takes it to its stages.
    """
    if jax.process_count() == 1:
        return tree
    mesh = Mesh(np.array(jax.devices()), ("device",), axis_types=(AxisType.Auto,))
    return jax.tree.map(lambda x: _spread(x, mesh), tree)


def _spread(x: Any, mesh: Mesh) -> Any:
    if isinstance(x.sharding, NamedSharding) and len(processes_of(tuple(x.sharding.device_set))) == jax.process_count():
        return x
    dim = next((d for d, n in enumerate(x.shape) if n and n % mesh.size == 0), None)
    spec = PartitionSpec() if dim is None else PartitionSpec(*(None,) * dim, "device")
    want = NamedSharding(mesh, spec)
    return bring(x, want) if isinstance(x, jax.Array) else jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=want)


def bring(tree: Any, shardings: Any) -> Any:
    """The same arrays lying as wanted, as in `state = asd.bring(state, step.shardings(state, batch)[0])`.

    All processes call it alike. An array with a `NamedSharding` is fetched from the devices that this names; any other
    is taken for equal on all processes.

    Args:
        tree: arrays.
        shardings: a `NamedSharding` for each.
    """
    return jax.tree.map(_bring, tree, shardings)


def _bring(x: Any, want: NamedSharding) -> Any:
    has = getattr(x, "sharding", None)
    if jax.process_count() == 1 or not isinstance(has, NamedSharding):
        return placing.brought(x, want)
    if has.device_set == want.device_set:
        return placing.brought(x, want) if has_some(want.device_set) else absent(x, want)
    wire = _wires().wire(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_plain(has)), _plain(want))
    wire.put(x if has_some(has.device_set) else None)
    found = jax.block_until_ready(wire.get())
    _wires().end()
    return found


def _plain(sharding: NamedSharding) -> NamedSharding:
    """Written in one way, as every process must write it."""
    dims = [d[0] if isinstance(d, tuple) and len(d) == 1 else d or None for d in sharding.spec]
    while dims and dims[-1] is None:
        dims.pop()
    return NamedSharding(sharding.mesh, PartitionSpec(*dims))


class _Wires:
    """One wire for all arrays of one kind."""

    def __init__(self) -> None:
        self.channel = Transfer(jax.devices())
        self.made: dict[Any, Wire] = {}
        self.ended = 0

    def wire(self, came: jax.ShapeDtypeStruct, to: NamedSharding) -> Wire:
        key = came.shape, came.dtype, came.sharding, to
        if key not in self.made:
            self.made[key] = self.channel.wire(came, to)
        return self.made[key]

    def end(self) -> None:
        """Go on when all processes have what was sent to them.

        One that went on into a collective could have all its threads waiting there while its tiles are still asked for.
        """
        self.ended += 1
        _jax.meet(f"autosharding brought {self.ended}", PATIENCE)


@functools.cache
def _wires() -> _Wires:
    return _Wires()
