"""Rules for the user's own primitives (Pallas kernels, FFI calls), in the notation of the built-in ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from autosharding.errors import RuleError
from autosharding.graph import Op
from autosharding.rules.base import REGISTRY, Rule, Shard
from autosharding.rules.notation import ELLIPSIS, Dim, Dims, Notation, parse


def register_user_rule(
    primitive: Any,
    text: str,
    *,
    localise: Callable[[Shard], Mapping[str, Any]] | None = None,
    run: Callable[..., Sequence[Any]] | None = None,
    flops: Callable[[Op], float] | None = None,
) -> None:
    """Say how a primitive may be split, as in `register_user_rule(my_matmul_p, "b s d, d f -> b s f")`.

    On each device the primitive is bound to the local pieces. A rule given again, or for a primitive that has
    a built-in rule, replaces the earlier one from the next plan on.

    Kernels share a primitive: one written in Pallas is "pallas_call:NAME" by the name given to `pallas_call`, one
    called by `jax.ffi` is "ffi_call:TARGET". Both carry sizes, so `run` calls the kernel anew on the local pieces:

        asd.rule("pallas_call:rms_norm", "b d, d -> b d {d: whole}", run=lambda shard, x, scale: [rms_norm(x, scale)])

    Args:
        primitive: a JAX primitive, or its name.
        text: the rule, see `autosharding.rules.notation`.
        localise: from a `Shard` the params that differ on a shard, where params speak of sizes.
        run: how to compute on a shard, in place of binding the primitive: takes the `Shard` and the local
            operands, returns the local results.
        flops: floating-point operations of the whole op; else one for each combination of its factors.

    Raises:
        RuleError: when the text cannot be read; when the op is met, that it contradicts its shapes.
    """
    name = primitive if isinstance(primitive, str) else primitive.name
    said = parse(text)
    if said.slides:
        raise RuleError(
            f"The rule {text!r} for {name} has factors along which a window slides. Such a rule needs its own halo "
            "exchange, which only built-in rules have. Leave the windowed dims whole: `1` in their place."
        )
    if said.joined and run is None:
        raise RuleError(
            f"The rule {text!r} for {name} says that {', '.join(sorted(said.joined))} is joined by the op itself, and "
            "says not how. Give `run`, which gathers what the devices found, or name the monoid (`sum`, `max`, ...)."
        )
    REGISTRY[name] = UserRule(said, localise, run, flops)


@dataclass(frozen=True)
class UserRule:
    """Registered by the user."""

    said: Notation
    localise: Callable[[Shard], Mapping[str, Any]] | None = None
    run: Callable[..., Sequence[Any]] | None = None
    flops: Callable[[Op], float] | None = None

    def __call__(self, op: Op) -> Rule:
        """The rule of one op."""
        rule = _rule(op, self.said)
        work = self.flops(op) if self.flops else rule.flops
        return replace(rule, localise=self.localise, run=self.run, flops=work)


def _rule(op: Op, said: Notation) -> Rule:
    """The rule of one op: `...` written out, sizes read off its shapes."""
    if len(said.operands) != len(op.inputs) or len(said.results) != len(op.outputs):
        raise _contradicts(
            op,
            said,
            f"it has {len(said.operands)} operands and {len(said.results)} results, the op "
            f"{len(op.inputs)} and {len(op.outputs)}",
        )
    shapes = [a.shape for a in (*op.inputs, *op.outputs)]
    sides = [_written_out(op, said, d, s) for d, s in zip((*said.operands, *said.results), shapes, strict=True)]
    sizes = _sizes(op, said, sides, shapes)
    sides = [
        tuple(tuple(f for f in dim if f in sizes and n > 1) for dim, n in zip(dims, shape, strict=True))
        for dims, shape in zip(sides, shapes, strict=True)
    ]
    n = len(op.inputs)
    return Rule(
        operands=tuple(sides[:n]),
        results=tuple(sides[n:]),
        sizes=sizes,
        reduced={f: m for f, m in said.reduced.items() if f in sizes},
        whole=said.whole & set(sizes),
        linear=said.linear,
        moves_data=said.moves_data,
        added=said.added,
        flops=float(prod(sizes.values())),
    )


def _contradicts(op: Op, said: Notation, what: str) -> RuleError:
    shapes = ", ".join(str(list(a.shape)) for a in op.inputs)
    results = ", ".join(str(list(v.shape)) for v in op.outputs)
    return RuleError(
        f"The rule `{said}` does not fit {op.where} on shapes {shapes} -> {results}: {what}. "
        "Register a rule that names every dim of every operand and result, scalars too (`.`)."
    )


def _written_out(op: Op, said: Notation, dims: Dims, shape: Sequence[int]) -> Dims:
    """Dims with `...` replaced by as many factors as the shape has dims to spare."""
    spare = len(shape) - len(dims) + 1
    if ELLIPSIS not in dims:
        if len(dims) != len(shape):
            raise _contradicts(op, said, f"an array of shape {list(shape)} is given {len(dims)} dims")
        return dims
    if spare < 0:
        raise _contradicts(op, said, f"an array of shape {list(shape)} has too few dims")
    at = dims.index(ELLIPSIS)
    batch: Dims = tuple((f"_{i}",) for i in range(spare))
    return (*dims[:at], *batch, *dims[at + 1 :])


def _sizes(op: Op, said: Notation, sides: Sequence[Dims], shapes: Sequence[Sequence[int]]) -> dict[str, int]:
    """The size of every factor: dims of one factor say it, those of several leave one to be found."""
    todo = [(f, n) for dims, shape in zip(sides, shapes, strict=True) for f, n in zip(dims, shape, strict=True) if f]
    sizes: dict[str, int] = {}
    for factors, n in sorted(todo, key=lambda t: (len(t[0]), t[1] == 1)):
        _learn(op, said, factors, n, sizes)
    return {f: n for f, n in sizes.items() if n > 1}


def _learn(op: Op, said: Notation, factors: Dim, n: int, sizes: dict[str, int]) -> None:
    """One dim's part in the sizes; a dim of size 1 is broadcast, or its factors are all 1."""
    unknown = [f for f in factors if f not in sizes]
    if n == 1:
        sizes.update(dict.fromkeys(unknown, 1))
        return
    if len(unknown) > 1:
        raise _contradicts(op, said, f"of a dim of {n}, the sizes of {' and '.join(unknown)} are said nowhere")
    known = prod(sizes.get(f, 1) for f in factors)
    if unknown and n % known == 0:
        sizes[unknown[0]] = n // known
    elif known != n:
        parts = " x ".join(f"{f}={sizes.get(f, '?')}" for f in factors)
        raise _contradicts(op, said, f"a dim of size {n} should be {parts}")
