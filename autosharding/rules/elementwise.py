"""Operators that act element by element: same dims, same factors; broadcast dims of size 1 have none."""

from __future__ import annotations

from autosharding.graph import Atom, Literal, Op
from autosharding.rules.base import Rule, adds_up, factors_of, rule, sizes_of
from autosharding.rules.notation import Dim, Dims


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_UNARY = _names(
    """
    abs acos acosh asin asinh atan atanh bessel_i0e bessel_i1e cbrt ceil clz conj convert_element_type copy
    cos cosh digamma erf erf_inv erfc exp exp2 expm1 floor imag integer_pow is_finite lgamma log log1p log2
    logistic name neg not one_minus_square polynomial population_count real reduce_precision round rsqrt sign
    sin sinh sqrt square stop_gradient tan tanh to_edtype from_edtype
    """
)

_BINARY = _names(
    """
    add add_any and atan2 complex div eq eq_to ge gt igamma igamma_grad_a igammac le le_to lt lt_to max min
    mul mulhi ne nextafter or polygamma pow rem shift_left shift_right_arithmetic shift_right_logical sub xor
    zeta
    """
)

_NARY = ("clamp", "select_n", "regularized_incomplete_beta")


NAMES = frozenset((*_UNARY, *_BINARY, *_NARY))
"""Every primitive that computes element by element."""


def arity(name: str) -> int:
    """How many operands an elementwise primitive takes."""
    return 3 if name in _NARY else 2 if name in _BINARY else 1


_MOVES = frozenset(("copy", "stop_gradient", "name"))
"""The result is the operand: partial states of any monoid pass."""

_LINEAR_UNARY = _MOVES | {"neg", "real", "imag", "conj"}
"""`f(a + b) = f(a) + f(b)`: partial sums pass through (`convert_element_type` too where it loses no bits)."""


@rule(*_UNARY, *_BINARY, *_NARY)
def elementwise(op: Op) -> Rule:
    """`i j, i j -> i j`."""
    out = op.outputs[0]
    result = factors_of("d", out.shape)
    return Rule(
        operands=tuple(broadcast(a, result) for a in op.inputs),
        results=(result,) * len(op.outputs),
        sizes=sizes_of((result, out.shape)),
        linear=_linear(op),
        moves_data=op.name in _MOVES,
        flops=float(out.size),
    )


def broadcast(a: Atom, result: Dims) -> Dims:
    """The dims of an operand of the result's dims, or of fewer, or of size 1."""

    def dim(n: int, factors: Dim) -> Dim:
        return factors if n > 1 else ()

    return tuple(dim(n, f) for n, f in zip(a.shape, result[len(result) - a.rank :], strict=True))


def _linear(op: Op) -> tuple[frozenset[int], ...]:
    if op.name in _LINEAR_UNARY or (op.name == "convert_element_type" and _widens(op)):
        return (frozenset({0}),)
    if op.name in ("add", "add_any", "sub", "complex"):
        return (frozenset({0, 1}),)
    if op.name == "mul":
        return tuple(frozenset({i}) for i in (0, 1) if adds_up(op, i))
    if op.name == "div" and op.outputs[0].dtype_name.startswith(("float", "bfloat", "complex")):
        return (frozenset({0}),)
    if op.name == "select_n":
        return (frozenset(range(1, len(op.inputs))),)
    return ()


def _widens(op: Op) -> bool:
    """A cast that keeps every bit of a number: bf16 to f32, not back."""
    a, out = op.inputs[0], op.outputs[0]
    if isinstance(a, Literal):
        return False
    floats = ("float", "bfloat")
    if a.dtype_name.startswith(floats) and out.dtype_name.startswith(floats):
        return out.itemsize > a.itemsize or out.dtype == a.dtype
    return a.dtype == out.dtype


@rule("bitcast_convert_type")
def bitcast(op: Op) -> Rule:
    """`i j -> i j`, or `i j -> i j 1` where the width changes: the dim of the pieces stays whole."""
    a, out = op.inputs[0], op.outputs[0]
    common = factors_of("d", a.shape if a.rank <= out.rank else out.shape)
    shape = a.shape[: len(common)]

    def dims(rank: int) -> Dims:
        return (*common, *((),) * (rank - len(common)))

    return Rule(
        operands=(dims(a.rank),),
        results=(dims(out.rank),),
        sizes=sizes_of((common, shape)),
        flops=float(out.size),
    )
