"""What it costs to start a task of a pipeline: seconds of the driver for each, while the devices work.

python benchmarks/pipeline_dispatch.py

Layers of tanh in 4 stages on 8 virtual devices, 1F1B, 8 microbatches. The time of a task is that of fetching what was
sent to it and starting its program, not of waiting for it.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import autosharding as asd
from autosharding.pipeline.runner import StepRun

WIDTH, LAYERS, BATCH = 64, 8, 32


def train_step(params: list[jax.Array], x: jax.Array) -> tuple[list[jax.Array], jax.Array]:
    """Layers of tanh, by SGD."""

    def loss(params: list[jax.Array]) -> jax.Array:
        h = x
        for w in params:
            h = h + jnp.tanh(h @ w)
        return jnp.mean(jnp.square(h))

    value, grads = jax.value_and_grad(loss)(params)
    return [w - 0.1 * g for w, g in zip(params, grads, strict=True)], value


class Timed:
    """Notes how long each task takes to start."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.started = StepRun.task

    def __enter__(self) -> "Timed":
        def task(run: StepRun, *args: int) -> None:
            begin = time.perf_counter()
            self.started(run, *args)
            self.seconds.append(time.perf_counter() - begin)

        StepRun.task = task
        return self

    def __exit__(self, *_: object) -> None:
        StepRun.task = self.started


def main() -> None:
    """Print the median."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)
    rng = np.random.default_rng(0)
    params = [rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / WIDTH for _ in range(LAYERS)]
    x = rng.standard_normal((BATCH, WIDTH)).astype(np.float32)
    step = asd.parallelize(train_step, stages=4, microbatches=8)
    params, _ = step(params, x)
    for _ in range(3):
        params, value = step(params, x)
    jax.block_until_ready(value)
    with Timed() as timed:
        for _ in range(options.steps):
            params, value = step(params, x)
            jax.block_until_ready(params)
    micro = sorted(s * 1e6 for s in timed.seconds)
    print(
        f"{len(micro)} tasks: median {statistics.median(micro):.0f} us, 90% within {micro[len(micro) * 9 // 10]:.0f} us"
    )


if __name__ == "__main__":
    main()
