"""From a name, `family:size`, to a `Model`."""

import dataclasses
from collections.abc import Callable
from typing import Any

from autosharding.errors import UnknownModel
from autosharding.zoo import gpt, llama, mlp, moe, wresnet
from autosharding.zoo.model import Model

FAMILIES: dict[str, tuple[dict[str, Any], Callable[..., Model]]] = {
    "mlp": (mlp.SIZES, mlp.build_mlp),
    "gpt": (gpt.SIZES, gpt.build_gpt),
    "llama": (llama.SIZES, llama.build_llama),
    "moe": (moe.SIZES, moe.build_moe),
    "wresnet": (wresnet.SIZES, wresnet.build_wresnet),
}


def names() -> tuple[str, ...]:
    """Return every name that `build` knows, besides `mlp:HIDDENxLAYERS`."""
    return tuple(f"{family}:{size}" for family, (sizes, _) in FAMILIES.items() for size in sizes)


def build(name: str, *, batch: int | None = None, sequence: int | None = None, remat: bool = True) -> Model:
    """Return the model of that name; nothing is allocated.

    `batch` is sequences, images or rows per step over all devices, `sequence` tokens per sequence; None takes
    the published ones. With `remat` each block is under `jax.checkpoint`.
    """
    config, make = _find(name)
    given = {"batch": batch, "sequence": sequence}
    wanted = {field: value for field, value in given.items() if value is not None}
    for field, value in wanted.items():
        _check(name, config, field, value)
    return make(name, dataclasses.replace(config, **wanted), remat=remat)


def _find(name: str) -> tuple[Any, Callable[..., Model]]:
    family, _, size = name.lower().partition(":")
    if family not in FAMILIES:
        raise UnknownModel(_unknown(name))
    sizes, make = FAMILIES[family]
    if family == "mlp":
        size = size or mlp.DEFAULT
        config = sizes.get(size) or mlp.parse_size(size)
    else:
        config = sizes.get(size)
    if config is None:
        raise UnknownModel(_unknown(name))
    return config, make


def _unknown(name: str) -> str:
    lines = [f"  {family}: {', '.join(sizes)}" for family, (sizes, _) in FAMILIES.items()]
    return "\n".join(
        [
            f"There is no model {name!r} in the zoo.",
            "A name is a family and a size, as in gpt:1.3b; the sizes of each family are",
            *lines,
            "An MLP of any size is mlp:HIDDENxLAYERS, as in mlp:4096x6, and plain mlp is that one.",
            "For a model of your own, give the command line a file and a name instead: train.py:make.",
        ]
    )


def _check(name: str, config: Any, field: str, value: int) -> None:
    if not hasattr(config, field):
        raise UnknownModel(
            f"The model {name!r} has no {field}: its inputs are not sequences of tokens. Leave {field} out."
        )
    if value < 1:
        raise UnknownModel(f"The model {name!r} cannot be built with {field} {value}: give at least 1.")
