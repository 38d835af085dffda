"""The one door to JAX's less public parts; everything else in this package uses `jax` and `jax.numpy` alone.

What is here and why it cannot be had from the public names:
- `jax.extend.core` for the jaxpr classes: `Literal`, `Var`, `DropVar`. `ClosedJaxpr` and `Jaxpr` are two classes in
  JAX 0.10 and one since 0.11, so bodies are opened with `open_jaxpr`.
- `eqn.ctx.manager`, `Primitive.get_bind_params`: needed to bind an equation again as it was traced.
- `jax.extend.source_info_util`: the user's line and name scopes of an equation.
- `jax._src.distributed`: the one barrier between processes that needs no device.
- `jaxlib.xla_client.batched_copy_array_to_devices_with_sharding`: the copies that `jax.device_put` makes, without all
  that it looks up in Python before each.
"""

from __future__ import annotations

import functools
import os
import site
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax._src import distributed
from jax.core import eval_jaxpr
from jax.extend import core as jex
from jax.extend import source_info_util
from jaxlib import xla_client

JaxprLiteral = jex.Literal

evaluate = eval_jaxpr
"""`evaluate(jaxpr, consts, *args)`: the results of an open jaxpr."""


def trace(fun: Callable[..., Any], avals: Sequence[Any]) -> Any:
    """The jaxpr of `fun` on abstract arguments, traced outside of any mesh context."""
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        return jax.make_jaxpr(fun)(*avals)


def open_jaxpr(jaxpr: Any) -> tuple[Any, tuple[Any, ...]]:
    """(open jaxpr, constants) of a closed or an open jaxpr of any supported version."""
    return getattr(jaxpr, "jaxpr", jaxpr), tuple(getattr(jaxpr, "consts", ()))


