"""Adam (Kingma and Ba, 2014, the efficient form at the end of section 2), in plain JAX and float32."""

from typing import Any

import jax
import jax.numpy as jnp

FIRST_DECAY = 0.9
SECOND_DECAY = 0.95
EPSILON = 1e-8


def adam(params: Any, mu: Any, nu: Any, gradients: Any, step: jax.Array, learning_rate: float) -> tuple[Any, Any, Any]:
    """Return the parameters and both moments after step number `step` (counted from 1).

    The gradients may be of a lower precision than the float32 parameters and moments.
    """
    count = step.astype(jnp.float32)
    rate = learning_rate * jnp.sqrt(1 - SECOND_DECAY**count) / (1 - FIRST_DECAY**count)
    gradients = jax.tree.map(lambda g: g.astype(jnp.float32), gradients)
    mu = jax.tree.map(lambda m, g: FIRST_DECAY * m + (1 - FIRST_DECAY) * g, mu, gradients)
    nu = jax.tree.map(lambda n, g: SECOND_DECAY * n + (1 - SECOND_DECAY) * jnp.square(g), nu, gradients)
    params = jax.tree.map(lambda p, m, n: p - rate * (m / (jnp.sqrt(n) + EPSILON)), params, mu, nu)
    return params, mu, nu
