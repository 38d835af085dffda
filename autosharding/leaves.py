"""A call taken apart: arrays on one side, everything else on the other, and put together again.

Arrays are what `jax.jit` takes as such: arrays of JAX and numpy, scalars of Python and numpy, typed keys. All other
leaves (functions, strings, the static arguments) belong to the `Structure` of the call: calls of equal structure and
equal shapes share one program. Objects of flax nnx, which a step changes in place, are taken apart by nnx itself:
their arrays are arguments and results, and are written back after the run. flax is never imported here; who passes
an nnx object has it imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import DictKey, GetAttrKey, SequenceKey, keystr, tree_flatten_with_path

from autosharding.errors import UnsupportedProgram

_SCALARS = (bool, int, float, complex)


class Fixed:
    """A leaf that is no array, compared by type and value."""

    __slots__ = ("hash", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        try:
            self.hash = hash((type(value), value))
        except TypeError as error:
            raise UnsupportedProgram(
                f"An argument of the step is a {type(value).__name__}, which is neither an array nor hashable "
                f"({error}), so it is not possible to tell whether a compiled program fits it. Pass a hashable value "
                "(a tuple for a list, a frozen dataclass for a mutable one), or arrays."
            ) from error

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Fixed):
            return False
        return self.value is other.value or (type(self.value) is type(other.value) and self.value == other.value)

    def __hash__(self) -> int:
        return self.hash

    def __repr__(self) -> str:
        return f"Fixed({self.value!r})"


@dataclass(frozen=True, slots=True)
class Slot:
    """Where an nnx object stood: the number of the object in the walk over all objects of the call."""

    number: int


class _Fresh:
    """An nnx object that the step made: its definition, and its state as the only child of this pytree."""

    def __init__(self, definition: Any, state: Any) -> None:
        self.definition = definition
        self.state = state


jax.tree_util.register_pytree_node(
    _Fresh, lambda f: ((f.state,), f.definition), lambda definition, children: _Fresh(definition, children[0])
)


def is_array(x: Any) -> bool:
    """Whether a leaf is an array to `jax.jit`, or stands for one."""
    if isinstance(x, (jax.Array, *_SCALARS, jax.ShapeDtypeStruct)):
        return True
    return isinstance(x, (np.ndarray, np.generic)) and x.dtype.kind not in "OSUMm"


def shape_of(x: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a leaf as JAX sees it, without a sharding."""
    if isinstance(x, jax.ShapeDtypeStruct):
        aval = x
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.extended)
        dtype = x.dtype if is_key else jax.dtypes.canonicalize_dtype(x.dtype)
    else:
        aval = jax.typeof(x)
        dtype = aval.dtype
    return jax.ShapeDtypeStruct(aval.shape, dtype, weak_type=bool(getattr(aval, "weak_type", False)))


