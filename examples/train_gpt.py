"""Train a GPT on the documentation that ships with Python, on every device there is.

    python examples/train_gpt.py --steps 200 --method auto

The model and its train step are plain JAX and optax and know nothing of devices; `asd.parallelize` plans and
runs them. Without accelerators, eight virtual CPU devices stand in. The program prints the plan, the
collectives and the memory that the plan predicts beside those of the compiled program, the loss in nats per
character, and the largest difference to the same run on one device. `make` is for the command line:

    autosharding plan examples/train_gpt.py:make --cluster h100:1x8
"""

import argparse
import time
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import autosharding as asd

HIDDEN, LAYERS, HEADS = 128, 2, 8
SEQUENCE, BATCH = 64, 32
VOCABULARY = 128  # ASCII
DROPOUT = 0.05
OPTIMIZER = optax.adamw(4e-3, b2=0.98, weight_decay=1e-2)


class State(NamedTuple):
    """What the step carries along."""

    params: Any
    optimizer: Any
    key: jax.Array  # typed, split at every step


# ---- the model -------------------------------------------------------------------------------------------


def init(key: jax.Array) -> State:
    """Return the first state: weights normal, biases zero, gains one."""
    key, *keys = jax.random.split(key, 3 + 6 * LAYERS)
    normal = jax.nn.initializers.normal(0.05)
    params = {
        "embed": normal(keys[0], (VOCABULARY, HIDDEN)),
        "position": normal(keys[1], (SEQUENCE, HIDDEN)),
        "blocks": [init_block(keys[2 + 6 * i : 8 + 6 * i]) for i in range(LAYERS)],
        "norm": init_norm(),
    }
    return State(params, OPTIMIZER.init(params), key)


def init_norm() -> dict[str, jax.Array]:
    return {"scale": jnp.ones(HIDDEN), "bias": jnp.zeros(HIDDEN)}


