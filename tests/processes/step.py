"""A step with what is hard for stages on several processes: tied weights, clipping by the norm of all, dropout."""

import time

import jax
import jax.numpy as jnp
import numpy as np

WORDS, WIDTH, LAYERS, EXAMPLES, LENGTH = 16, 8, 4, 8, 4


def init(key):
    embed, *layers = jax.random.split(key, 1 + LAYERS)
    return {
        "embed": jax.random.normal(embed, (WORDS, WIDTH)),
        "layers": [jax.random.normal(k, (WIDTH, WIDTH)) / WIDTH for k in layers],
        "key": jax.random.fold_in(key, 1),
        "count": jnp.int32(0),
    }


def train_step(state, tokens):
    weights = {"embed": state["embed"], "layers": state["layers"]}

    def loss(w):
        h = w["embed"][tokens]
        h = jnp.where(jax.random.bernoulli(state["key"], 0.9, h.shape), h, 0.0)
        for layer in w["layers"]:
            h = h + jnp.tanh(h @ layer)
        logs = jax.nn.log_softmax(h @ w["embed"].T)
        return -jnp.take_along_axis(logs, tokens[..., None], -1).mean()

    value, gradients = jax.value_and_grad(loss)(weights)
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradients)))
    scale = jnp.minimum(1.0, 0.1 / norm)
    weights = jax.tree.map(lambda w, g: w - scale * g, weights, gradients)
    key = jax.random.fold_in(state["key"], state["count"])
    return {**weights, "key": key, "count": state["count"] + 1}, (value, norm)


def batch(step):
    return np.random.default_rng(step).integers(WORDS, size=(EXAMPLES, LENGTH)).astype(np.int32)


def run(step, state, steps, late=0.0):
    """[loss, norm] of some steps, and the state after them; nothing is waited for on the way."""
    found = []
    for i in range(steps):
        time.sleep(late)
        state, metrics = step(state, batch(i))
        found.append(metrics)
    return [[float(m) for m in metrics] for metrics in found], state
