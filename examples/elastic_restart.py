"""Lose half of the devices in the middle of a training, plan anew for the rest, go on with the same loss curve.

    python examples/elastic_restart.py

The GPT of `train_gpt.py` starts as a pipeline of two stages on eight (virtual) devices. At half time four of them are
taken away. The step is planned for the four that are left, as one mesh, the last checkpoint is restored into the new
plan's shardings, and the training goes on. The program prints the losses, how a weight lies under either plan, and the
largest relative difference of loss to an undisturbed run on one device. `train_multihost.py` restarts over processes.
"""

import argparse
import tempfile

import jax
import train_gpt as gpt
import train_multihost as training

import autosharding as asd


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Go on with half of the devices.")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--stages", type=int, default=2, help="before the loss; afterwards one mesh")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--sequence", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args(arguments)
    gpt.HIDDEN, gpt.SEQUENCE, gpt.BATCH = options.hidden, options.sequence, options.batch
    if jax.config.jax_num_cpu_devices != 8:
        jax.config.update("jax_num_cpu_devices", 8)  # has no say where there are accelerators
    devices, half = jax.devices(), options.steps // 2

    with tempfile.TemporaryDirectory() as folder:
        manager = training.open_checkpoints(folder)
        before = asd.parallelize(gpt.train_step, stages=options.stages, microbatches=4)
        losses = training.train(before, half, manager, every=half)

        left = devices[: len(devices) // 2]
        print(f"{len(devices) - len(left)} of {len(devices)} devices are gone; planning for the rest")
        after = asd.parallelize(gpt.train_step, devices=left)
        losses |= training.train(after, options.steps, manager, every=half)

    shapes = jax.eval_shape(gpt.init, jax.random.key(0)), training.batch(0)
    for name, step in (("before", before), ("after", after)):
        lies = step.shardings(*shapes)[0].params["blocks"][0]["w1"]
        print(f"{name}: w1 of the first block is {lies.spec} on {lies.mesh.size} devices")
    alone = gpt.run(jax.jit(gpt.train_step), options.steps)
    worst = max(abs(losses[i] - x) / x for i, x in enumerate(alone))
    print(f"largest relative difference of loss to an undisturbed run on one device: {worst:.1e}")


if __name__ == "__main__":
    main()
