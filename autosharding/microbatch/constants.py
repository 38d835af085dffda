"""What a graph computes from literals alone: whether an index is just the position of its example."""

from __future__ import annotations

from typing import Any

import numpy as np

from autosharding import _jax
from autosharding.graph import Atom, Graph, Literal, Op, Value
from autosharding.rules import Rule
from autosharding.run_graph import scalar

LARGEST = 1 << 22
"""Elements up to which an array of positions is computed."""


def aligned_factors(graph: Graph, op: Op, rule: Rule) -> dict[str, str]:
    """For a gather or scatter: looked-up factor -> index batch factor along which each example looks up itself.

    As in `logits[jnp.arange(n), labels]`: the first index is the example's own position.
    """
    if op.name != "gather" and not op.name.startswith("scatter"):
        return {}
    numbers, indices = op.params["dimension_numbers"], op.inputs[1]
    looked_up = numbers.start_index_map if op.name == "gather" else numbers.scatter_dims_to_operand_dims
    found: dict[str, str] = {}
    for column, dim in enumerate(looked_up):
        factors = rule.operands[0][dim]
        for k, batch in enumerate(rule.operands[1][:-1]):
            same_size = len(factors) == len(batch) == 1 and rule.sizes[factors[0]] == rule.sizes[batch[0]]
            if same_size and isinstance(indices, Value):
                values = _column(graph, indices, column)
                if values is not None and _counts(values, k):
                    found[factors[0]] = batch[0]
    return found


def _counts(values: np.ndarray, dim: int) -> bool:
    """Whether an array holds its positions along a dim."""
    shape = [1] * values.ndim
    shape[dim] = values.shape[dim]
    return bool((values == np.arange(values.shape[dim]).reshape(shape)).all())


def _column(graph: Graph, v: Value, column: int) -> np.ndarray | None:
    """One component of an array of index vectors, where it is made of literals."""
    op = graph.producer[v.id]
    if op is not None and op.name == "concatenate" and op.params["dimension"] == v.rank - 1:
        for piece in op.inputs:
            if column < piece.shape[-1]:
                return _column(graph, piece, column) if isinstance(piece, Value) else None
            column -= piece.shape[-1]
    whole = _constant(graph, v)
    return None if whole is None else np.asarray(whole)[..., column]


def _constant(graph: Graph, atom: Atom) -> Any:
    """The value of an atom that hangs on no input; None for others, for large ones and for those of regions."""
    if isinstance(atom, Literal):
        return scalar(atom)
    op = graph.producer[atom.id]
    if op is None or op.effects or op.region is not None or atom.size > LARGEST:
        return None
    operands = [_constant(graph, a) for a in op.inputs]
    if any(x is None for x in operands):
        return None
    made = _jax.bind(op.primitive, None, _jax.unplaced(op.params), operands)
    return made[op.outputs.index(atom)]


def is_zero(graph: Graph, atom: Atom) -> bool:
    """Whether an atom is zero throughout, as the program says it."""
    if isinstance(atom, Literal):
        return bool(np.all(np.asarray(atom.value) == 0))
    op = graph.producer[atom.id]
    return op is not None and op.name in _SAME and is_zero(graph, op.inputs[0])


def scalar_behind(graph: Graph, atom: Atom) -> Value | None:
    """The scalar that an array repeats; None where it is none."""
    while isinstance(atom, Value) and atom.rank:
        op = graph.producer[atom.id]
        if op is None or op.name not in _SAME:
            return None
        atom = op.inputs[0]
    return atom if isinstance(atom, Value) else None


_SAME = frozenset({"broadcast_in_dim", "reshape", "squeeze", "convert_element_type"})
"""Operators that repeat or rename what they read."""