_CALLS = {
    *("jit", "pjit", "core_call", "call", "closed_call", "composite", "linear_call", "remat2", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vmap_call"),
}
"""Primitives that mean just their body."""

_BODIES = ("jaxpr", "call_jaxpr", "call", "callee")
"""The params that hold it; that of `composite` has another name since JAX 0.12."""


def inlined_body(eqn: Any) -> Any:
    """The body of a call-like equation that means just its body; None for all others."""
    name = eqn.primitive.name
    if name in _CALLS:
        return next(eqn.params[key] for key in _BODIES if key in eqn.params)
    if name == "custom_linear_solve":
        return eqn.params["jaxprs"].solve
    if name == "custom_partitioning" and not hasattr(eqn.params["sharding_rule"], "operand_mappings"):
        return eqn.params["call"]  # without a rule that says how to split it, its own ops do
    return None


def inlined_inputs(eqn: Any, inputs: Sequence[Any]) -> Sequence[Any]:
    """The operands of an equation that its inlined body takes."""
    if eqn.primitive.name != "custom_linear_solve":
        return inputs
    before, constants, behind = _solve_counts(eqn)
    return [*inputs[before : before + constants], *inputs[before + constants + behind :]]


def _solve_counts(eqn: Any) -> tuple[int, int, int]:
    """(constants of what comes before the solve, its own, those of what comes behind it)."""
    n = eqn.params["const_lengths"]
    return n.matvec + n.vecmat, n.solve, n.transpose_solve


def unbatched_while(condition: Any, body: Any, asks: int, does: int) -> tuple[Any, Any]:
    """A loop under `vmap` whose examples end at different times, as one loop that holds still those that have ended.

    Args:
        condition: of (its constants, carries) -> bool of the batch's shape.
        body: of (its constants, carries) -> carries.
        asks: number of the condition's constants.
        does: number of the body's constants.

    Returns:
        (condition, body), where the body takes the condition's constants before its own.
    """
    ask, do = jex.jaxpr_as_fun(condition), jex.jaxpr_as_fun(body)

    def any_goes_on(*args: Any) -> Any:
        return jax.numpy.any(ask(*args)[0])

    def go_on(*args: Any) -> list[Any]:
        carries = args[asks + does :]
        (goes_on,) = ask(*args[:asks], *carries)
        dims = tuple(range(goes_on.ndim))
        return [
            jax.lax.select_n(jax.lax.broadcast_in_dim(goes_on, old.shape, dims), old, new)
            for old, new in zip(carries, do(*args[asks:]), strict=True)
        ]

    def shapes(avals: Sequence[Any]) -> list[Any]:
        return [jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in avals]

    own = shapes(condition.in_avals)
    return trace(any_goes_on, own), trace(go_on, [*own[:asks], *shapes(body.in_avals)])


def scan_counts(params: Any) -> tuple[int, int]:
    """(constants, carries) among the operands of a `scan`, by the params of any supported version."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carries = (len(list(t)) for t in params["ft_in"].unpack()[:2])
    return consts, carries


def is_barrier_region(eqn: Any) -> bool:
    """A differentiated `jax.checkpoint` region: what XLA must not merge with the forward pass."""
    return (
        eqn.primitive.name in ("remat2", "checkpoint")
        and bool(eqn.params.get("differentiated"))
        and bool(eqn.params.get("prevent_cse", True))
    )


def barrier_primitive() -> Any:
    """The primitive behind `jax.lax.optimization_barrier`."""
    jaxpr, _ = open_jaxpr(jax.make_jaxpr(jax.lax.optimization_barrier)(np.float32(0)))
    return jaxpr.eqns[0].primitive


def is_drop(var: Any) -> bool:
    """Whether an equation's result is thrown away."""
    return isinstance(var, jex.DropVar)


def unplaced(params: Mapping[str, Any]) -> dict[str, Any]:
    """Params without the shardings that they ask for."""
    return {k: None if k in ("out_sharding", "sharding") else v for k, v in params.items()}


def bind(primitive: Any, context: Any, params: dict[str, Any], args: Sequence[Any]) -> tuple[Any, ...]:
    """Apply a primitive as its equation did: same name scopes, same tracing context; always a tuple."""
    with scope(context):
        out = primitive.bind(*args, **primitive.get_bind_params(params))
    return tuple(out) if primitive.multiple_results else (out,)


@contextmanager
def scope(context: Any) -> Iterator[None]:
    """The name scopes and the tracing context of an equation (see `eqn_context`)."""
    if context is None:
        yield
        return
    manager, stack, traceback = context
    here = source_info_util.current_name_stack() + stack
    with source_info_util.user_context(traceback, name_stack=here), manager:
        yield


def eqn_context(eqn: Any, stack: Any) -> Any:
    """What `bind` needs of an equation besides its params."""
    return eqn.ctx.manager, stack, eqn.source_info.traceback


def empty_stack() -> Any:
    """A name stack without names."""
    return source_info_util.new_name_stack()


def scope_and_phase(stack: Any) -> tuple[str, str]:
    """The user's scopes as one path, and the phase: `transpose(jvp(..))` backward, `jvp(..)` forward, else update."""
    names = [e.name for e in stack.stack]
    kinds = [type(e).__name__ for e in stack.stack]
    scopes = "/".join(n for n, k in zip(names, kinds, strict=True) if k == "Scope")
    transforms = {n for n, k in zip(names, kinds, strict=True) if k == "Transform"}
    phase = "backward" if "transpose" in transforms else "forward" if "jvp" in transforms else "update"
    return scopes, phase


_OWN_DIR = os.path.dirname(__file__) + os.sep
_ZOO_DIR = os.path.join(_OWN_DIR, "zoo") + os.sep
_PACKAGES = tuple(
    d + os.sep
    for d in {*site.getsitepackages(), site.getusersitepackages(), os.path.dirname(os.path.dirname(jax.__file__))}
)
_PYTHON_DIR = sysconfig.get_path("stdlib") + os.sep

TOOLS = {
    *("python", "jax", "jaxlib", "numpy"),
    *("flax", "haiku", "equinox", "penzai", "optax", "chex", "einops", "jaxtyping", "typeguard", "beartype", "qwix"),
}
"""Packages that models are written with: a line of theirs says nothing of a model."""


def user_line(source_info: Any) -> str:
    """`file.py:12 (function)` of the innermost frame in the user's own code.

    Where a package of models is between, its line stands first: `attention.py:7 (call), from train.py:12`. Where there
    are only packages, the innermost line of a package of models, or else of a tool other than JAX. What the compiler
    adds of its own, a loop over microbatches, has no line: "".
    """
    frames = getattr(source_info.traceback, "frames", None) or ()
    model, tool = "", ""
    for f in frames:
        if f.file_name.startswith(_OWN_DIR) and not f.file_name.startswith(_ZOO_DIR):
            break
        package = _package(f.file_name)
        if package == "jax" or f.file_name.startswith("<"):
            continue
        at = f"{os.path.basename(f.file_name)}:{f.line_num}"
        line = f"{at} ({f.function_name})"
        if not package:
            return f"{model}, from {at}" if model else line
        if package in TOOLS:
            tool = tool or line
        else:
            model = model or line
    return model or tool


def _package(file: str) -> str:
    """The installed package that a file belongs to, "python" for a module of Python's, "" for the user's own."""
    for directory in _PACKAGES:
        if file.startswith(directory):
            return file[len(directory) :].split(os.sep)[0].removesuffix(".py")
    return "python" if file.startswith(_PYTHON_DIR) else ""


def dtype_facts(aval: Any) -> tuple[str, str, int]:
    """(`f32`, `float32`, 4) for an abstract value; typed PRNG keys count the bytes of their words."""
    return _dtype_facts(aval.dtype)


@functools.cache
def _dtype_facts(dtype: Any) -> tuple[str, str, int]:
    if jax.numpy.issubdtype(dtype, jax.dtypes.prng_key):
        words = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct((), dtype))
        return str(dtype), str(dtype), int(np.prod(words.shape)) * words.dtype.itemsize
    name = np.dtype(dtype).name
    return _SHORT.get(name, name), name, max(1, np.dtype(dtype).itemsize)


