"""Windows sliding over arrays (pooling and its gradients): dims with a window of one element are factors."""

from __future__ import annotations

from math import prod

from autosharding.graph import Op
from autosharding.rules.base import Rule, rule, sizes_of
from autosharding.rules.pieces import untouched

_LINEAR = (frozenset({0}),)


def _free(op: Op) -> list[bool]:
    """For each dim whether the window there is one element, moving by one, without padding."""
    p = op.params
    rank = len(p["window_dimensions"])
    ones = (1,) * rank
    return [
        settings == (1, 1, (0, 0), 1, 1)
        for settings in zip(
            p["window_dimensions"],
            p["window_strides"],
            map(tuple, p["padding"]),
            p.get("base_dilation") or ones,
            p.get("window_dilation") or ones,
            strict=True,
        )
    ]


@rule(
    "reduce_window",
    "reduce_window_sum",
    "reduce_window_max",
    "reduce_window_min",
    "select_and_scatter",
    "select_and_scatter_add",
    "select_and_gather_add",
)
def window(op: Op) -> Rule:
    """`i j -> i j`; windowed dims stay whole, initial values are scalars."""
    a, out = op.inputs[0], op.outputs[0]
    dims = untouched("d", a.shape, _free(op))
    linear = op.name in ("reduce_window_sum", "select_and_scatter_add", "select_and_gather_add")
    return Rule(
        operands=tuple(dims if x.rank else () for x in op.inputs),
        results=(dims,) * len(op.outputs),
        sizes=sizes_of((dims, a.shape)),
        linear=_LINEAR if linear else (),
        flops=float(out.size * prod(op.params["window_dimensions"])),
    )
