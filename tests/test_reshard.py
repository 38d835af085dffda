"""Every way from every spec to every other one, run on eight devices and compared with the value itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from autosharding.executor import partition_spec
from autosharding.reshard import SpecSpace, apply
from autosharding.spec import Spec
from cost_model import Topology

pytestmark = pytest.mark.core

ALL = PartitionSpec


def topology(sizes):
    return Topology.alpa(sizes, beta=tuple(1.0 / (1 + i) for i in range(len(sizes))))


def laid_out(x, spec, mesh, rng):
    """What each device holds, as one array with a leading dim for each mesh axis."""
    names = tuple(mesh)
    terms = np.zeros((*mesh.values(), *x.shape), x.dtype)
    if not spec.partial:
        terms[...] = x
    else:
        split = [range(n) if a in spec.partial else [slice(None)] for a, n in mesh.items()]
        places = [np.s_[p] for p in np.ndindex(*[len(s) for s in split])]
        values = [rng.integers(-5, 5, x.shape).astype(x.dtype) for _ in places[1:]]
        values.append(x - sum(values) if values else x)
        for place, value in zip(places, values, strict=True):
            at = tuple(place[i] if a in spec.partial else slice(None) for i, a in enumerate(names))
            terms[at] = value
    return terms


def run(space, source, target, x, rng):
    mesh = space.sizes
    devices = np.array(jax.devices()[: int(np.prod(list(mesh.values())))]).reshape(tuple(mesh.values()))
    jmesh = jax.sharding.Mesh(devices, tuple(mesh))
    moves = space.path(source, target)
    terms = laid_out(x, source, mesh, rng)
    k = len(mesh)

    def local(t):
        t = t.reshape(t.shape[k:])
        for move in moves:
            t = apply(move, t, mesh)
        left = [a for a in target.partial]
        return jax.lax.psum(t, tuple(left)) if left else t

    f = jax.shard_map(
        local,
        mesh=jmesh,
        in_specs=PartitionSpec(*mesh),
        out_specs=partition_spec(target.whole()),
        check_vma=False,
    )
    return f, pieces(terms, source, mesh)


def pieces(terms, spec, mesh):
    """Of what each device would hold whole, its own piece."""
    names = tuple(mesh)
    shape = terms.shape[len(mesh) :]
    local = spec.local_shape(shape, mesh)
    cut = np.zeros((*mesh.values(), *local), terms.dtype)
    for place in np.ndindex(*mesh.values()):
        at = dict(zip(names, place, strict=True))
        window = []
        for axes, n in zip(spec.dims, local, strict=True):
            i = 0
            for a in axes:
                i = i * mesh[a] + at[a]
            window.append(slice(i * n, (i + 1) * n))
        cut[place] = terms[place][tuple(window)]
    return cut


@pytest.mark.parametrize(("sizes", "shape"), [((2, 4), (8, 16)), ((2, 2), (4, 3)), ((2, 2, 2), (8,))])
def test_every_change_is_exact(sizes, shape):
    space = SpecSpace(shape, 4, "sum", topology(sizes))
    rng = np.random.default_rng(0)
    x = rng.integers(-9, 9, shape).astype(np.int32)
    pairs = [(s, t) for s in space.specs for t in space.specs]
    picked = [pairs[i] for i in rng.permutation(len(pairs))[:150]]
    built = [run(space, s, t, x, rng) for s, t in picked]
    results = jax.jit(lambda terms: [f(t) for (f, _), t in zip(built, terms, strict=True)])([t for _, t in built])
    for (s, t), got in zip(picked, results, strict=True):
        np.testing.assert_array_equal(got, x, err_msg=f"{s} -> {t}: {[m.kind for m in space.path(s, t)]}")


def test_the_classic_collectives():
    space = SpecSpace((8, 8), 4, "sum", topology((4,)))
    whole, partial = Spec.replicated(2), Spec(((), ()), ("x",))
    rows, cols = Spec((("x",), ())), Spec(((), ("x",)))
    assert [m.kind for m in space.path(partial, whole)] == ["all-reduce"]
    assert [m.kind for m in space.path(partial, rows)] == ["reduce-scatter"]
    assert [m.kind for m in space.path(rows, whole)] == ["all-gather"]
    assert [m.kind for m in space.path(rows, cols)] == ["all-to-all"]
    assert [m.kind for m in space.path(whole, cols)] == ["slice"]
    assert [m.kind for m in space.path(whole, partial)] == ["mask"]


def test_prices_obey_the_triangle():
    space = SpecSpace((8, 16), 4, "sum", topology((2, 4)))
    s = space.seconds
    for k in range(len(space.specs)):
        assert (s <= s[:, k, None] + s[None, k, :] + 1e-9 * np.abs(s)).all()
    for i, a in enumerate(space.specs):
        for j, b in enumerate(space.specs):
            assert sum(m.seconds for m in space.path(a, b)) == pytest.approx(s[i, j])


def test_maximum_and_logic_reduce_by_their_own():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("x",))
    for monoid, x, want in [
        ("max", jnp.arange(4.0), 3.0),
        ("min", jnp.arange(4.0), 0.0),
        ("or", jnp.array([False, True, False, False]), True),
        ("and", jnp.array([True, True, False, True]), False),
    ]:
        space = SpecSpace((), x.dtype.itemsize, monoid, topology((4,)))
        (move,) = space.path(Spec((), ("x",), monoid), Spec(()))
        f = jax.shard_map(
            lambda t, move=move: apply(move, t.reshape(()), {"x": 4}),
            mesh=mesh,
            in_specs=ALL("x"),
            out_specs=ALL(),
            check_vma=False,
        )
        assert f(x) == want