@dataclass(frozen=True)
class Structure:
    """All of a call but its arrays.

    Attributes:
        treedef: of `((args, kwargs), nnx state)`.
        fixed: (leaf index, value) of the leaves that are no arrays.
        definition: nnx's definition of all objects in the call; None where there are none. Compared, not hashed: a
            module may hold what has no hash (a config that is a dataclass), as under `nnx.jit`.
        scalars_fixed: whether scalars of Python belong to the structure too.
    """

    treedef: Any
    fixed: tuple[tuple[int, Fixed], ...]
    definition: Any = field(default=None, hash=False)
    scalars_fixed: bool = False

    def arrays_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any] | None:
        """The arrays of a call if it is of this structure; quick, and None when in doubt."""
        if self.definition is not None:
            return None
        leaves, treedef = jax.tree.flatten(((args, kwargs), None))
        if treedef != self.treedef:
            return None
        for i, value in reversed(self.fixed):
            leaf = leaves.pop(i)
            if not (isinstance(leaf, Fixed) and leaf == value) and leaf is not value.value:
                return None
        return leaves

    def call(self, arrays: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        """Positional and keyword arguments around other arrays, and the nnx objects among them."""
        (args, kwargs), state = jax.tree.unflatten(self.treedef, _merge(arrays, self.fixed))
        if self.definition is None:
            return args, kwargs, None
        objects = nnx().merge(self.definition, state)
        there = dict(enumerate(objects))
        args, kwargs = jax.tree.map(
            lambda x: there[x.number] if isinstance(x, Slot) else x,
            (args, kwargs),
            is_leaf=lambda x: isinstance(x, Slot),
        )
        return args, kwargs, objects

    @cached_property
    def array_positions(self) -> tuple[int, ...]:
        """Leaf index of each array."""
        fixed = {i for i, _ in self.fixed}
        return tuple(i for i in range(self.treedef.num_leaves) if i not in fixed)

    @cached_property
    def paths(self) -> tuple[tuple[Any, ...], ...]:
        """The key path of each array in the tree of `treedef`."""
        tree = jax.tree.unflatten(self.treedef, range(self.treedef.num_leaves))
        paths = [p for p, _ in tree_flatten_with_path(tree)[0]]
        return tuple(paths[i] for i in self.array_positions)

    def with_leaves(self, leaves: Sequence[Any]) -> Any:
        """The positional arguments with other leaves in place of the arrays, and None for all else.

        An nnx object gives its state; keyword arguments, if any, come last as a dict.
        """
        all_leaves = _merge(leaves, [(i, f if isinstance(f.value, Slot) else Fixed(None)) for i, f in self.fixed])
        (args, kwargs), state = jax.tree.unflatten(self.treedef, all_leaves)
        args, kwargs = jax.tree.map(lambda x: state[x.number] if isinstance(x, Slot) else x, (args, kwargs))
        return (*args, kwargs) if kwargs else args

    @cached_property
    def names(self) -> tuple[str, ...]:
        """A path for each array: `[0].params['w']`, `batch['x']` for a keyword, `[0].blocks[1].bias` inside nnx."""
        slots = {n: _argument_name(p) for n, p in self._slots.items()}
        return tuple(_object_name(p, slots) if p[0].idx == 1 else _argument_name(p) for p in self.paths)

    @cached_property
    def arguments(self) -> tuple[int | str, ...]:
        """For each array the position or the keyword of the argument it belongs to."""
        of_slot = {n: _argument(p) for n, p in self._slots.items()}
        return tuple(of_slot[p[1].key] if p[0].idx == 1 else _argument(p) for p in self.paths)

    @cached_property
    def _slots(self) -> dict[int, tuple[Any, ...]]:
        """Where each nnx object stands first."""
        found: dict[int, tuple[Any, ...]] = {}
        tree = jax.tree.unflatten(self.treedef, _merge(range(len(self.array_positions)), self.fixed))
        for path, leaf in tree_flatten_with_path(tree)[0]:
            if isinstance(leaf, Slot):
                found.setdefault(leaf.number, path)
        return found


def take_apart(
    args: tuple[Any, ...], kwargs: dict[str, Any], *, scalars_fixed: bool = False
) -> tuple[list[Any], Structure, tuple[Any, ...]]:
    """(arrays, structure, nnx objects) of a call; static arguments come wrapped as `Fixed`."""
    objects: list[Any] = []
    definition = state = None
    if nnx() is not None:
        args, kwargs = jax.tree.map(lambda x: _slot(x, objects), (args, kwargs), is_leaf=is_object)
        if objects:
            definition, state = nnx().split(tuple(objects))
    leaves, treedef = jax.tree.flatten(((args, kwargs), state))
    arrays: list[Any] = []
    fixed: list[tuple[int, Fixed]] = []
    for i, x in enumerate(leaves):
        if is_array(x) and not (scalars_fixed and isinstance(x, _SCALARS) and not isinstance(x, np.generic)):
            arrays.append(x)
        else:
            fixed.append((i, x if isinstance(x, Fixed) else Fixed(x)))
    return arrays, Structure(treedef, tuple(fixed), definition, scalars_fixed), tuple(objects)


@dataclass(frozen=True)
class Result:
    """All of a step's result but its arrays.

    Attributes:
        treedef: of `(result, nnx state)`.
        fixed: (leaf index, value) of the leaves that are no arrays.
        has_objects: whether nnx objects are in the result.
    """

    treedef: Any
    fixed: tuple[tuple[int, Fixed], ...]
    has_objects: bool

    def build(self, arrays: Sequence[Any], objects: tuple[Any, ...]) -> Any:
        """The result around arrays; the nnx objects that were passed in take up their new state."""
        result, state = jax.tree.unflatten(self.treedef, _merge(arrays, self.fixed) if self.fixed else arrays)
        if objects:
            nnx().update(objects, state)
        if not self.has_objects:
            return result
        known = _walk(objects)

        def put(x: Any) -> Any:
            if isinstance(x, _Fresh):
                return nnx().merge(x.definition, x.state)
            return known[x.number] if isinstance(x, Slot) else x

        return jax.tree.map(put, result, is_leaf=lambda x: isinstance(x, (_Fresh, Slot)))

    @cached_property
    def array_positions(self) -> tuple[int, ...]:
        """Leaf index of each array."""
        fixed = {i for i, _ in self.fixed}
        return tuple(i for i in range(self.treedef.num_leaves) if i not in fixed)

    @cached_property
    def paths(self) -> tuple[tuple[Any, ...], ...]:
        """The key path of each array in the tree of `treedef`."""
        tree = jax.tree.unflatten(self.treedef, range(self.treedef.num_leaves))
        paths = [p for p, _ in tree_flatten_with_path(tree)[0]]
        return tuple(paths[i] for i in self.array_positions)

    def names(self, slots: Structure) -> tuple[str, ...]:
        """A path for each array of the result; new state of an nnx object bears the name it has as an argument."""
        same = dict(zip(slots.paths, slots.names, strict=True))
        return tuple(same.get(p, keystr(p)) if p[0].idx == 1 else keystr(p[1:]) or "result" for p in self.paths)


def take_result(result: Any, objects: Any) -> tuple[list[Any], Result]:
    """(arrays, all else) of what a step returned; `objects` are the nnx objects it worked on."""
    state = None
    has_objects = False
    if nnx() is not None:
        known = {id(o): i for i, o in enumerate(_walk(objects or ()))}
        found: list[Any] = []

        def out(x: Any) -> Any:
            if not is_object(x):
                return x
            found.append(x)
            return Slot(known[id(x)]) if id(x) in known else _Fresh(*nnx().split(x))

        result = jax.tree.map(out, result, is_leaf=is_object)
        has_objects = bool(found)
        if objects:
            state = nnx().split(objects)[1]
    leaves, treedef = jax.tree.flatten((result, state))
    fixed = tuple((i, Fixed(x) if not isinstance(x, Fixed) else x) for i, x in enumerate(leaves) if not is_array(x))
    return [x for x in leaves if is_array(x)], Result(treedef, fixed, has_objects)


# ---- new state and old -------------------------------------------------------------------------------------


def new_states(call: Structure, result: Result, ins: Sequence[Any], outs: Sequence[Any]) -> dict[int, int]:
    """Which results are new states of which arguments: result array index -> argument array index.

    A subtree of the result is the new state of the first argument, or subtree of one, of the same tree type and the
    same shapes and dtypes that is not taken yet; the result as a whole is tried first, then its elements, then theirs.
    A bare array is the new state of the argument at its own position, of the first argument, or of the array at
    the same path within an argument. New states of nnx objects are known as such.
    """
    match = _Match(call, result, ins, outs)
    match.find(_Node(result.treedef.children()[0], 0))
    of_in = {leaf: i for i, leaf in enumerate(call.array_positions)}
    of_out = {leaf: i for i, leaf in enumerate(result.array_positions)}
    pairs = {of_out[o]: of_in[i] for o, i in match.pairs.items() if o in of_out}
    old = {p: i for i, p in enumerate(call.paths) if p[0].idx == 1}
    for o, p in enumerate(result.paths):
        if p in old and _same(ins[old[p]], outs[o]):
            pairs[o] = old[p]
    return dict(sorted(pairs.items()))


def _same(a: Any, b: Any) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype


def _signatures(structure: Structure | Result, avals: Sequence[Any]) -> list[Any]:
    """For each leaf what must agree: shape and dtype, or the value that is fixed."""
    return _merge([(a.shape, a.dtype) for a in avals], [(i, f) for i, f in structure.fixed], unwrap=False)


@dataclass(frozen=True, slots=True)
class _Node:
    tree: Any
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.tree.num_leaves

    def children(self) -> Iterator[_Node]:
        start = self.start
        for child in self.tree.children():
            yield _Node(child, start)
            start += child.num_leaves

    @property
    def is_leaf(self) -> bool:
        return self.tree.num_leaves == 1 and not self.tree.children()


class _Match:
    """One search; lives during `new_states`."""

    def __init__(self, call: Structure, result: Result, ins: Sequence[Any], outs: Sequence[Any]) -> None:
        self.ins = _signatures(call, ins)
        self.outs = _signatures(result, outs)
        self.pairs: dict[int, int] = {}
        self.taken: set[int] = set()
        self.by_key: dict[Any, list[_Node]] = {}
        self.by_path: dict[tuple[Any, ...], list[_Node]] = {}
        self.out_paths = {i: p[1:] for i, p in zip(result.array_positions, result.paths, strict=True)}
        in_paths = {i: p[2:] for i, p in zip(call.array_positions, call.paths, strict=True)}
        for group in _Node(call.treedef.children()[0], 0).children():
            for argument in group.children():
                self._add(argument, in_paths)

    def _add(self, node: _Node, paths: Mapping[int, tuple[Any, ...]]) -> None:
        if node.is_leaf:
            argument, *inside = paths.get(node.start, (None,))
            if argument is not None:
                self.by_path.setdefault(tuple(inside) or (argument,), []).append(node)
            return
        self.by_key.setdefault(self._key(node, self.ins), []).append(node)
        for child in node.children():
            self._add(child, paths)

    def _key(self, node: _Node, signatures: list[Any]) -> Any:
        return node.tree, tuple(signatures[node.start : node.stop])

    def find(self, node: _Node) -> None:
        if node.tree.num_leaves == 0:
            return
        if node.is_leaf:
            self._find_leaf(node)
            return
        for other in self.by_key.get(self._key(node, self.outs), ()):
            if self._take(node, other):
                return
        for child in node.children():
            self.find(child)

    def _find_leaf(self, node: _Node) -> None:
        path = self.out_paths.get(node.start)
        if path is None:
            return
        first = (SequenceKey(0),)
        tries = [path or first, path[1:]] if len(path) != 1 else [path, first]
        for other in (n for t in tries for n in self.by_path.get(t, ())):
            if self.ins[other.start] == self.outs[node.start] and self._take(node, other):
                return

    def _take(self, node: _Node, other: _Node) -> bool:
        places = range(other.start, other.stop)
        if self.taken.intersection(places):
            return False
        self.taken.update(places)
        self.pairs.update(zip(range(node.start, node.stop), places, strict=True))
        return True


# ---- flax nnx ----------------------------------------------------------------------------------------------


def nnx() -> Any:
    """The module `flax.nnx` where the user has it imported; else None."""
    return sys.modules.get("flax.nnx")


def is_object(x: Any) -> bool:
    """Whether x is an nnx module, optimizer, random stream or variable."""
    flax = nnx()
    return flax is not None and isinstance(x, (flax.Pytree, flax.Variable))


def _slot(x: Any, objects: list[Any]) -> Any:
    if not is_object(x):
        return x
    for i, o in enumerate(objects):
        if o is x:
            return Slot(i)
    objects.append(x)
    return Slot(len(objects) - 1)


def _walk(objects: tuple[Any, ...]) -> list[Any]:
    """The objects passed in, then every object inside them, always in the same order."""
    if not objects:
        return []
    inner = [o for _, o in nnx().iter_graph(objects) if is_object(o)]
    return [*objects, *inner]


# ---- small pieces ------------------------------------------------------------------------------------------


def _merge(arrays: Sequence[Any], fixed: Sequence[tuple[int, Fixed]], *, unwrap: bool = True) -> list[Any]:
    """Arrays with the fixed leaves put in at their places."""
    leaves = list(arrays)
    for i, value in fixed:
        leaves.insert(i, value.value if unwrap else value)
    return leaves


def _argument(path: tuple[Any, ...]) -> int | str:
    return path[2].idx if path[1].idx == 0 else path[2].key


def _argument_name(path: tuple[Any, ...]) -> str:
    """`((args, kwargs), state)` -> `[0]['w']` or `batch['x']`."""
    if path[1].idx == 0:
        return keystr(path[2:])
    return f"{path[2].key}{keystr(path[3:])}"


def _object_name(path: tuple[Any, ...], slots: Mapping[int, str]) -> str:
    """`state[0]['blocks'][1]['bias'].value` -> `[0].blocks[1].bias`."""
    number, *keys = [k.key if isinstance(k, DictKey) else k for k in path[1:]]
    text = slots[number]
    for k in keys:
        if isinstance(k, (GetAttrKey, SequenceKey)) or not isinstance(k, (str, int)):
            text += "" if str(k) in (".value", ".raw_value") else str(k)
        else:
            text += f"[{k}]" if isinstance(k, int) else f".{k}"
    return text


def with_fixed(
    args: tuple[Any, ...], kwargs: dict[str, Any], positions: Sequence[int], names: Sequence[str]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call with its static arguments wrapped as `Fixed`."""
    held = {p % len(args) if args and -len(args) <= p < 0 else p for p in positions}
    wrap: Callable[[Any], Fixed] = Fixed
    return (
        tuple(wrap(a) if i in held else a for i, a in enumerate(args)),
        {k: wrap(v) if k in names else v for k, v in kwargs.items()},
    )
