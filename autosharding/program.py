"""A step planned for one mesh, as the public face runs it: placed, compiled, called with arrays."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
from jax.sharding import Mesh

from autosharding import placing
from autosharding.executor import executable
from autosharding.options import Options
from autosharding.plan import Plan
from autosharding.processes import in_turn
from autosharding.traced import Traced


class Program:
    """A step planned for arguments of one kind, and compiled when first run."""

    def __init__(self, traced: Traced, plan: Plan, options: Options) -> None:
        self.traced = traced
        self.plan = plan
        self.options = options
        self.compiled: Any = None
        self.quick: Any = None
        self.places = False

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The devices it runs on."""
        given = self.options.mesh if isinstance(self.options.mesh, Mesh) else None
        return placing.mesh_over(self.plan.mesh, self.options.all_devices, given)

    @functools.cached_property
    def shardings(self) -> tuple[Any, ...]:
        """Of the arguments' arrays, in the order of `traced.structure`."""
        return placing.shardings_of(self.plan, self.mesh)[0][: self.traced.graph.n_arguments]

    @functools.cached_property
    def constants(self) -> tuple[Any, ...]:
        """What the step closed over, placed once."""
        shardings = placing.shardings_of(self.plan, self.mesh)[0][self.traced.graph.n_arguments :]
        return tuple(placing.placed(c, s) for c, s in zip(self.traced.graph.constants, shardings, strict=True))

    @functools.cached_property
    def jitted(self) -> Any:
        """The step of arrays and constants under `jax.jit`; traced once, it raises TypeError for other arguments."""
        ins, outs = placing.shardings_of(self.plan, self.mesh)
        run = executable(self.traced.graph, self.plan, self.mesh)
        seen: list[bool] = []

        def step(*arrays: Any) -> tuple[Any, ...]:
            if seen:
                raise TypeError("compiled for other arguments")
            seen.append(True)
            return run(*arrays)

        step.__name__ = step.__qualname__ = self.traced.graph.name
        return jax.jit(step, in_shardings=ins, out_shardings=outs, donate_argnums=tuple(self.traced.donated))

    def lower(self) -> Any:
        """The step as `jax.stages.Lowered`, of arrays and constants."""
        ins = placing.shardings_of(self.plan, self.mesh)[0]
        with _no_mesh():
            return self.jitted.lower(
                *(
                    jax.ShapeDtypeStruct(v.shape, v.aval.dtype, weak_type=v.aval.weak_type, sharding=s)
                    for v, s in zip(self.traced.graph.inputs, ins, strict=True)
                )
            )

    def compile(self) -> Any:
        """The step as `jax.stages.Compiled`, kept."""
        if self.compiled is None:
            self.compiled = self.lower().compile()
            self.quick = in_turn(self.jitted, self.mesh.devices.flat)
        return self.compiled

    def run(self, arrays: Sequence[Any]) -> Sequence[Any]:
        """Run on the arrays of a call; those that lie elsewhere are placed first."""
        if self.compiled is None:
            self.compile()
        if not self.places:
            try:
                return self._call(arrays)
            except ValueError:
                self.places = True
        return self._call([placing.placed(x, s) for x, s in zip(arrays, self.shardings, strict=True)])

    def _call(self, arrays: Sequence[Any]) -> Sequence[Any]:
        """By the jitted function, which dispatches faster, as long as it takes these arguments for those it knows."""
        try:
            return self.quick(*arrays, *self.constants)
        except TypeError:
            quick = in_turn(self.compiled, self.mesh.devices.flat)
            results = quick(*arrays, *self.constants)
        self.quick = quick
        return results


def _no_mesh() -> AbstractContextManager[Any]:
    """Leaves the user's mesh, if he is in one."""
    if jax.sharding.get_abstract_mesh().empty:
        return nullcontext()
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))
