"""Task weights on the probability simplex, which methods move from step to step."""

import jax
import jax.numpy as jnp
import optax


def start(num_tasks: int) -> jax.Array:
    """Equal weights [N] of sum 1."""
    return jnp.ones(num_tasks) / num_tasks


def of_active(weights: jax.Array, active: jax.Array) -> jax.Array:
    """The weights [N] of the active tasks, scaled to sum 1; 0 for the others.

    They are equal if the others have all the weight.
    """
    own = jnp.where(active, weights, 0)
    own = jnp.where(own.sum() > 0, own, active)
    return own / jnp.where(active.any(), own.sum(), 1)


def merge(own: jax.Array, weights: jax.Array, active: jax.Array) -> jax.Array:
    """The weights [N] after a step of the active tasks' own, see `of_active`.

    The sum over the active tasks and the others' weights stay.
    """
    total = jnp.where(active, weights, 0).sum()
    return jnp.where(active, own * total, weights).astype(weights.dtype)


def project(weights: jax.Array, active: jax.Array) -> jax.Array:
    """The nearest point of the active tasks' simplex; 0 for the others."""
    weights = jnp.where(active, weights, 0)
    # So low that a task has no part in the point.
    low = weights.min() - jnp.abs(weights.min()) - 2
    point = optax.projections.projection_simplex(jnp.where(active, weights, low))
    return jnp.where(active, point, 0)
