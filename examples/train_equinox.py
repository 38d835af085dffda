"""An equinox MLP trained by optax: a model whose leaves are arrays, functions and numbers.

python examples/train_equinox.py --steps 50
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import autosharding as asd

INPUTS, HIDDEN, OUTPUTS, BATCH = 32, 256, 16, 128
OPTIMIZER = optax.adamw(2e-3)


def loss_fn(model: eqx.nn.MLP, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(jax.vmap(model)(x) - y))


def train_step(model: eqx.nn.MLP, optimizer: optax.OptState, x: jax.Array, y: jax.Array):
    """Return the next model and optimizer state, and the mean square error."""
    loss, gradients = eqx.filter_value_and_grad(loss_fn)(model, x, y)
    updates, optimizer = OPTIMIZER.update(gradients, optimizer, eqx.filter(model, eqx.is_array))
    return eqx.apply_updates(model, updates), optimizer, loss


def make_batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x float32[batch, inputs] and y float32[batch, outputs], a smooth function of x."""
    x = np.random.default_rng(step).standard_normal((BATCH, INPUTS)).astype(np.float32)
    mix = np.random.default_rng(0).standard_normal((INPUTS, OUTPUTS)).astype(np.float32) / np.sqrt(INPUTS)
    return x, np.sin(x @ mix)


def make():
    """Return the step and its example arguments, for the command line."""
    model = eqx.nn.MLP(INPUTS, OUTPUTS, HIDDEN, depth=3, key=jax.random.key(0))
    return train_step, (model, OPTIMIZER.init(eqx.filter(model, eqx.is_array)), *make_batch(0))


def run(step, steps: int) -> list[float]:
    """Return the losses of a run from the first state on."""
    _, (model, optimizer, *_) = make()
    losses = []
    for i in range(steps):
        model, optimizer, loss = step(model, optimizer, *make_batch(i))
        losses.append(float(loss))
    return losses


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train an equinox MLP.")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--method", default="auto", help="auto, data, fsdp, zero1, zero2 or megatron")
    options = parser.parse_args(arguments)
    if jax.config.jax_num_cpu_devices != 8:
        jax.config.update("jax_num_cpu_devices", 8)  # has no say where there are accelerators
    losses = run(asd.parallelize(train_step, method=options.method), options.steps)
    print(f"mean square error {losses[0]:.3f} -> {losses[-1]:.3f} in {options.steps} steps")


if __name__ == "__main__":
    main()
