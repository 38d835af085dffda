"""Where things are: devices, their cluster, the mesh over them, the shardings of arrays on it.

Meshes are made of `AxisType.Auto` axes, whatever the user's own context says: the program is one `shard_map` with
every collective written out, and asks nothing of the partitioner.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from autosharding.errors import ConstraintError, MeshMismatch
from autosharding.executor import partition_spec
from autosharding.graph import Graph
from autosharding.keys import is_key, keys_of, words_of
from autosharding.plan import Plan
from autosharding.spec import Spec
from cost_model import HARDWARE, Cluster, ClusterError

_UNITS = {"": 1, "b": 1}
_UNITS |= {f"{p}{unit}": size**i for unit, size in (("ib", 1024), ("b", 1000)) for i, p in enumerate("kmgt", 1)}

_TPU_KINDS = {
    "tpu v4": "tpu-v4",
    "tpu v5 lite": "tpu-v5e",
    "tpu v5e": "tpu-v5e",
    "tpu v5": "tpu-v5p",
    "tpu v5p": "tpu-v5p",
    "tpu v6 lite": "tpu-v6e",
    "tpu v6e": "tpu-v6e",
}


def bytes_of(memory: int | str | None) -> int | None:
    """`70GiB`, `16e9` or a number as bytes.

    Raises:
        MeshMismatch: when it is no amount of memory.
    """
    if memory is None or isinstance(memory, int):
        return memory
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([a-z]*)\s*", str(memory).lower())
    if match is None or match[2] not in _UNITS:
        raise MeshMismatch(f"memory={memory!r} is no amount of memory. Write bytes as a number, or '70GiB', '800MiB'.")
    return int(float(match[1]) * _UNITS[match[2]])


def cluster_of(devices: Sequence[Any]) -> Cluster:
    """The prices of the devices that are there, found by their kind.

    Raises:
        MeshMismatch: for hardware that is not in the table.
    """
    kind, n = str(devices[0].device_kind).lower(), len(devices)
    if devices[0].platform == "cpu":
        return Cluster.parse(f"cpu:{n}")
    if kind.startswith("tpu") and kind in _TPU_KINDS:
        return _named(_TPU_KINDS[kind], _torus(devices), kind)
    words = re.split(r"[^a-z0-9]+", kind)
    names = [name for name in HARDWARE if name.split("-")[0] in words]
    fitting = [name for name in names if all(w in words for w in name.split("-"))]
    if not fitting:
        raise _unknown(kind)
    nodes = len({d.process_index for d in devices})
    return _named(max(fitting, key=len), (nodes, n // nodes), kind)


def _torus(devices: Sequence[Any]) -> tuple[int, ...]:
    coords = np.array([getattr(d, "coords", (0,)) for d in devices])
    dims = tuple(int(n) for n in coords.max(0) - coords.min(0) + 1 if n > 1) or (1,)
    return dims if prod(dims) == len(devices) else (len(devices),)


def _named(name: str, counts: tuple[int, ...], kind: str) -> Cluster:
    try:
        return Cluster.parse(f"{name}:{'x'.join(map(str, counts))}")
    except ClusterError as error:
        raise _unknown(kind) from error


def _unknown(kind: str) -> MeshMismatch:
    return MeshMismatch(
        f"There are no prices for devices of the kind {kind!r} in this arrangement. Pass the cluster whose prices come "
        f"closest, cluster='h100:1x8' for one node of eight (known: {', '.join(HARDWARE)}), or describe your own in a "
        "device file and pass its path."
    )


def axes_of(mesh: Mesh | Mapping[str, int], n_devices: int, where: str) -> dict[str, int]:
    """Axis -> size of the mesh a user asked for.

    Raises:
        MeshMismatch: when it has another number of devices than there are.
    """
    axes = {str(name): size for name, size in mesh.shape.items()} if isinstance(mesh, Mesh) else dict(mesh)
    if any(not isinstance(n, (int, np.integer)) or isinstance(n, bool) or n < 1 for n in axes.values()) or not axes:
        raise MeshMismatch(f"mesh={mesh!r} is no mesh: it maps axis names to sizes, mesh={{'data': 2, 'model': 4}}.")
    if prod(axes.values()) != n_devices:
        names = " x ".join(f"{a}={n}" for a, n in axes.items())
        raise MeshMismatch(
            f"The mesh {names} has {prod(axes.values())} devices; {where} has {n_devices}. Let the sizes multiply to "
            f"{n_devices}, pass the devices to use (devices=jax.devices()[:{prod(axes.values())}]), or leave mesh out "
            "and it is chosen."
        )
    return {a: int(n) for a, n in axes.items()}


def mesh_over(axes: Mapping[str, int], devices: Sequence[Any], given: Mesh | None) -> Mesh:
    """The mesh the program runs on: the user's own order of devices where a mesh was given."""
    auto = (AxisType.Auto,) * len(axes)
    if given is not None:
        return Mesh(given.devices, given.axis_names, axis_types=auto)
    if prod(axes.values()) != len(devices):
        raise MeshMismatch(
            f"The plan is for {prod(axes.values())} devices (mesh {dict(axes)}), here are {len(devices)}. Plan for the "
            "devices at hand, or pass as many devices as the plan has."
        )
    return jax.make_mesh(tuple(axes.values()), tuple(axes), devices=list(devices), axis_types=auto)


