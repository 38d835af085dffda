"""A stack of equal dense layers, relu between them, mean square error: the smallest thing worth planning."""

import math
import re
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from autosharding.zoo.layers import cast, maybe_remat
from autosharding.zoo.model import Model, make_model
from autosharding.zoo.weights import Weight, zeros


@dataclass(frozen=True, slots=True)
class MLP:
    """One size; `batch` (rows) is what `build` takes when the user says nothing."""

    hidden: int
    layers: int
    batch: int = 1024


SIZES = {"tiny": MLP(64, 3, batch=16), "4096x6": MLP(4096, 6)}
DEFAULT = "4096x6"


def parse_size(size: str) -> MLP | None:
    """Return the size written HIDDENxLAYERS, None if it is not written so."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", size)
    return MLP(int(match[1]), int(match[2])) if match else None


def dense(p: Any, x: jax.Array) -> jax.Array:
    """Return one layer, [b, h] to [b, h]."""
    return x @ cast(p["w"]) + cast(p["b"])


def hidden_layer(p: Any, x: jax.Array) -> jax.Array:
    """Return one layer with its relu, [b, h] to [b, h]."""
    return jax.nn.relu(dense(p, x))


def build_mlp(name: str, c: MLP, *, remat: bool) -> Model:
    """Return the train step of one size; a batch is {x, y}, float32[b, h]."""
    layer = maybe_remat(hidden_layer, remat)
    weight = Weight((c.hidden, c.hidden), math.sqrt(2 / c.hidden))
    weights = {"layers": [{"w": weight, "b": zeros(c.hidden)}] * c.layers}

    def loss(params: Any, stats: Any, batch: Any) -> tuple[jax.Array, Any]:
        """Return the mean square error."""
        x = cast(batch["x"])
        for p in params["layers"][:-1]:
            x = layer(p, x)
        x = dense(params["layers"][-1], x).astype(jnp.float32)
        return jnp.mean(jnp.square(x - batch["y"])), stats

    def make_batch(key: jax.Array) -> dict[str, jax.Array]:
        """Return random rows and random targets."""
        x, y = jax.random.normal(key, (2, c.batch, c.hidden), jnp.float32)
        return {"x": x, "y": y}

    return make_model(name, loss, weights, make_batch)
