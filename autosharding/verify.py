"""Does the program do what the plan says, and what the step says? Compiled, compared, run beside one device.

Two runs of one step differ by rounding, and some results make much of it: where a gradient is zero but for rounding,
Adam steps by a full learning rate in a random direction. So the one-device run is done twice, the second time with its
float inputs changed in the seventh digit: an output may differ by a small share of its size, or by ten times as much as
it did there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from autosharding.api import Step
from autosharding.compare import Comparison, compare
from autosharding.leaves import Structure, take_result
from autosharding.program import Program
from autosharding.table import Table

TOLERANCE = 1e-4
"""Norm of a difference over the norm of the output."""

NOISE = 10.0
"""How many times the difference that rounding makes is taken for rounding."""

NUDGE = 1e-6
"""By how much, relatively, the inputs are changed to see what rounding makes of it."""

MEMORY_SHARE = 0.15
"""How far off, as a share of XLA's figure, the predicted memory may be before it is remarked."""

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Difference:
    """One output of the plan's run beside the one-device run.

    Attributes:
        name: path.
        difference: norm of the difference over the norm of the output (or of ones, where that is zero).
        noise: the same for a one-device run on inputs changed in the seventh digit.
        finite: whether every number is finite where the one-device run's is.
    """

    name: str
    difference: float
    noise: float
    finite: bool

    @property
    def agrees(self) -> bool:
        """Whether it is rounding."""
        return self.finite and self.difference <= max(TOLERANCE, NOISE * self.noise)


@dataclass(frozen=True, slots=True)
class Verification:
    """A plan beside its program and its numbers beside one device's.

    Attributes:
        comparison: collectives and memory; None for a pipeline, which is many programs.
        numbers: for each output.
        steps: how many steps were run, state fed on.
        outputs: how many outputs are no state; they come first in `numbers`.
    """

    comparison: Comparison | None
    numbers: tuple[Difference, ...]
    steps: int
    outputs: int

    @property
    def agrees(self) -> bool:
        """Whether collectives and numbers are as they should be; memory is a prediction and only remarked."""
        compiled = self.comparison is None or self.comparison.agrees
        return compiled and all(n.agrees for n in self.numbers)

    def __str__(self) -> str:
        compared = [] if self.comparison is None else [str(self.comparison)]
        return "\n\n".join([*compared, *(t.text() for t in self._tables()), *self._remarks()])

    def _tables(self) -> Iterable[Table]:
        worst = max(self.numbers[self.outputs :], key=lambda n: n.difference, default=None)
        shown = [n for i, n in enumerate(self.numbers) if i < self.outputs or n is worst or not n.agrees]
        rows = tuple(
            (n.name, f"{n.difference:.1e}", f"{n.noise:.1e}", "equal" if n.agrees else "DIFFERS") for n in shown[:40]
        )
        title = (
            f"numbers after {self.steps} step{'s' * (self.steps > 1)}, beside one device: {len(self.numbers)} outputs"
        )
        yield Table(title, ("output", "difference", "rounding", ""), rows, (1, 2))

    def _remarks(self) -> Iterable[str]:
        ratio = self.comparison.memory_ratio if self.comparison is not None else None
        if ratio is not None and abs(ratio - 1) > MEMORY_SHARE:
            yield f"The predicted memory is {ratio - 1:+.0%} off."
        numbers = "the numbers are the step's."
        agreed = numbers.capitalize() if self.comparison is None else f"The program is the plan's, {numbers}"
        yield agreed if self.agrees else "VERIFICATION FAILED."


def verify(step: Step, args: tuple[Any, ...], *, steps: int = 1, progress: Report | None = None) -> Verification:
    """Compile a step for the devices at hand, compare it with its plan, run it beside one device.

    Args:
        step: made by `parallelize`.
        args: its positional arguments, holding numbers.
        steps: run so many, the new state fed on.
        progress: called with a line of text at each stage.
    """
    say = progress or (lambda _: None)
    program = step.program(*args)
    say("compiling")
    comparison = compare(program.plan, program.compile()) if isinstance(program, Program) else None
    arrays, structure, _ = step.take(args, {})
    hosted = [_host(x) for x in arrays]
    flat = jax.jit(_flat(step, structure))
    feed = {o: i for o, i in program.traced.state.items() if i < len(hosted)}
    say("running on one device")
    with jax.default_device(jax.devices()[0]):
        alone = _loop(flat, hosted, feed, steps)
        nudged = _loop(flat, _nudged(hosted), feed, steps)
    say("running on all devices")
    spread = _loop(lambda *xs: program.run(list(xs)), hosted, feed, steps)
    names = program.traced.graph.output_names
    order = sorted(range(len(names)), key=lambda i: (i in feed, i))
    numbers = tuple(_difference(names[i], alone[i], spread[i], nudged[i]) for i in order)
    return Verification(comparison, numbers, steps, len(names) - len(feed))


def _flat(step: Step, structure: Structure) -> Callable[..., list[Any]]:
    """The user's own function, of arrays."""

    def call(*arrays: Any) -> list[Any]:
        args, kwargs, objects = structure.call(arrays)
        return take_result(step.fn(*args, **kwargs), objects)[0]

    return call


def _loop(run: Callable[..., Any], arrays: Sequence[Any], feed: Mapping[int, int], steps: int) -> list[Any]:
    """The outputs of the last of some steps, on the host; arrays are copied, so that a run may take their buffers."""
    current = [_fresh(x) for x in arrays]
    results: list[Any] = []
    for n in range(steps):
        results = list(run(*current))
        if n + 1 < steps:
            current = [_fresh(x) for x in arrays]
            for o, i in feed.items():
                current[i] = results[o]
    return [_host(x) for x in results]


@dataclass(frozen=True, slots=True)
class _Keys:
    """Typed keys on the host: their words, and how they are made."""

    words: np.ndarray
    impl: Any


def _host(x: Any) -> Any:
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return _Keys(np.asarray(jax.random.key_data(x)), jax.random.key_impl(x))
    return np.asarray(x) if isinstance(x, jax.Array) else x


def _fresh(x: Any) -> Any:
    if isinstance(x, _Keys):
        return jax.random.wrap_key_data(jnp.asarray(x.words), impl=x.impl)
    return x


def _nudged(arrays: Sequence[Any]) -> list[Any]:
    random = np.random.default_rng(0)

    def nudge(x: Any) -> Any:
        if not isinstance(x, np.ndarray) or not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        return (x * (1 + NUDGE * random.standard_normal(x.shape))).astype(x.dtype)

    return [nudge(x) for x in arrays]


def _difference(name: str, alone: Any, spread: Any, nudged: Any) -> Difference:
    a, b, c = (_numbers(x) for x in (alone, spread, nudged))
    finite = bool(np.array_equal(np.isfinite(a), np.isfinite(b)))
    scale = float(np.linalg.norm(_tame(a).ravel())) or float(np.sqrt(a.size)) or 1.0
    return Difference(
        name,
        float(np.linalg.norm((_tame(b) - _tame(a)).ravel())) / scale,
        float(np.linalg.norm((_tame(c) - _tame(a)).ravel())) / scale,
        finite,
    )


def _numbers(x: Any) -> np.ndarray:
    x = np.asarray(x.words if isinstance(x, _Keys) else x)
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def _tame(x: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(x), x, 0)
