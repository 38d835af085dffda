"""The nouns of the zoo, `Model` and `State`, and how a loss becomes a model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from autosharding.zoo.adam import adam
from autosharding.zoo.weights import abstract, count, draw


class State(NamedTuple):
    """What a train step carries along; `params`, `mu` and `nu` are trees of one structure, all float32."""

    step: Any  # int32[], steps done
    params: Any  # master weights
    mu: Any  # Adam's first moments
    nu: Any  # Adam's second moments
    stats: Any  # running statistics of batch norm; {} for models without


@dataclass(frozen=True, slots=True)
class Model:
    """A train step and the shapes of its arguments."""

    name: str
    step: Callable[[State, Any], tuple[State, jax.Array]]  # (state, batch) -> (state, float32[] loss)
    args: tuple[Any, Any]  # (state, batch), of `jax.ShapeDtypeStruct`s
    parameters: int  # numbers in `State.params`
    init: Callable[[jax.Array], State]  # typed key -> state, allocated
    make_batch: Callable[[jax.Array], Any]  # typed key -> batch of random data, allocated


def make_model(
    name: str,
    loss: Callable[[Any, Any, Any], tuple[jax.Array, Any]],
    weights: Any,
    make_batch: Callable[[jax.Array], Any],
    *,
    stats: Any = None,
    learning_rate: float = 1e-3,
) -> Model:
    """Return the model that trains `loss(params, stats, batch) -> (loss, stats)` by Adam.

    `weights` and `stats` are trees of `Weight`s.
    """
    stats = {} if stats is None else stats

    def train_step(state: State, batch: Any) -> tuple[State, jax.Array]:
        """Return the state after one step of Adam, and the loss before it."""
        evaluate = jax.value_and_grad(loss, has_aux=True)
        (value, new_stats), gradients = evaluate(state.params, state.stats, batch)
        step = state.step + 1
        params, mu, nu = adam(state.params, state.mu, state.nu, gradients, step, learning_rate)
        return State(step, params, mu, nu, new_stats), value

    def init(key: jax.Array) -> State:
        """Return the first state."""
        params = draw(weights, key)
        mu, nu = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        return State(jnp.zeros((), jnp.int32), params, mu, nu, draw(stats, key))

    shapes = abstract(weights)
    state = State(jax.ShapeDtypeStruct((), jnp.int32), shapes, shapes, shapes, abstract(stats))
    batch = jax.eval_shape(lambda: make_batch(jax.random.key(0)))
    return Model(name, train_step, (state, batch), count(weights), init, make_batch)
