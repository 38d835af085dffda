"""Whether the stages of a pipeline work at the same time: three processes, and ops that only wait.

python benchmarks/overlap.py [--channel permute]

Each of three layers waits 50 ms in its forward pass and 50 ms in its backward pass, for every microbatch of six. One
after another that is 1.8 s; stages that overlap fully take (microbatches + stages - 1) times a forward and a backward
task, 0.8 s. Waiting needs no processor, so the figure holds on two cores. Prints the median of many steps, the worst.
"""

import argparse
import socket
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive

import autosharding as asd

STAGES, MICROBATCHES, WIDTH = 3, 6, 8
WAIT = 0.05
"""Seconds of a layer's forward pass, and of its backward pass."""

WAIT_FLOPS = 1e15
"""What the planner takes a wait for: far more than all else, so that each stage gets one."""

wait_p = Primitive("wait")
wait_p.def_abstract_eval(lambda x: jax.core.ShapedArray(x.shape, x.dtype))


def slept(x: np.ndarray) -> np.ndarray:
    """The same array, after the wait."""
    time.sleep(WAIT)
    return x


@jax.custom_vjp
def wait(x: jax.Array) -> jax.Array:
    """The positive part, a while later; so is its cotangent, which needs `x` and so stays with the layer."""
    return wait_p.bind(jnp.maximum(x, 0))


wait.defvjp(lambda x: (wait(x), x), lambda x, g: (wait_p.bind(jnp.where(x > 0, g, 0)),))


def train_step(weights: list[jax.Array], x: jax.Array) -> tuple[list[jax.Array], jax.Array]:
    """Layers that wait, by SGD."""

    def loss(weights: list[jax.Array]) -> jax.Array:
        h = x
        for w in weights:
            h = wait(h @ w)
        return jnp.mean(jnp.square(h))

    value, gradients = jax.value_and_grad(loss)(weights)
    return [w - 0.1 * g for w, g in zip(weights, gradients, strict=True)], value


def work(address: str, index: int, repetitions: int, channel: str) -> None:
    """Be one of the processes."""
    jax.distributed.initialize(address, STAGES, index)
    asd.rule(
        wait_p,
        "b d -> b d",
        run=lambda _, x: [jax.pure_callback(slept, jax.ShapeDtypeStruct(x.shape, x.dtype), x)],
        flops=lambda _: WAIT_FLOPS,
    )
    step = asd.parallelize(train_step, stages=STAGES, microbatches=MICROBATCHES, channel=channel)
    x = np.ones((2 * MICROBATCHES, WIDTH), np.float32)
    weights = step.init(lambda: [jnp.eye(WIDTH)] * STAGES, rest=(x,))
    weights, _ = step(weights, x)
    seconds = []
    for _ in range(repetitions):
        begin = time.perf_counter()
        weights, value = step(weights, x)
        jax.block_until_ready((weights, value))
        seconds.append(time.perf_counter() - begin)
    if index == 0:
        ideal, median = (MICROBATCHES + STAGES - 1) * 2 * WAIT, statistics.median(seconds)
        print(f"jax {jax.__version__}: {repetitions} steps of {MICROBATCHES} microbatches", end=" ")
        print(f"on {STAGES} processes, {channel}", end=": ")
        print(
            f"median {median * 1e3:.0f} ms, {median / ideal:.3f} x ideal, worst {max(seconds) * 1e3:.0f} ms", end="; "
        )
        print(f"one after another {MICROBATCHES * STAGES * 2 * WAIT * 1e3:.0f} ms", flush=True)


def main() -> None:
    """Start the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--channel", default="transfer", help="or permute: what brings arrays from stage to stage")
    parser.add_argument("--address", help=argparse.SUPPRESS)
    parser.add_argument("--index", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.index is not None:
        work(options.address, options.index, options.repetitions, options.channel)
        return
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    own = [sys.executable, __file__, "--address", address, "--repetitions", str(options.repetitions)]
    own += ["--channel", options.channel]
    workers = [subprocess.Popen([*own, "--index", str(i)]) for i in range(STAGES)]
    if any([w.wait() for w in workers]):
        raise SystemExit("a process failed; see above")


if __name__ == "__main__":
    main()
