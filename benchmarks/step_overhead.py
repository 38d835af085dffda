"""The GPT step under `parallelize(method="megatron")` beside the same shardings written by hand with `jax.jit`.

    python benchmarks/step_overhead.py [--steps 30]

Both run in turn, pair by pair, in one process on eight virtual CPU devices; printed are the medians and the median of
the ratios: of a whole step (until its results are there) and of the dispatch (until the call returns), the latter on a
step that only touches its arguments, so that nothing is left to wait for.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

import autosharding as asd

GPT = Path(__file__).parent.parent / "examples" / "train_gpt.py"


def load_gpt() -> Any:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("train_gpt", GPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_hand(fn: Callable[..., Any], step: Any, args: tuple[Any, ...]) -> Callable[..., Any]:
    """`jax.jit` with the plan's shardings for arguments and new state, all else left to XLA's partitioner."""
    shardings = step.shardings(*args)
    return jax.jit(fn, in_shardings=shardings, out_shardings=(shardings[0], None), donate_argnums=0)


def pairs(ours: Callable[[], float], theirs: Callable[[], float], n: int) -> tuple[float, float, float]:
    """Medians of both in seconds and the median of the ratios of neighbours; who goes first alternates."""
    a, b = [], []
    for i in range(n):
        for which in (0, 1) if i % 2 else (1, 0):
            (a if which == 0 else b).append((ours if which == 0 else theirs)())
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    return statistics.median(a), statistics.median(b), statistics.median(ratios)


class Runner:
    """Calls a step again and again on its own state."""

    def __init__(self, step: Callable[..., Any], args: tuple[Any, ...], *, wait: bool) -> None:
        self.step, self.state, self.rest, self.wait = step, args[0], args[1:], wait
        for _ in range(3):
            self()

    def __call__(self) -> float:
        """One step; its seconds."""
        start = time.perf_counter()
        self.state, out = self.step(self.state, *self.rest)
        if self.wait:
            jax.block_until_ready((self.state, out))
            return time.perf_counter() - start
        took = time.perf_counter() - start
        jax.block_until_ready((self.state, out))
        return took


def touch(state: Any, *batch: Any) -> tuple[Any, Any]:
    """A step with the GPT's arguments and next to no work."""
    return state, jax.tree.leaves(batch)[0]


def measure(fn: Callable[..., Any], args: tuple[Any, ...], n: int, *, wait: bool) -> tuple[float, float, float]:
    """One comparison; each side has its own copy of the state, for both give theirs away."""
    step = asd.parallelize(fn, method="megatron", donate_argnums=0)
    hand = by_hand(fn, step, args)
    shardings = step.shardings(*args)
    placed = [jax.device_put(jax.tree.map(lambda x: x.copy(), args), shardings) for _ in range(2)]
    return pairs(Runner(step, placed[0], wait=wait), Runner(hand, placed[1], wait=wait), n)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    n = parser.parse_args().steps
    jax.config.update("jax_num_cpu_devices", 8)
    step, args = load_gpt().make()
    print(f"{'':10} {'parallelize':>14} {'by hand':>14} {'ratio':>8}")
    for name, fn, wait, times in (("step", step, True, n), ("dispatch", touch, False, 10 * n)):
        ours, theirs, ratio = measure(fn, args, times, wait=wait)
        print(f"{name:10} {ours * 1e3:11.3f} ms {theirs * 1e3:11.3f} ms {ratio:8.3f}")


if __name__ == "__main__":
    main()
