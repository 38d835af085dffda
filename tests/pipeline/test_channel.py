"""An array comes whole from the devices of one stage to those of another, whatever their numbers and splits."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from autosharding.pipeline.channel import DevicePut, route
from autosharding.pipeline.permute import PermutedWire

X = np.arange(96.0, dtype=np.float32).reshape(12, 8)


def lies(shape, spec, start):
    n = int(np.prod(shape))
    names = ("x", "y")[: len(shape)]
    return NamedSharding(Mesh(np.array(jax.devices()[start : start + n]).reshape(shape), names), spec)


WAYS = [
    (((2,), P("x")), ((2,), P("x"))),
    (((2,), P("x")), ((2,), P(None, "x"))),
    (((2,), P("x")), ((4,), P("x"))),
    (((2, 2), P("x", "y")), ((4,), P(None, "x"))),
    (((2,), P()), ((4,), P("x"))),
    (((4,), P("x")), ((2,), P("x"))),
    (((2,), P(None, "x")), ((3,), P("x"))),
    (((1,), P("x")), ((2, 2), P("y", "x"))),
]


@pytest.mark.parametrize("wire_of", [DevicePut().wire, PermutedWire], ids=["device_put", "permute"])
@pytest.mark.parametrize(("came", "to"), WAYS)
def test_it_arrives(came, to, wire_of):
    came, to = lies(*came, 0), lies(*to, 4)
    for exact in (True, False):
        wire = wire_of(jax.ShapeDtypeStruct(X.shape, X.dtype, sharding=came), to, exact=exact)
        for scale in (1, 2):
            wire.put(jax.device_put(X * scale, came))
        for scale in (1, 2):
            got = wire.get()
            for shard in got.addressable_shards:
                np.testing.assert_array_equal(shard.data, X[shard.index] * scale)
            assert got.sharding.device_set == to.device_set
            assert got.sharding.is_equivalent_to(wire.lies, X.ndim)
            assert got.sharding.is_equivalent_to(to, X.ndim) or not exact


@pytest.mark.parametrize(("came", "to"), WAYS)
def test_a_tile_comes_from_a_device_that_has_it(came, to):
    way = route(lies(*came, 0), lies(*to, 4), X.ndim)
    had = way.left.devices_indices_map(X.shape)
    wanted = way.over.devices_indices_map(X.shape)
    for source, device in zip(way.sources, way.over.mesh.devices.flat, strict=True):
        assert had[source] == wanted[device]


@pytest.mark.parametrize("x", [np.float32(3), np.array([True, False]), np.arange(4).astype("bfloat16")], ids=repr)
def test_a_permutation_of_other_kinds(x):
    came, to = lies((2,), P(), 0), lies((3,), P(), 4)
    wire = PermutedWire(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=came), to, exact=True)
    wire.put(jax.device_put(x, came))
    np.testing.assert_array_equal(wire.get(), x)