def init_block(keys: list[jax.Array]) -> dict[str, Any]:
    normal = jax.nn.initializers.normal(0.05)
    return {
        "norm1": init_norm(),
        "wq": normal(keys[0], (HIDDEN, HEADS, HIDDEN // HEADS)),
        "wk": normal(keys[1], (HIDDEN, HEADS, HIDDEN // HEADS)),
        "wv": normal(keys[2], (HIDDEN, HEADS, HIDDEN // HEADS)),
        "wo": normal(keys[3], (HEADS, HIDDEN // HEADS, HIDDEN)),
        "norm2": init_norm(),
        "w1": normal(keys[4], (HIDDEN, 4 * HIDDEN)),
        "b1": jnp.zeros(4 * HIDDEN),
        "w2": normal(keys[5], (4 * HIDDEN, HIDDEN)),
        "b2": jnp.zeros(HIDDEN),
    }


def layer_norm(p: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    mean = x.mean(axis=-1, keepdims=True)
    variance = jnp.square(x - mean).mean(axis=-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * p["scale"] + p["bias"]


def dropout(key: jax.Array, x: jax.Array) -> jax.Array:
    kept = jax.random.bernoulli(key, 1 - DROPOUT, x.shape)
    return jnp.where(kept, x / (1 - DROPOUT), 0.0)


def attention(p: dict[str, Any], x: jax.Array) -> jax.Array:
    q, k, v = (jnp.einsum("bsh,hnd->bsnd", x, p[w]) for w in ("wq", "wk", "wv"))
    logits = jnp.einsum("bsnd,btnd->bnst", q, k) / np.sqrt(HIDDEN // HEADS)
    seen = jnp.tril(jnp.ones((SEQUENCE, SEQUENCE), bool))
    weights = jax.nn.softmax(jnp.where(seen, logits, -1e9), axis=-1)
    mixed = jnp.einsum("bnst,btnd->bsnd", weights, v)
    return jnp.einsum("bsnd,ndh->bsh", mixed, p["wo"])


def mlp(p: dict[str, Any], x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]


def forward(params: dict[str, Any], tokens: jax.Array, key: jax.Array) -> jax.Array:
    """Return the logits of the next character, float32[batch, sequence, vocabulary]."""
    x = params["embed"][tokens] + params["position"]
    for p, block_key in zip(params["blocks"], jax.random.split(key, LAYERS), strict=True):
        key1, key2 = jax.random.split(block_key)
        x = x + dropout(key1, attention(p, layer_norm(p["norm1"], x)))
        x = x + dropout(key2, mlp(p, layer_norm(p["norm2"], x)))
    return layer_norm(params["norm"], x) @ params["embed"].T


def loss_fn(params: dict[str, Any], batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
    """Return the mean cross-entropy in nats per character."""
    logs = jax.nn.log_softmax(forward(params, batch["tokens"], key))
    return -jnp.take_along_axis(logs, batch["labels"][..., None], axis=-1).mean()


def train_step(state: State, batch: dict[str, jax.Array]) -> tuple[State, jax.Array]:
    """Return the next state and the loss; the ordinary step that is handed to `asd.parallelize`."""
    key, dropout_key = jax.random.split(state.key)
    loss, gradients = jax.value_and_grad(loss_fn)(state.params, batch, dropout_key)
    updates, optimizer = OPTIMIZER.update(gradients, state.optimizer, state.params)
    return State(optax.apply_updates(state.params, updates), optimizer, key), loss


# ---- the text --------------------------------------------------------------------------------------------


def read_text() -> np.ndarray:
    """Return the topics of Python's `help()`, one after another, as characters int32[about 470000]."""
    text = "\n".join(topics[name] for name in sorted(topics))
    return np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int32)


def make_batch(text: np.ndarray, step: int) -> dict[str, np.ndarray]:
    """Return the batch of one step, {tokens, labels}, int32[batch, sequence]; the same at every call."""
    starts = np.random.default_rng(step).integers(len(text) - SEQUENCE, size=BATCH)
    windows = text[starts[:, None] + np.arange(SEQUENCE + 1)]
    return {"tokens": windows[:, :-1], "labels": windows[:, 1:]}


def make():
    """Return the step and its example arguments, for the command line."""
    return train_step, (jax.jit(init)(jax.random.key(0)), make_batch(read_text(), 0))


# ---- the run ---------------------------------------------------------------------------------------------


def run(step, steps: int, report_every: int = 0) -> list[float]:
    """Return the losses of a run from the first state on."""
    text, state, losses = read_text(), jax.jit(init)(jax.random.key(0)), []
    for i in range(steps):
        state, loss = step(state, make_batch(text, i))
        losses.append(float(loss))
        if report_every and (i % report_every == 0 or i == steps - 1):
            print(f"step {i:4d}   loss {losses[-1]:.3f} nats per character", flush=True)
    return losses


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train a GPT on Python's own documentation.")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--method", default="auto", help="auto, data, fsdp, zero1, zero2 or megatron")
    options = parser.parse_args(arguments)
    if jax.config.jax_num_cpu_devices != 8:
        jax.config.update("jax_num_cpu_devices", 8)  # has no say where there are accelerators

    _, example = make()
    step = asd.parallelize(train_step, method=options.method, donate_argnums=0)
    plan = step.plan(*example)
    print(plan, end="\n\n")
    compiled = step.lower(*example).compile()
    print(asd.compare(plan, compiled), end="\n\n")

    start = time.perf_counter()
    losses = run(step, options.steps, report_every=20)
    print(f"{options.steps} steps in {time.perf_counter() - start:.1f} s on {len(jax.devices())} devices")

    alone = run(jax.jit(train_step, donate_argnums=0), min(20, options.steps))
    worst = max(abs(a - b) / b for a, b in zip(losses, alone, strict=False))
    print(f"largest relative difference of loss to one device, first {len(alone)} steps: {worst:.1e}")


if __name__ == "__main__":
    main()
