"""Arrays that a pipeline has in slices, each on its stage: taken apart for it, and put together again.

Where every stage has as many devices and an equal run of the slices, the whole array is one array over the devices of
all of them, split among the stages along the dim of the layers: nothing moves. In any other case it lies where its
first slice does, and slices go to their stages and back in every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from itertools import groupby
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from autosharding import placing
from autosharding.pipeline.channel import absent, devices_of
from autosharding.pipeline.spread import bring
from autosharding.processes import has_some, in_turn

STAGES = "stages"
"""The mesh axis along which stages lie."""


class Stack:
    """How one array lies.

    Args:
        whole: its shape and dtype.
        dim: along which it is cut.
        lies: how each slice lies on its stage.

    Attributes:
        sharding: of the whole array.
    """

    def __init__(self, whole: jax.ShapeDtypeStruct, dim: int, lies: Sequence[NamedSharding]) -> None:
        self.whole, self.dim, self.lies = whole, dim, tuple(lies)
        self.runs = [len(list(same)) for _, same in groupby(self.lies, key=lambda s: tuple(devices_of(s).flat))]
        self.apart = self._over_all()
        self.sharding = self.apart or self.lies[0]

    def _over_all(self) -> NamedSharding | None:
        """Over the devices of all stages, if one sharding says that each has its slices."""
        first, stages = self.lies[0], [devices_of(s) for s in self.lies[:: self.runs[0]]]
        distinct = {d for devices in stages for d in devices.flat}
        alike = len(set(self.runs)) == 1 and len({devices.size for devices in stages}) == 1
        if not alike or len(stages) == 1 or len(distinct) != sum(devices.size for devices in stages):
            return None
        over = np.stack([devices.reshape(stages[0].shape) for devices in stages])
        mesh = Mesh(over, (STAGES, *first.mesh.axis_names), axis_types=(AxisType.Auto,) * over.ndim)
        return NamedSharding(mesh, self._split(first.spec, (STAGES,)))

    def _split(self, spec: PartitionSpec, more: tuple[str, ...]) -> PartitionSpec:
        """A spec with the dim of the layers split by more axes, the others after them."""
        dims = [*spec, *(None,) * (len(self.whole.shape) - len(spec))]
        own = dims[self.dim] or ()
        dims[self.dim] = (*more, *((own,) if isinstance(own, str) else own))
        return PartitionSpec(*dims)

    @cached_property
    def on_stages(self) -> tuple[NamedSharding, ...]:
        """For each stage, how its run of the slices lies when the whole array lies over all stages."""
        assert self.apart is not None
        inner = self.lies[0]
        return tuple(
            NamedSharding(Mesh(devices, inner.mesh.axis_names, axis_types=(AxisType.Auto,) * devices.ndim), inner.spec)
            for devices in devices_of(self.apart)
        )

    # ---- taken apart -----------------------------------------------------------------------------------------

    def slices(self, x: Any) -> list[Any]:
        """The slices, on the devices where they are."""
        if self.apart is None or not isinstance(x, jax.Array) or not x.sharding.is_equivalent_to(self.apart, x.ndim):
            return self._cut(x, len(self.lies))
        tiles = {s.device: s.data for s in x.addressable_shards}
        return [part for lies in self.on_stages for part in self._cut(self._of_stage(tiles, lies), self.runs[0])]

    def _of_stage(self, tiles: dict[Any, Any], lies: NamedSharding) -> Any:
        shape = self._shape(len(self.runs))
        own = [tiles[d] for d in devices_of(lies).flat if d in tiles]
        return jax.make_array_from_single_device_arrays(shape, lies, own, dtype=self.whole.dtype)

    def _cut(self, x: Any, count: int) -> list[Any]:
        if count == 1:
            return [x]
        if not isinstance(x, jax.Array):
            return np.split(np.asarray(x), count, self.dim)
        if isinstance(x.sharding, NamedSharding):
            if not has_some(x.sharding.device_set):
                like = jax.ShapeDtypeStruct(self._shape(len(self.lies)), x.dtype)
                return [absent(like, NamedSharding(x.sharding.mesh, PartitionSpec()))] * count
            return list(in_turn(partial(_split, count=count, dim=self.dim), x.sharding.device_set)(x))
        return list(_split(x, count=count, dim=self.dim))

    def _shape(self, parts: int) -> tuple[int, ...]:
        return tuple(n // parts if d == self.dim else n for d, n in enumerate(self.whole.shape))

    # ---- put together ----------------------------------------------------------------------------------------

    def joined(self, slices: Sequence[Any]) -> Any:
        """The whole array of its slices, each on its stage."""
        if self.apart is None:
            return self._together([bring(x, self.lies[0]) for x in slices], self.lies[0])
        each, tiles = self.runs[0], []
        for k, lies in enumerate(self.on_stages):
            if has_some(devices_of(lies).flat):
                tiles += self._together(slices[k * each : (k + 1) * each], lies).addressable_shards
        return jax.make_array_from_single_device_arrays(
            self.whole.shape, self.apart, [s.data for s in tiles], dtype=self.whole.dtype
        )

    def _together(self, slices: Sequence[Any], lies: NamedSharding) -> Any:
        """Slices of one stage as one array that lies so."""
        if not has_some(devices_of(lies).flat):
            return absent(self.whole, lies)
        if len(slices) == 1:
            return placing.placed(slices[0], lies)
        return in_turn(partial(_joined, dim=self.dim, lies=lies), devices_of(lies).flat)(*slices)


@partial(jax.jit, static_argnames=("count", "dim"))
def _split(x: Any, *, count: int, dim: int) -> tuple[Any, ...]:
    each = x.shape[dim] // count
    return tuple(jax.lax.slice_in_dim(x, k * each, (k + 1) * each, axis=dim) for k in range(count))


@partial(jax.jit, static_argnames=("dim", "lies"))
def _joined(*slices: Any, dim: int, lies: NamedSharding) -> Any:
    return jax.lax.with_sharding_constraint(jax.lax.concatenate(slices, dim), lies)
