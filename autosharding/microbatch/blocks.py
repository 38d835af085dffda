"""Operators that cut and paste along the batch dim, in whole blocks of it: two batches put together, and taken apart.

Every microbatch has a run of each block, so that what is done to blocks of the whole array is done to the runs of its
part: `concatenate`, and where they touch blocks alone `slice`, `split` and `pad`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from autosharding.graph import Op
from autosharding.microbatch.states import Sliced, State, Whole

Blocks = tuple[tuple[State, ...], tuple[State, ...]]
"""What the operands are read as, and what the results are."""


def in_blocks(op: Op, given: Sequence[State], microbatches: int) -> Blocks | None:
    """How an op works on whole blocks along the batch dim of its sliced operands; None where it does not."""
    sliced = [s for s in given if isinstance(s, Sliced)]
    ways = {(s.dim, s.inner) for s in sliced}
    others = all(isinstance(s, Sliced | Whole) for s in given)
    if op.name not in _ALONG or len(ways) != 1 or not others or any(s.factors for s in sliced):
        return None
    along = sliced[0]
    block = along.inner * microbatches
    if not _ALONG[op.name](op, along.dim, block):
        return None

    def of(shape: Sequence[int]) -> State:
        return replace(along, outer=shape[along.dim] // block)

    reads = tuple(of(a.shape) if a.rank else s for a, s in zip(op.inputs, given, strict=True))
    return reads, tuple(of(v.shape) for v in op.outputs)


def local_params(op: Op, read: State, microbatches: int) -> Mapping[str, Any]:
    """The params of an op on the runs of one microbatch."""
    if not isinstance(read, Sliced) or op.name not in _ALONG:
        return op.params
    d, m, p = read.dim, microbatches, op.params
    if op.name == "slice":
        bounds = {k: _divided(p[k], d, m) for k in ("start_indices", "limit_indices")}
        return {**p, **bounds}
    if op.name == "split":
        return {**p, "sizes": tuple(n // m for n in p["sizes"])}
    if op.name == "pad":
        low, high, holes = p["padding_config"][d]
        config = list(p["padding_config"])
        config[d] = (low // m, high // m, holes)
        return {**p, "padding_config": tuple(config)}
    return p


def _divided(sizes: Sequence[int], dim: int, by: int) -> tuple[int, ...]:
    return tuple(n // by if d == dim else n for d, n in enumerate(sizes))


def _joins(op: Op, dim: int, block: int) -> bool:
    return op.params["dimension"] == dim and all(a.shape[dim] % block == 0 for a in op.inputs)


def _takes(op: Op, dim: int, block: int) -> bool:
    p = op.params
    whole = p["start_indices"][dim] % block == 0 and p["limit_indices"][dim] % block == 0
    return whole and (p["strides"] is None or p["strides"][dim] == 1)


def _parts(op: Op, dim: int, block: int) -> bool:
    return op.params["axis"] == dim and all(n % block == 0 for n in op.params["sizes"])


def _pads(op: Op, dim: int, block: int) -> bool:
    low, high, holes = op.params["padding_config"][dim]
    return low % block == 0 and high % block == 0 and holes == 0


_ALONG: Mapping[str, Callable[[Op, int, int], bool]] = {
    "concatenate": _joins,
    "slice": _takes,
    "split": _parts,
    "pad": _pads,
}
"""Primitive -> whether it touches whole blocks alone, given a dim and the elements of a block."""
