"""Operators that act element by element: same dims, same factors; dims of size 1 are broadcast and have none."""

from __future__ import annotations

from autosharding.graph import Atom, Literal, Op
from autosharding.rules.base import Dim, Dims, Rule, rule

_UNARY = (
    "abs acos acosh asin asinh atan atanh bessel_i0e bessel_i1e bitcast_convert_type cbrt ceil conj copy copy_p cos "
    "cosh device_put digamma erf erf_inv erfc exp exp2 expm1 floor imag integer_pow is_finite lgamma log log1p log2 "
    "logistic logit name not one_minus_square polygamma population_count real reduce_precision reshard round rsqrt "
    "sharding_constraint sign sin sinh sqrt square stop_gradient tan tanh clz convert_element_type neg"
).split()

_BINARY = (
    "add add_any atan2 complex div eq ge gt le lt max min mul ne nextafter or and pow rem shift_left "
    "shift_right_arithmetic shift_right_logical sub xor igamma igammac igamma_grad_a random_gamma_grad zeta eq_to le_to lt_to"
).split()

_NARY = ("clamp", "select_n", "regularized_incomplete_beta")

LINEAR_UNARY = frozenset(
    "neg copy copy_p real imag conj reshard stop_gradient name device_put sharding_constraint".split()
)
"""`f(a + b) = f(a) + f(b)`: partial sums pass through (`convert_element_type` too where it loses no bits)."""


@rule(*_UNARY, *_BINARY, *_NARY)
def elementwise(op: Op) -> Rule:
    """`i j, i j -> i j`."""
    out = op.outputs[0]
    result: Dims = tuple((f"d{d}",) if n > 1 else () for d, n in enumerate(out.shape))
    return Rule(
        operands=tuple(_broadcast(a, result) for a in op.inputs),
        results=(result,),
        sizes={f[0]: n for f, n in zip(result, out.shape, strict=True) if f},
        linear=_linear(op),
        flops=float(out.size),
    )


def _broadcast(a: Atom, result: Dims) -> Dims:
    def dim(n: int, factors: Dim) -> Dim:
        return factors if n > 1 else ()

    return tuple(dim(n, f) for n, f in zip(a.shape, result[len(result) - a.rank :], strict=True))


def _linear(op: Op) -> tuple[frozenset[int], ...]:
    if op.name in LINEAR_UNARY or (op.name == "convert_element_type" and _widens(op)):
        return (frozenset({0}),)
    if op.name in ("add", "add_any", "sub"):
        return (frozenset({0, 1}),)
    if op.name == "mul":
        return (frozenset({0}), frozenset({1}))
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
