"""A small ResNet with batch norm in flax linen, its running statistics kept in the train state.

python examples/train_resnet.py --steps 20
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.training import train_state

import autosharding as asd

IMAGE, BATCH, CLASSES = 32, 32, 16
CHANNELS = (16, 32, 64)  # of each stage
OPTIMIZER = optax.sgd(0.1, momentum=0.9, nesterov=True)


class TrainState(train_state.TrainState):
    """Parameters, momentum and the running statistics of batch norm."""

    batch_stats: Any


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    channels: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.Conv(self.channels, (3, 3), self.stride, use_bias=False)(x)
        y = nn.relu(nn.BatchNorm(use_running_average=False, momentum=0.9)(y))
        y = nn.Conv(self.channels, (3, 3), use_bias=False)(y)
        y = nn.BatchNorm(use_running_average=False, momentum=0.9)(y)
        if x.shape != y.shape:
            x = nn.Conv(self.channels, (1, 1), self.stride, use_bias=False)(x)
            x = nn.BatchNorm(use_running_average=False, momentum=0.9)(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Images float32[batch, height, width, 3] to logits float32[batch, classes]."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = nn.Conv(CHANNELS[0], (3, 3), use_bias=False)(images)
        x = nn.relu(nn.BatchNorm(use_running_average=False, momentum=0.9)(x))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for i, channels in enumerate(CHANNELS):
            x = Block(channels, stride=2 if i else 1)(x)
        return nn.Dense(CLASSES)(x.mean(axis=(1, 2)))


MODEL = ResNet()


def train_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
    """Return the next state and the metrics: loss in nats, accuracy as a fraction."""

    def loss_fn(params: Any):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, new = state.apply_fn(variables, batch["images"], mutable=["batch_stats"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean()
        return loss, (logits, new["batch_stats"])

    (loss, (logits, stats)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == batch["labels"])
    state = state.apply_gradients(grads=gradients, batch_stats=stats)
    return state, {"loss": loss, "accuracy": accuracy}


def make_batch(step: int) -> dict[str, np.ndarray]:
    """Return images float32[batch, height, width, 3] of waves in noise, and the number of each wave."""
    random = np.random.default_rng(step)
    labels = random.integers(CLASSES, size=BATCH).astype(np.int32)
    y, x = np.mgrid[:IMAGE, :IMAGE] * (2 * np.pi / IMAGE)
    waves = np.sin((1 + labels % 4)[:, None, None] * x + (labels // 4)[:, None, None] * y)
    noise = random.standard_normal((BATCH, IMAGE, IMAGE, 3))
    return {"images": (waves[..., None] + 0.5 * noise).astype(np.float32), "labels": labels}


def make():
    """Return the step and its example arguments, for the command line."""
    batch = make_batch(0)
    variables = jax.jit(MODEL.init)(jax.random.key(0), batch["images"])
    state = TrainState.create(
        apply_fn=MODEL.apply,
        params=variables["params"],
        tx=OPTIMIZER,
        batch_stats=variables["batch_stats"],
    )
    return train_step, (state, batch)


def run(step, steps: int) -> list[float]:
    """Return the losses of a run from the first state on."""
    _, (state, _) = make()
    losses = []
    for i in range(steps):
        state, metrics = step(state, make_batch(i))
        losses.append(float(metrics["loss"]))
    return losses


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train a small ResNet.")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--method", default="auto", help="auto, data, fsdp, zero1, zero2 or megatron")
    options = parser.parse_args(arguments)
    if jax.config.jax_num_cpu_devices != 8:
        jax.config.update("jax_num_cpu_devices", 8)  # has no say where there are accelerators
    losses = run(asd.parallelize(train_step, method=options.method, donate_argnums=0), options.steps)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} nats in {options.steps} steps")


if __name__ == "__main__":
    main()