def sharding(mesh: Mesh, spec: Spec) -> NamedSharding:
    """A spec on a mesh."""
    return NamedSharding(mesh, partition_spec(spec))


def placed(x: Any, want: NamedSharding) -> Any:
    """The array under the sharding wanted; itself where it lies so already, whatever that is called. See `brought`."""
    if isinstance(x, jax.Array):
        has = x.sharding
        if has == want or (not isinstance(has, NamedSharding) and has.is_equivalent_to(want, x.ndim)):
            return x
    return brought(x, want)


def brought(x: Any, want: NamedSharding) -> Any:
    """The array under the sharding wanted.

    Where the devices wanted are not all this process's, each process puts what it has of them, and nothing is sent: an
    array that is this process's alone is taken for equal on all.

    Raises:
        MeshMismatch: for an array over the devices of several processes that are not those wanted.
    """
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return _from_global(x, want)
    return jax.device_put(x, want) if want.is_fully_addressable else _put_own(x, want)


def _from_global(x: Any, want: NamedSharding) -> Any:
    if x.sharding.device_set == want.device_set:
        return jax.device_put(x, want)
    if x.is_fully_replicated and x.addressable_shards:
        return placed(x.addressable_data(0), want)
    raise MeshMismatch(
        f"An argument {x.dtype}{list(x.shape)} lies over {len(x.sharding.device_set)} devices of several processes as "
        f"{x.sharding}, and the step wants it on {want.mesh.size} others. Bring it there first, "
        "asd.bring(state, step.shardings(state, batch)[0]), or pass a numpy array that is equal on all processes."
    )


def _put_own(x: Any, want: NamedSharding) -> Any:
    """This process's part of an array that is at hand whole, perhaps nothing."""
    if isinstance(x, jax.Array) and is_key(x.dtype):
        lies = words_of(x, want).sharding
        assert isinstance(lies, NamedSharding)
        return keys_of(_put_own(jax.random.key_data(x), lies), x.dtype, want)
    host = np.asarray(x, jax.dtypes.canonicalize_dtype(jax.dtypes.result_type(x)))
    return jax.make_array_from_callback(host.shape, want, lambda index: host[index], dtype=host.dtype)


# ---- what the user said --------------------------------------------------------------------------------------


def spec_of(wanted: PartitionSpec, rank: int) -> Spec:
    """A `PartitionSpec` of an array of this rank; ValueError when it has more dims."""
    dims = [() if d is None else (d,) if isinstance(d, str) else tuple(d) for d in wanted]
    if len(dims) > rank:
        raise ValueError
    return Spec((*dims, *((),) * (rank - len(dims))))


def constraint_specs(
    constraints: Mapping[str, PartitionSpec] | None,
    graph: Graph,
    cluster: Cluster,
    axes: Mapping[str, int] | None,
    parameters: Sequence[str],
) -> dict[int, Spec]:
    """Input index -> spec for the constraints of a user; see `parallelize`.

    Args:
        constraints: path -> spec.
        graph: whose inputs the paths are for.
        cluster: whose logical meshes are tried where the mesh is not fixed.
        axes: the mesh, where it is.
        parameters: names of the positional arguments: a path may start with one.

    Raises:
        ConstraintError: for a path that names nothing, an axis that no mesh has, a split that does not divide.
    """
    found: dict[int, Spec] = {}
    names = graph.input_names[: graph.n_arguments]
    meshes = [dict(axes)] if axes else [t.shape for t in cluster.logical_meshes()]
    for path, wanted in (constraints or {}).items():
        if not isinstance(wanted, PartitionSpec):
            raise ConstraintError(
                f"The constraint for {path!r} is a {type(wanted).__name__}; it must be a jax.sharding.PartitionSpec, "
                "for example PartitionSpec('x', None)."
            )
        hits = matching(path, names) or matching(_by_position(path, parameters), names)
        if not hits:
            near = difflib.get_close_matches(path, names, n=4, cutoff=0.3) or list(names[:4])
            raise ConstraintError(
                f"The constraint {wanted} is for {path!r}, and no argument of {graph.name!r} has this path. "
                f"Paths like it: {', '.join(near)}. A path may also be the start of paths ('[0].params'), "
                "and '*' in it stands for anything."
            )
        for i in hits:
            found[i] = _met(path, wanted, names[i], graph.inputs[i].shape, meshes)
    return found


