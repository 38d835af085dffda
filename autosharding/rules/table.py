"""All rules as one table, each shown on a small example: what `python -m autosharding rules` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from jax.experimental.custom_partitioning import ArrayMapping, SdyShardingRule
from jax.lax import (
    ConvDimensionNumbers,
    GatherDimensionNumbers,
    GatherScatterMode,
    RaggedDotDimensionNumbers,
    ScatterDimensionNumbers,
)

from autosharding.graph import Op, Value
from autosharding.rules import elementwise, indexing, reduction, windows
from autosharding.rules.base import REGISTRY, RuleMaker
from autosharding.rules.lookup import rule_for
from autosharding.rules.user import UserRule

Shapes = tuple[tuple[int, ...], ...]


class RuleLine(NamedTuple):
    """One line of the table."""

    primitive: str
    rule: str
    notes: str


class _Example(NamedTuple):
    operands: Shapes
    results: Shapes
    params: Mapping[str, Any] = {}
    dtype: str = "f32"


_A: tuple[int, ...] = (4, 6)
_MATRICES: tuple[int, ...] = (4, 3, 3)
_GATHER = GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,))
_SCATTER = ScatterDimensionNumbers(
    update_window_dims=(1,), inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0,)
)
_WINDOW = {"window_dimensions": (1, 2), "window_strides": (1, 2), "padding": ((0, 0), (0, 0))}
_REDUCE = _Example((_A,), ((4,),), {"axes": (1,), "dimensions": (1,)})
_CUMULATIVE = _Example((_A,), (_A,), {"axis": 1})
_POOL = _Example((_A,), ((4, 3),), _WINDOW)
_UNPOOL = _Example(((4, 3), _A), (_A,), _WINDOW)
_PLACED = _Example((_A,), (_A,))
_KEYS = _Example(((3, 2),), ((3,),))
_SCATTERED = _Example(
    ((8, 6), (5, 1), (5, 6)), ((8, 6),), {"dimension_numbers": _SCATTER, "mode": GatherScatterMode.CLIP}
)


def _made_by(make: RuleMaker) -> list[str]:
    return [name for name, m in REGISTRY.items() if m is make]


_EXAMPLES: dict[str, _Example] = {
    "dot_general": _Example((_A, (6, 8)), ((4, 8),), {"dimension_numbers": (((1,), (0,)), ((), ()))}),
    "ragged_dot_general": _Example(
        (_A, (3, 6, 8), (3,)),
        ((4, 8),),
        {
            "ragged_dot_dimension_numbers": RaggedDotDimensionNumbers(
                dot_dimension_numbers=(((1,), (1,)), ((), ())),
                lhs_ragged_dimensions=(0,),
                rhs_group_dimensions=(0,),
            )
        },
    ),
    "conv_general_dilated": _Example(
        ((4, 8, 8, 6), (3, 3, 3, 4)),
        ((4, 8, 8, 4),),
        {
            "dimension_numbers": ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)),
            "feature_group_count": 2,
            "batch_group_count": 1,
        },
    ),
    **dict.fromkeys((*_made_by(reduction.reduce), *_made_by(reduction.arg_reduce)), _REDUCE),
    **dict.fromkeys(_made_by(reduction.cumulative), _CUMULATIVE),
    **dict.fromkeys(_made_by(indexing.scatter), _SCATTERED),
    **dict.fromkeys(_made_by(windows.window), _POOL),
    "reduce": _Example((_A, ()), ((4,),), {"dimensions": (1,)}),
    "reduce_window": _Example((_A, ()), ((4, 3),), _WINDOW),
    "select_and_scatter": _Example((_A, (4, 3), ()), (_A,), _WINDOW),
    "select_and_scatter_add": _UNPOOL,
    "select_and_gather_add": _Example((_A, _A), ((4, 3),), _WINDOW),
    "broadcast_in_dim": _Example(((6,),), (_A,), {"broadcast_dimensions": (1,)}),
    "transpose": _Example((_A,), ((6, 4),), {"permutation": (1, 0)}),
    "squeeze": _Example(((4, 1),), ((4,),), {"dimensions": (1,)}),
    "rev": _Example((_A,), (_A,), {"dimensions": (1,)}),
    "reshape": _Example(((4, 2, 3),), ((8, 3),), {"dimensions": None}),
    "platform_index": _Example((), ((),)),
    "iota_2x32_shape": _Example((), (_A, _A), {"shape": _A}),
    "iota": _Example((), (_A,), {"dimension": 0}),
    "pad": _Example((_A, ()), ((4, 8),), {"padding_config": ((0, 0, 0), (1, 1, 0))}),
    "slice": _Example((_A,), ((4, 2),), {"start_indices": (0, 1), "limit_indices": (4, 3), "strides": None}),
    "concatenate": _Example((_A, _A), ((4, 12),), {"dimension": 1}),
    "split": _Example((_A,), ((4, 3), (4, 3)), {"axis": 1, "sizes": (3, 3)}),
    "stack": _Example((_A, _A), ((4, 2, 6),), {"axis": 1}),
    "unstack": _Example(((4, 2, 6),), (_A, _A), {"axis": 1}),
    "tile": _Example((_A,), ((8, 6),), {"reps": (2, 1)}),
    "dynamic_slice": _Example((_A, (), ()), ((1, 6),), {"slice_sizes": (1, 6)}),
    "dynamic_update_slice": _Example((_A, (1, 6), (), ()), (_A,)),
    "gather": _Example(
        ((8, 6), (5, 1)),
        ((5, 6),),
        {"dimension_numbers": _GATHER, "slice_sizes": (1, 6), "mode": GatherScatterMode.CLIP},
    ),
    "sort": _Example((_A,), (_A,), {"dimension": 1, "num_keys": 1, "is_stable": True}),
    "top_k": _Example((_A,), ((4, 2), (4, 2)), {"axis": 1}),
    "approx_top_k": _Example((_A,), ((4, 2), (4, 2)), {"reduction_dimension": 1}),
    "fft": _Example((_A,), (_A,), {"fft_lengths": (6,)}),
    "triangular_solve": _Example((_MATRICES, (4, 3, 6)), ((4, 3, 6),), {"left_side": True}),
    "tridiagonal_solve": _Example(((4, 3), (4, 3), (4, 3), (4, 3, 2)), ((4, 3, 2),)),
    "lu_pivots_to_permutation": _Example(((4, 3),), ((4, 6),)),
    "bitcast_convert_type": _Example((_A,), (_A,)),
    "random_bits": _Example(((),), (_A,), {}, "key<fry>"),
    "threefry2x32": _Example((_A,) * 4, (_A, _A)),
    "threefry4x32": _Example((_A,) * 8, (_A,) * 4),
    "philox2x32": _Example((_A,) * 3, (_A, _A)),
    "philox4x32": _Example((_A,) * 6, (_A,) * 4),
    "shard_map": _Example((_A,), (_A,), {"jaxpr": SimpleNamespace(invars=(), constvars=(), eqns=(), outvars=())}),
    "custom_partitioning": _Example(
        (_A, (6, 8)),
        ((4, 8),),
        {"sharding_rule": SdyShardingRule((ArrayMapping("i", "k"), ArrayMapping("k", "j")), (ArrayMapping("i", "j"),))},
    ),
    "debug_print": _Example((_A,), ()),
    "debug_callback": _Example((_A,), ()),
}


def rules_table() -> list[RuleLine]:
    """(primitive, its rule on an example, what its maker says) by name; user rules as registered."""
    return [RuleLine(name, _shown(name), _notes(name)) for name in sorted(REGISTRY)]


def _notes(name: str) -> str:
    said = (REGISTRY[name].__doc__ or "").strip().splitlines()
    return said[0] if said else ""


def _shown(name: str) -> str:
    make = REGISTRY[name]
    return str(make.said) if isinstance(make, UserRule) else str(rule_for(_op(name, example_of(name))))


def example_of(name: str) -> _Example:
    """Shapes and params on which a primitive's rule is shown."""
    if name in _EXAMPLES:
        return _EXAMPLES[name]
    if REGISTRY[name] is elementwise.elementwise:
        return _Example((_A,) * elementwise.arity(name), (_A,))
    module = REGISTRY[name].__module__.rpartition(".")[2]
    if module == "algebra":
        return _Example((_MATRICES,), (_MATRICES,))
    return _KEYS if module == "random" else _PLACED


def _op(name: str, example: _Example) -> Op:
    def values(shapes: Shapes, first: int, dtype: str) -> Sequence[Value]:
        aval = _Aval(np.dtype(np.float32))
        return [Value(first + i, s, dtype, "float32", 4, aval) for i, s in enumerate(shapes)]

    inputs = tuple(values(example.operands, 0, example.dtype))
    outputs = tuple(values(example.results, len(inputs), "f32"))
    return Op(0, name, inputs, outputs, example.params, "", "forward", "", False, None, None)


class _Aval(NamedTuple):
    dtype: np.dtype
