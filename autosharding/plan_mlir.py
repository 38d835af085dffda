"""A plan in the sharding notation of MLIR's mesh dialect: mesh axes by number, partial states as `partial = sum[1]`.

One line for each op, with the sharding of every operand and result as `<@mesh, [[0], [], [1]]>`: for each dim the axes
that split it, dims left out at the end being whole. It is a listing for readers, not a module for `mlir-opt`: a plan
does not say which value an operand is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from autosharding.graph import letters
from autosharding.spec import Spec

if TYPE_CHECKING:
    from autosharding.plan import Copy, Plan, Step

_OPS = {
    "all-reduce": "mesh.all_reduce",
    "all-gather": "mesh.all_gather",
    "reduce-scatter": "mesh.reduce_scatter",
    "all-to-all": "mesh.all_to_all",
    "slice": "mesh.all_slice",
}
_REDUCTIONS = {"and": "bitwise_and", "or": "bitwise_or"}


def plan_mlir(plan: Plan) -> str:
    """The whole plan."""
    return "\n".join(_lines(plan)) + "\n"


def sharding(spec: Spec, mesh: Iterable[str]) -> str:
    """`<@mesh, [[0], [], [1]], partial = sum[2]>`."""
    number = {axis: str(i) for i, axis in enumerate(mesh)}
    dims = [[number[a] for a in axes] for axes in spec.dims]
    while dims and not dims[-1]:
        dims.pop()
    split = ", ".join("[" + ", ".join(d) + "]" for d in dims or [[]])
    partial = ""
    if spec.partial:
        kind = _REDUCTIONS.get(spec.monoid, spec.monoid)
        partial = f", partial = {kind}[{', '.join(number[a] for a in spec.partial)}]"
    return f"<@mesh, [{split}]{partial}>"


def tensor(type_: str) -> str:
    """`f32[8,4]` is `tensor<8x4xf32>`."""
    dtype, _, dims = type_.rpartition("[")
    sizes = [d for d in dims.rstrip("]").split(",") if d]
    return f"tensor<{'x'.join([*sizes, _element(dtype)])}>"


def _element(dtype: str) -> str:
    if dtype == "bool":
        return "i1"
    if dtype.startswith("key"):
        return f"!jax.{dtype}"
    if complex_ := re.fullmatch(r"c(\d+)", dtype):
        return f"complex<f{int(complex_.group(1)) // 2}>"
    return re.sub(r"^u(\d+)$", r"ui\1", dtype)


def _lines(plan: Plan) -> Iterator[str]:
    mesh = plan.mesh
    shape = "x".join(map(str, mesh.values()))
    yield f"mesh.mesh @mesh(shape = {shape})  // {', '.join(mesh)}"
    yield f"// {plan.name}"
    for n, i in enumerate(plan.inputs):
        array = tensor(f"{i.dtype}[{','.join(map(str, i.shape))}]")
        yield f"%{letters(n)} = mesh.shard {i.name} to {sharding(i.spec, mesh)} : {array}  // {i.role}"
    copies: dict[int, list[int]] = {}
    for n, c in enumerate(plan.copies):
        copies.setdefault(c.before, []).append(n)
    for n, step in enumerate(plan.steps):
        for c in copies.pop(n, ()):
            yield from _copy(plan, c, mesh)
        yield _step(step, mesh)
    for group in copies.values():
        for c in group:
            yield from _copy(plan, c, mesh)
    for o in plan.outputs:
        yield f"return {o.name} as {sharding(o.spec, mesh)} : {tensor(o.type)}"


def _step(step: Step, mesh: Mapping[str, int]) -> str:
    names = ", ".join(f"%{v}" for v in step.values) or "_"
    results = [f"{sharding(s, mesh)} : {tensor(t)}" for s, t in zip(step.results, step.types, strict=True)]
    shown = results[0] if len(results) == 1 else f"({', '.join(results)})"
    operands = ", ".join(sharding(s, mesh) for s in step.operands)
    note = " ".join(filter(None, (step.phase, step.source, _times(step.times))))
    return f"{names} = {step.op}({operands}) -> {shown}  // {note}"


def _copy(plan: Plan, index: int, mesh: Mapping[str, int]) -> Iterator[str]:
    copy = plan.copies[index]
    number = {axis: str(i) for i, axis in enumerate(mesh)}
    cause = " ".join(filter(None, (copy.cause, _times(copy.times))))
    source = copy.name if copy.source < 0 else _name(plan.copies[copy.source], copy.source)
    for m in copy.moves:
        op = _OPS.get(m.kind, m.kind.replace("-", "_"))
        axes = ", ".join(number[a] for a in m.axes)
        change = f"{sharding(m.before, mesh)} -> {sharding(m.after, mesh)}"
        target = _name(copy, index)
        yield f"%{target} = {op} %{source} on @mesh mesh_axes = [{axes}] : {change}  // {cause}"
        source = target


def _times(n: int) -> str:
    return f"x {n}" if n > 1 else ""


def _name(copy: Copy, index: int) -> str:
    return f"{copy.name}_{index}"