def _by_position(path: str, parameters: Sequence[str]) -> str:
    head = re.split(r"[.\[*]", path)[0]
    return f"[{parameters.index(head)}]{path[len(head) :]}" if head in parameters else path


def matching(path: str, names: Sequence[str]) -> list[int]:
    """The names that a path means: itself; else those it is the start of; else those it is a pattern for."""
    if path in names:
        return [i for i, n in enumerate(names) if n == path]
    starts = [i for i, n in enumerate(names) if n.startswith(path) and n[len(path) : len(path) + 1] in ("[", ".")]
    if starts:
        return starts
    pattern = re.compile(re.escape(path).replace(r"\*", ".*").replace(r"\?", "."))
    return [i for i, n in enumerate(names) if pattern.fullmatch(n)]


def _met(path: str, wanted: PartitionSpec, name: str, shape: tuple[int, ...], meshes: Sequence[dict[str, int]]) -> Spec:
    """The spec, when some mesh can meet it."""
    source = "" if name == path else f" (from {path!r})"
    asked = f"The constraint {wanted} on {name}{source}, shape {list(shape)},"
    try:
        spec = spec_of(wanted, len(shape))
    except (ValueError, TypeError):
        raise ConstraintError(f"{asked} must say None or axes for at most {len(shape)} dims.") from None
    known = sorted({a for m in meshes for a in m})
    if unknown := [a for a in spec.axes if a not in known]:
        raise ConstraintError(
            f"{asked} names the axis {unknown[0]!r}; the axes are {', '.join(known)}. Name one of these, or pass "
            f"a mesh with axes of your own: mesh={{{unknown[0]!r}: ...}}."
        )
    if len(set(spec.axes)) != len(spec.axes):
        raise ConstraintError(f"{asked} uses an axis twice; each axis of the mesh can split one dim only.")
    fitting = [m for m in meshes if spec.fits(shape, m)]
    if not fitting:
        last = max(meshes, key=len)
        dims = ", ".join(
            f"dim {d} of {n} into {spec.parts(d, last)}"
            for d, n in enumerate(shape)
            if all(a in last for a in spec.dims[d]) and n % spec.parts(d, last)
        )
        raise ConstraintError(
            f"{asked} does not divide: {dims or 'no mesh has all its axes'} on the mesh {last}. Choose axes whose size "
            "divides the dim, pad the array, or drop the constraint and let the planner choose."
        )
    return spec


def lies_on(x: Any, devices: Sequence[Any]) -> dict[str, int] | None:
    """The axes of the mesh on which an argument already lies, when it is over all of our devices; else None."""
    has = getattr(x, "sharding", None)
    if not isinstance(has, NamedSharding) or has.mesh.size != len(devices) or len(devices) == 1:
        return None
    if isinstance(has.mesh, Mesh) and list(has.mesh.devices.flat) != list(devices):
        return None
    return {str(a): n for a, n in has.mesh.shape.items()}


def lying_specs(arrays: Sequence[Any], axes: Mapping[str, int] | None, devices: Sequence[Any]) -> dict[int, Spec]:
    """Argument index -> spec of the arguments that already lie on the mesh in question."""
    found = {}
    for i, x in enumerate(arrays):
        if axes and lies_on(x, devices) == dict(axes):
            spec = spec_of(x.sharding.spec, len(x.shape))
            if spec.fits(x.shape, axes):
                found[i] = spec
    return found


def mesh_in_use(
    arrays: Sequence[Any], graph: Graph, n_devices: int, devices: Sequence[Any] | None
) -> Mapping[str, int] | None:
    """The mesh that arguments lie on, or that the step's own constraints and `shard_map`s are written for."""
    for x in arrays if devices is not None else ():
        if (axes := lies_on(x, devices or ())) is not None:
            return axes
    for op in graph.ops:
        mesh = op.params["mesh"] if op.name == "shard_map" else None
        if op.name == "sharding_constraint":
            mesh = getattr(op.params.get("sharding"), "mesh", None)
        if mesh is not None and mesh.size == n_devices > 1:
            return {str(a): int(n) for a, n in mesh.shape.items()}
    return None


def shardings_of(plan: Plan, mesh: Mesh) -> tuple[tuple[NamedSharding, ...], tuple[NamedSharding, ...]]:
    """(of the inputs, of the outputs)."""
    return tuple(sharding(mesh, i.spec) for i in plan.inputs), tuple(sharding(mesh, o.spec) for o in plan.outputs)
