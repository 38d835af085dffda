"""Linear algebra and Fourier transforms: batch dims are factors, matrices and transformed dims stay whole."""

from __future__ import annotations

from autosharding.graph import Atom, Op
from autosharding.rules.base import Dims, Rule, factors_of, rule, sizes_of
from autosharding.rules.pieces import untouched

_MATRIX_FLOPS = 10.0  # a dense factorisation takes between n^3/3 (cholesky) and about 25 n^3 (svd)


@rule(
    "cholesky",
    "cholesky_update",
    "lu",
    "qr",
    "geqrf",
    "geqp3",
    "ormqr",
    "householder_product",
    "eig",
    "eigh",
    "svd",
    "schur",
    "symmetric_product",
    "hessenberg",
    "tridiagonal",
    "tridiagonal_solve",
)
def matrix(op: Op) -> Rule:
    """`b 1 1 -> b 1 1, b 1`: leading batch dims, the rest whole."""
    return _batched(op, op.inputs[0].rank - (1 if op.name == "tridiagonal_solve" else 2))


@rule("lu_pivots_to_permutation")
def pivots(op: Op) -> Rule:
    """`b 1 -> b 1`."""
    return _batched(op, op.inputs[0].rank - 1)


def _batched(op: Op, batch: int) -> Rule:
    a = op.inputs[0]
    leading = factors_of("b", a.shape[:batch])

    def dims(x: Atom) -> Dims:
        return (*leading, *((),) * (x.rank - batch))

    n = a.shape[-1] if a.rank else 1
    return Rule(
        operands=tuple(map(dims, op.inputs)),
        results=tuple(map(dims, op.outputs)),
        sizes=sizes_of((leading, a.shape[:batch])),
        flops=_MATRIX_FLOPS * sum(v.size for v in op.outputs) * n,
    )


@rule("triangular_solve")
def triangular_solve(op: Op) -> Rule:
    """`b 1 1, b 1 j -> b 1 j`: right-hand sides split too, and the solution is linear in them."""
    a, b = op.inputs
    dims = list(factors_of("b", b.shape))
    dims[-2 if op.params["left_side"] else -1] = ()
    batch = tuple(dims[: b.rank - 2])
    return Rule(
        operands=((*batch, (), ()), tuple(dims)),
        results=(tuple(dims),),
        sizes=sizes_of((tuple(dims), b.shape)),
        linear=(frozenset({1}),),
        flops=float(op.outputs[0].size * a.shape[-1]),
    )


@rule("fft")
def fft(op: Op) -> Rule:
    """The last dims are transformed and stay whole."""
    a = op.inputs[0]
    transformed = len(op.params["fft_lengths"])
    dims = untouched("d", a.shape, [d < a.rank - transformed for d in range(a.rank)])
    return Rule(
        operands=(dims,),
        results=(dims,),
        sizes=sizes_of((dims, a.shape)),
        linear=(frozenset({0}),),
        flops=5.0 * op.outputs[0].size * max(1, sum(n.bit_length() for n in op.params["fft_lengths"])),
    )
