"""What a rule is: the factors of one operator, after Shardy's op-sharding rules.

A matmul is `(i,k),(k,j)->(i,j)`: dims with the same factor are split alike, a factor that no result has (`k`)
is summed. From this one sentence follow the strategies, the prices, what is partial afterwards, what may be
microbatched, and how the op runs on a shard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from autosharding import _jax
from autosharding.errors import RuleError
from autosharding.graph import Op, Value
from autosharding.rules.notation import Dims, Notation
from autosharding.spec import Spec


@dataclass(frozen=True)
class Rule:
    """The factors of one operator application.

    Attributes:
        operands: for each input (literals too) its dims' factors.
        results: for each output its dims' factors.
        sizes: elements along each factor.
        reduced: factors that are reduced away, with the monoid (`sum`, `max`, ...) that joins what the shards
            find.
        whole: factors that must not be split.
        linear: sets of operands; partial sums in exactly these operands pass to every result.
        moves_data: the op only rearranges operand 0: any partial state passes, whatever its monoid.
        added: operands added to the result (a scatter-add's operand): where a reduced factor is split they
            must be partial over the same axes, so that they count once.
        flops: floating-point operations of the whole op.
        known: False for the fallback, which runs replicated and is listed in the plan.
        slides: factors along which a window slides: an array's dim may be any multiple of the factor's size (an image
            of 256 rows, a result of 128), and the pieces of operand and result lie side by side.
        admits: whether a cut, factor -> number of pieces, can be run; None where every cut that divides can.
        exchanges: the collectives that the op makes itself on a shard, between its operands and its results.
        specs: the one way to run it, from the mesh: (specs of the operands, specs of the results); None where the
            factors say all. The flops are then those of one device.
        localise: new params for a shard, or None when the params do not speak of sizes.
        run: how to compute on a shard where that is more than binding the primitive; takes the `Shard` and
            the local operands, returns the local results.
        reason: for the fallback, why it is replicated.
    """

    operands: tuple[Dims, ...]
    results: tuple[Dims, ...]
    sizes: Mapping[str, int]
    reduced: Mapping[str, str] = field(default_factory=dict)
    whole: frozenset[str] = frozenset()
    linear: tuple[frozenset[int], ...] = ()
    moves_data: bool = False
    added: frozenset[int] = frozenset()
    flops: float = 0.0
    known: bool = True
    slides: frozenset[str] = frozenset()
    admits: Callable[[Mapping[str, int]], bool] | None = None
    exchanges: Callable[[Shard], Sequence[Exchange]] | None = None
    specs: Callable[[Mapping[str, int]], tuple[tuple[Spec, ...], tuple[Spec, ...]]] | None = None
    localise: Callable[[Shard], Mapping[str, Any]] | None = None
    run: Callable[..., Sequence[Any]] | None = None
    reason: str = ""

    def verify(self, op: Op) -> Rule:
        """Check factors against the op's shapes; returns itself.

        Raises:
            RuleError: naming the op, the operand and the dim that disagree.
        """
        for kind, dims, atoms in (
            ("operand", self.operands, op.inputs),
            ("result", self.results, op.outputs),
        ):
            if len(dims) != len(atoms):
                raise RuleError(f"The rule for {op.where} speaks of {len(dims)} {kind}s, the op has {len(atoms)}.")
            for i, (d, a) in enumerate(zip(dims, atoms, strict=True)):
                self._check_dims(op, f"{kind} {i}", d, a.shape)
        return self

    def _check_dims(self, op: Op, what: str, dims: Dims, shape: tuple[int, ...]) -> None:
        if len(dims) != len(shape):
            raise RuleError(f"The rule for {op.where} gives {what} {len(dims)} dims, it has shape {shape}.")
        for factors, n in zip(dims, shape, strict=True):
            size = prod(self.sizes[f] for f in factors)
            if factors and (n % size if self.slides.intersection(factors) else size != n):
                sizes = " x ".join(f"{f}={self.sizes[f]}" for f in factors)
                raise RuleError(f"The rule for {op.where} says {what} has a dim {sizes}, its shape is {shape}.")

    def __str__(self) -> str:
        return str(
            Notation(
                self.operands,
                self.results,
                self.reduced,
                self.whole,
                self.linear,
                self.moves_data,
                self.added,
                self.slides,
                self.joined,
            )
        )

    @property
    def joined(self) -> frozenset[str]:
        """Factors that no result has and no monoid reduces: the op itself joins what the devices find."""
        read, left = ({f for dims in side for dim in dims for f in dim} for side in (self.operands, self.results))
        return frozenset(read - left - set(self.reduced) - self.whole)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A collective that an op makes itself.

    Attributes:
        kind: as XLA names it.
        axes: the mesh axes it runs over.
        elements: what the kind counts on one device, see `reshard.Move.bytes`.
        itemsize: bytes per element.
        holds: elements of what it makes and of what that is put into, on one device, besides operands and results.
        source: the operand whose part is sent as it is; -1 where what is sent is computed first.
        part: which part; ops that send the same part of the same value alike send it once (XLA merges them).
    """

    kind: str
    axes: tuple[str, ...]
    elements: int
    itemsize: int
    holds: int
    source: int = -1
    part: str = ""


@dataclass(frozen=True)
class Shard:
    """One op on one device, inside `shard_map`: which factors are split over which axes, and our place there.

    Attributes:
        op: the op.
        rule: its rule.
        factors: factor -> mesh axes, major to minor; factors not named are whole.
        operands: the operands' specs as the op reads them.
        results: the results' specs as the op leaves them.
        mesh: axis -> size.
    """

    op: Op
    rule: Rule
    factors: Mapping[str, tuple[str, ...]]
    operands: tuple[Spec, ...]
    results: tuple[Spec, ...]
    mesh: Mapping[str, int]

    def axes(self, factor: str) -> tuple[str, ...]:
        """The mesh axes that split a factor."""
        return self.factors.get(factor, ())

    def parts(self, factor: str) -> int:
        """Into how many pieces a factor is cut."""
        return prod(self.mesh[a] for a in self.axes(factor))

    def local_size(self, factor: str) -> int:
        """Elements of a factor on this device."""
        return self.rule.sizes[factor] // self.parts(factor)

    def place(self, axes: Sequence[str]) -> Any:
        """Where this device stands along some axes taken as one: a traced i32 scalar, 0 when there are none."""
        return axis_index(axes, self.mesh)

    def index(self, factor: str) -> Any:
        """Which piece of a factor this device has: a traced i32 scalar, or 0 where it is whole."""
        return self.place(self.axes(factor))

    def operand_shape(self, i: int) -> tuple[int, ...]:
        """The local shape of an operand."""
        return self.operands[i].local_shape(self.op.inputs[i].shape, self.mesh)

    def result_shape(self, i: int = 0) -> tuple[int, ...]:
        """The local shape of a result."""
        return self.results[i].local_shape(self.op.outputs[i].shape, self.mesh)

    def dim_offset(self, spec: Spec, shape: Sequence[int], dim: int) -> Any:
        """Where this device's piece of `dim` begins: a traced i32 scalar, or 0 where the dim is whole."""
        return self.place(spec.dims[dim]) * (shape[dim] // spec.parts(dim, self.mesh))

    def positions(self, spec: Spec, shape: Sequence[int], dim: int, dtype: Any) -> Any:
        """The places in the whole array of this device's elements along `dim`: a vector of `dtype`."""
        local = jax.lax.iota(dtype, spec.local_shape(shape, self.mesh)[dim])
        return local + jnp.asarray(self.dim_offset(spec, shape, dim)).astype(dtype) if spec.dims[dim] else local

    def bind(self, *operands: Any, **overrides: Any) -> tuple[Any, ...]:
        """The op's own primitive on local operands, with some of its params replaced."""
        params = _jax.unplaced(dict(self.op.params) | overrides)
        return _jax.bind(self.op.primitive, self.op.context, params, operands)

    def compute(self, *operands: Any) -> Sequence[Any]:
        """The local results of this op."""
        if self.rule.run is not None:
            return self.rule.run(self, *operands)
        return self.bind(*operands, **(self.rule.localise(self) if self.rule.localise else {}))


def axis_index(axes: Sequence[str], mesh: Mapping[str, int]) -> Any:
    """This device's position along several axes taken as one, major first; 0 when there are none."""
    index: Any = 0
    for a in axes:
        index = index * mesh[a] + jax.lax.axis_index(a)
    return index


RuleMaker = Callable[[Op], Rule]

REGISTRY: dict[str, RuleMaker] = {}
"""Primitive name -> the function that reads an op's rule off it. Filled by the imports of this room."""


def rule(*names: str) -> Callable[[RuleMaker], RuleMaker]:
    """Register a rule for primitives, by name.

    Raises:
        RuleError: when a name already has a rule.
    """

    def register(make: RuleMaker) -> RuleMaker:
        for name in names:
            if name in REGISTRY:
                raise RuleError(f"There are two rules for the primitive {name}.")
            REGISTRY[name] = make
        return make

    return register


def replicated(op: Op, reason: str) -> Rule:
    """The fallback: every operand gathered, the op computed by every device."""
    return Rule(
        operands=tuple(((),) * a.rank for a in op.inputs),
        results=tuple(((),) * v.rank for v in op.outputs),
        sizes={},
        known=False,
        flops=float(sum(v.size for v in op.outputs)),
        reason=reason,
    )


def factors_of(prefix: str, shape: Sequence[int]) -> Dims:
    """A factor of its own for every dim: `x0, x1, ...`; dims of size 1 have none."""
    return tuple((f"{prefix}{d}",) if n > 1 else () for d, n in enumerate(shape))


def sizes_of(*pairs: tuple[Dims, Sequence[int]]) -> dict[str, int]:
    """Sizes of simple (one factor a dim) factors from dims and shapes."""
    return {f[0]: n for dims, shape in pairs for f, n in zip(dims, shape, strict=True) if len(f) == 1}


def numeric(value: Value) -> bool:
    """Whether partial sums of this value mean anything: numbers, not booleans or PRNG keys."""
    return value.dtype != "bool" and not value.dtype.startswith("key")


def adds_up(op: Op, i: int) -> bool:
    """Whether partial sums of operand `i` make those of the result: integers wrap at their own width."""
    a, out = op.inputs[i], op.outputs[0]
    inexact = ("f", "bf", "c")
    return a.dtype == out.dtype or (a.dtype.startswith(inexact) and out.dtype.startswith(inexact))