_SHORT = {
    **{f"float{n}": f"f{n}" for n in (16, 32, 64)},
    **{f"int{n}": f"i{n}" for n in (4, 8, 16, 32, 64)},
    **{f"uint{n}": f"u{n}" for n in (4, 8, 16, 32, 64)},
    **{f"complex{n}": f"c{n}" for n in (64, 128)},
    "bfloat16": "bf16",
}


def is_ordered_effect(effect: Any) -> bool:
    """Effects whose order JAX promises to keep; a program over several devices cannot have them."""
    return "Ordered" in type(effect).__name__ or bool(getattr(effect, "ordered", False))


def meet(name: str, seconds: int, processes: Sequence[int] | None = None) -> None:
    """Wait until all processes of `jax.distributed`, or these, have come to a place, none of them twice."""
    client = distributed.global_state.client
    assert client is not None, "jax.distributed is not initialized"
    client.wait_at_barrier(name, seconds * 1000, process_ids=None if processes is None else list(processes))


def copies(to: Sequence[jax.sharding.Sharding]) -> Callable[[Sequence[jax.Array]], Sequence[jax.Array]]:
    """A program that brings arrays to other devices of this process, in the tiles that they have: one each to `to`."""
    devices = [sharding._internal_device_list for sharding in to]
    semantics = [xla_client.ArrayCopySemantics.REUSE_INPUT] * len(to)
    shardings = list(to)

    def copied(arrays: Sequence[jax.Array]) -> Sequence[jax.Array]:
        return xla_client.batched_copy_array_to_devices_with_sharding(list(arrays), devices, shardings, semantics)

    return copied
