"""What the command line is pointed at: `file.py:name`, or a model of the zoo."""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from autosharding import zoo
from autosharding.api import Step
from autosharding.errors import AutoshardingError, TargetError

_FORM = (
    "A target is file.py:name, with a callable of that name that takes no arguments and returns "
    "(step, example_args); or a model of the zoo such as gpt:1.3b, llama:8b, mlp:4096x6."
)


@dataclass(frozen=True, slots=True)
class Target:
    """A step and its example arguments; shapes are enough.

    Attributes:
        name: as the user wrote it.
        step: an ordinary function.
        args: its positional arguments.
        make: makes arguments that hold numbers.
    """

    name: str
    step: Callable[..., Any]
    args: tuple[Any, ...]
    make: Callable[[], tuple[Any, ...]]


def find_target(text: str, *, batch: int | None = None, sequence: int | None = None, remat: bool = True) -> Target:
    """Read a target; `batch`, `sequence` and `remat` are for models of the zoo.

    Raises:
        TargetError: when there is no such file or name, or what it gives is no step.
        UnknownModel: when the zoo has no such model.
    """
    path, _, name = text.rpartition(":")
    if not path.endswith(".py"):
        if text.endswith(".py") or os.sep in text:
            raise TargetError(f"{text!r} does not say which callable of the file to take. {_FORM}")
        return _from_zoo(text, batch, sequence, remat)
    if batch is not None or sequence is not None or not remat:
        raise TargetError(
            f"--batch, --sequence and --no-remat are for models of the zoo; the arguments of {text!r} are what its "
            f"{name!r} returns. Change them there."
        )
    return _from_file(text, Path(path), name)


def _from_zoo(text: str, batch: int | None, sequence: int | None, remat: bool) -> Target:
    model = zoo.build(text, batch=batch, sequence=sequence, remat=remat)

    def make() -> tuple[Any, ...]:
        init, draw = jax.random.split(jax.random.key(0))
        return model.init(init), model.make_batch(draw)

    return Target(text, model.step, model.args, make)


def _from_file(text: str, path: Path, name: str) -> Target:
    if not path.is_file():
        raise TargetError(f"There is no file {str(path)!r}. {_FORM}")
    module = _load(path)
    if not hasattr(module, name):
        there = [n for n, x in vars(module).items() if callable(x) and not n.startswith("_")]
        raise TargetError(f"{str(path)!r} has no {name!r}; it has {', '.join(there) or 'no callables'}. {_FORM}")
    made = _call(text, getattr(module, name))
    if not (isinstance(made, tuple) and len(made) == 2 and callable(made[0])):
        raise TargetError(f"{text!r} returns {type(made).__name__}, not (step, example_args). {_FORM}")
    step, args = made
    args = args if isinstance(args, tuple) else (args,)
    return Target(
        text, step.fn if isinstance(step, Step) else step, args, lambda: _call(text, getattr(module, name))[1]
    )


def _load(path: Path) -> Any:
    """Import a file by path; what lies beside it can be imported by it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise TargetError(f"{str(path)!r} cannot be imported: {_where(error)}") from error
    return module


def _call(text: str, maker: Any) -> Any:
    try:
        return maker()
    except AutoshardingError:
        raise
    except Exception as error:
        raise TargetError(f"{text!r} fails when it is called without arguments: {_where(error)}") from error


def _where(error: BaseException) -> str:
    """The error, and the innermost line of the user's that it came from."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")]
    at = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{at}."
