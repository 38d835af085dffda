"""Proximal policy optimisation with its environment inside the step: pendulums, many at a time.

A step rolls the policy out by a scan over time, estimates advantages by a scan backwards, and makes some epochs of
updates over shuffled minibatches by a scan.

    autosharding verify examples/models/ppo.py:make --devices 8
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

ENVIRONMENTS, TIME, EPOCHS, MINIBATCHES = 32, 16, 2, 4
HIDDEN, DISCOUNT, SMOOTHING, CLIP = 64, 0.97, 0.95, 0.2
OPTIMIZER = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(3e-4, eps=1e-5))


class Pendulum(NamedTuple):
    """Angles from upright, radians, and angular velocities, radians per second; float32[environment]."""

    angle: jax.Array
    velocity: jax.Array


class Moment(NamedTuple):
    """What is kept of one time: all float32[environment, ...]."""

    seen: jax.Array
    torque: jax.Array
    likelihood: jax.Array  # logarithm
    value: jax.Array
    reward: jax.Array


class State(NamedTuple):
    params: Any
    optimizer: optax.OptState
    pendulum: Pendulum
    key: jax.Array


def init(key: jax.Array) -> dict[str, jax.Array]:
    one, two, three, four = jax.random.split(key, 4)
    return {
        "w1": jax.random.normal(one, (3, HIDDEN)) / np.sqrt(3),
        "b1": jnp.zeros(HIDDEN),
        "w2": jax.random.normal(two, (HIDDEN, HIDDEN)) / np.sqrt(HIDDEN),
        "b2": jnp.zeros(HIDDEN),
        "policy": 0.1 * jax.random.normal(three, (HIDDEN, 1)),
        "value": jax.random.normal(four, (HIDDEN, 1)) / np.sqrt(HIDDEN),
        "spread": jnp.zeros(()),
    }


def observe(p: Pendulum) -> jax.Array:
    return jnp.stack([jnp.cos(p.angle), jnp.sin(p.angle), p.velocity / 8], axis=-1)


def move(p: Pendulum, torque: jax.Array) -> tuple[Pendulum, jax.Array]:
    """The pendulum a twentieth of a second later, and the reward."""
    angle = (p.angle + jnp.pi) % (2 * jnp.pi) - jnp.pi
    reward = -(jnp.square(angle) + 0.1 * jnp.square(p.velocity) + 0.001 * jnp.square(torque))
    velocity = jnp.clip(p.velocity + 0.05 * (15 * jnp.sin(p.angle) + 3 * torque), -8, 8)
    return Pendulum(p.angle + 0.05 * velocity, velocity), reward


def policy(params: dict[str, jax.Array], seen: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean of the torque and value of what is seen."""
    x = jnp.tanh(seen @ params["w1"] + params["b1"])
    x = jnp.tanh(x @ params["w2"] + params["b2"])
    return (x @ params["policy"])[..., 0], (x @ params["value"])[..., 0]


def log_likelihood(params: dict[str, jax.Array], mean: jax.Array, torque: jax.Array) -> jax.Array:
    return -0.5 * jnp.square((torque - mean) / jnp.exp(params["spread"])) - params["spread"]


def rollout(params: Any, pendulum: Pendulum, key: jax.Array) -> tuple[Pendulum, Moment]:
    def act(pendulum: Pendulum, key: jax.Array) -> tuple[Pendulum, Moment]:
        seen = observe(pendulum)
        mean, value = policy(params, seen)
        torque = mean + jnp.exp(params["spread"]) * jax.random.normal(key, mean.shape)
        pendulum, reward = move(pendulum, torque)
        return pendulum, Moment(seen, torque, log_likelihood(params, mean, torque), value, reward)

    return jax.lax.scan(act, pendulum, jax.random.split(key, TIME))


def advantages(moments: Moment, last: jax.Array) -> jax.Array:
    """Generalised advantage estimates, float32[time, environment]."""

    def back(carry: tuple[jax.Array, jax.Array], m: Moment):
        gain, following = carry
        gain = m.reward + DISCOUNT * following - m.value + DISCOUNT * SMOOTHING * gain
        return (gain, m.value), gain

    return jax.lax.scan(back, (jnp.zeros_like(last), last), moments, reverse=True)[1]


def loss_fn(params: Any, batch: tuple[Moment, jax.Array]) -> jax.Array:
    m, advantage = batch
    mean, value = policy(params, m.seen)
    ratio = jnp.exp(log_likelihood(params, mean, m.torque) - m.likelihood)
    scaled = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    gain = jnp.minimum(ratio * scaled, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * scaled)
    return jnp.mean(0.5 * jnp.square(value - m.value - advantage) - gain) - 0.01 * params["spread"]


def train_step(state: State) -> tuple[State, dict[str, jax.Array]]:
    """Return the next state, and the mean of loss and reward."""
    key, acting, shuffling = jax.random.split(state.key, 3)
    pendulum, moments = rollout(state.params, state.pendulum, acting)
    gains = advantages(moments, policy(state.params, observe(pendulum))[1])
    data = jax.tree.map(lambda x: x.reshape(TIME * ENVIRONMENTS, *x.shape[2:]), (moments, gains))

    def update(carry: tuple[Any, Any], batch: Any):
        params, optimizer = carry
        loss, gradients = jax.value_and_grad(loss_fn)(params, batch)
        updates, optimizer = OPTIMIZER.update(gradients, optimizer, params)
        return (optax.apply_updates(params, updates), optimizer), loss

    def epoch(carry: tuple[Any, Any], key: jax.Array):
        order = jax.random.permutation(key, TIME * ENVIRONMENTS).reshape(MINIBATCHES, -1)
        return jax.lax.scan(update, carry, jax.tree.map(lambda x: x[order], data))

    carry = (state.params, state.optimizer)
    (params, optimizer), losses = jax.lax.scan(epoch, carry, jax.random.split(shuffling, EPOCHS))
    return State(params, optimizer, pendulum, key), {"loss": losses.mean(), "reward": moments.reward.mean()}


def make():
    """Return the step and its example arguments."""
    params = init(jax.random.key(0))
    random = np.random.default_rng(0)
    angle = random.uniform(-np.pi, np.pi, ENVIRONMENTS).astype(np.float32)
    velocity = random.uniform(-1, 1, ENVIRONMENTS).astype(np.float32)
    return train_step, (State(params, OPTIMIZER.init(params), Pendulum(angle, velocity), jax.random.key(1)),)
