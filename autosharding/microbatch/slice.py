"""One op on one microbatch: a `Shard` whose only mesh axis is time, and how whole arrays are cut and put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from autosharding.graph import Op
from autosharding.microbatch.states import TIME, Cut, Ones, Partial, Sliced, State
from autosharding.rules import Rule, Shard
from autosharding.spec import Spec


class NotContiguousError(Exception):
    """An op asks where its piece begins, and its elements are not one piece."""


@dataclass(frozen=True)
class Slice(Shard):
    """One op on one microbatch.

    Attributes:
        cut: the factor that is cut.
        at: which microbatch.
    """

    cut: Cut = field(kw_only=True)
    at: Any = field(kw_only=True)

    def place(self, axes: Sequence[str]) -> Any:
        """Which microbatch this is.

        Raises:
            NotContiguousError: where its elements are not one piece.
        """
        if not axes:
            return 0
        if self.cut.outer > 1:
            raise NotContiguousError
        return self.at

    def positions(self, spec: Spec, shape: Sequence[int], dim: int, dtype: Any) -> Any:
        """The places in the whole array of this microbatch's elements along `dim`."""
        local = jax.lax.iota(dtype, spec.local_shape(shape, self.mesh)[dim])
        if not spec.dims[dim]:
            return local
        inner = jnp.asarray(self.cut.inner, dtype)
        block = jax.lax.div(local, inner) if self.cut.outer > 1 else jnp.zeros_like(local)
        return local + (block * (self.mesh[TIME] - 1) + jnp.asarray(self.at).astype(dtype)) * inner


def slice_of(
    op: Op, rule: Rule, cut: Cut, reads: Sequence[State], results: Sequence[State], microbatches: int, at: Any
) -> Slice:
    """An op as microbatch `at` runs it."""

    def spec(state: State, rank: int) -> Spec:
        return state.spec(rank) if isinstance(state, Sliced | Partial | Ones) else Spec.replicated(rank)

    return Slice(
        op,
        rule,
        dict.fromkeys(cut.names, (TIME,)),
        tuple(spec(s, a.rank) for s, a in zip(reads, op.inputs, strict=True)),
        tuple(spec(s, v.rank) for s, v in zip(results, op.outputs, strict=True)),
        {TIME: microbatches},
        cut=cut,
        at=at,
    )


def runs_in_pieces(made: Slice) -> bool:
    """Whether the op computes its part without what other microbatches have."""
    if made.rule.exchanges is not None and made.rule.exchanges(made):
        return False
    if made.rule.run is None or made.cut.outer == 1:
        return True
    local = [
        jax.ShapeDtypeStruct(made.operand_shape(i), a.aval.dtype, weak_type=a.aval.weak_type)
        for i, a in enumerate(made.op.inputs)
    ]
    try:
        jax.eval_shape(made.compute, *local)
    except NotContiguousError:
        return False
    return True


def taken(x: Any, state: Sliced, microbatches: int, at: Any) -> Any:
    """The part of a whole array that microbatch `at` has."""
    d, n = state.dim, state.outer * state.inner
    if state.outer == 1:
        return jax.lax.dynamic_slice_in_dim(x, at * state.inner, state.inner, axis=d)
    blocks = x.reshape(*x.shape[:d], state.outer, microbatches, state.inner, *x.shape[d + 1 :])
    return jax.lax.dynamic_index_in_dim(blocks, at, d + 1, keepdims=False).reshape(*x.shape[:d], n, *x.shape[d + 1 :])


def joined(parts: Any, state: Sliced) -> Any:
    """The whole array of what all microbatches have, stacked along a new first dim."""
    d, microbatches = state.dim, parts.shape[0]
    before, after = parts.shape[1 : d + 1], parts.shape[d + 2 :]
    blocks = parts.reshape(microbatches, *before, state.outer, state.inner, *after)
    moved = jnp.moveaxis(blocks, 0, d + 1)
    return moved.reshape(*before, state.outer * microbatches * state.inner, *after)
