"""What is asked of `parallelize`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
from jax.sharding import Mesh, PartitionSpec

from autosharding.microbatch import Microbatches
from autosharding.pipeline import PipelinePlan
from autosharding.plan import Plan
from cost_model import Cluster

Report = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What was asked of `parallelize`; see there."""

    devices: tuple[Any, ...] | None = None
    mesh: Mesh | Mapping[str, int] | None = None
    memory: int | None = None
    method: str = "auto"
    microbatches: Microbatches = "auto"
    microbatch_semantics: str = "whole"
    stages: int | Literal["auto"] = 1
    schedule: str = "1f1b"
    chunks: int | None = None
    channel: str = "auto"
    constraints: Mapping[str, PartitionSpec] | None = None
    plan: Plan | PipelinePlan | None = None
    donate: tuple[int | str, ...] = ()
    static_positions: tuple[int, ...] = ()
    static_names: tuple[str, ...] = ()
    cluster: Cluster | None = None
    progress: Report | None = None
    parameters: tuple[str, ...] = ()

    @property
    def all_devices(self) -> tuple[Any, ...]:
        """Those to run on."""
        if self.devices is not None:
            return self.devices
        if isinstance(self.mesh, Mesh):
            return tuple(self.mesh.devices.flat)
        return tuple(jax.devices())


def parameter_names(fn: Callable[..., Any]) -> tuple[str, ...]:
    """The names of the positional parameters of a function, where it tells them."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return ()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(p.name for p in parameters if p.kind in positional)


def by_either(
    names: tuple[str, ...], argnums: int | Sequence[int], argnames: str | Sequence[str]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Positions and names of the arguments that are given by either."""
    nums = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    nums = tuple(n + len(names) if n < 0 else n for n in nums)
    said = (argnames,) if isinstance(argnames, str) else tuple(argnames)
    positions = dict.fromkeys((*nums, *(names.index(n) for n in said if n in names)))
    keywords = dict.fromkeys((*said, *(names[n] for n in nums if n < len(names))))
    return tuple(positions), tuple(keywords)
