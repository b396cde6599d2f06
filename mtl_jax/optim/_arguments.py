"""Arguments of methods, checked when the method is made."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

Preferences = Sequence[float] | jax.Array | None


def require(condition: Any, sentence: str) -> None:
    """Raises a ValueError with the sentence unless the condition holds.

    Nothing is known of a traced condition, as `optax.inject_hyperparams` makes it.
    """
    if not isinstance(condition, jax.core.Tracer) and not condition:
        raise ValueError(sentence)


def checked_preferences(pref_vector: Preferences) -> jax.Array | None:
    """A preference vector as an array, or None.

    Raises:
      ValueError: if it is not a vector, or has negative or no positive elements.
    """
    if pref_vector is None:
        return None
    vector = jnp.asarray(pref_vector)
    require(
        vector.ndim == 1, f"pref_vector has shape {vector.shape}, it must be a vector"
    )
    require(
        (vector >= 0).all() & (vector > 0).any(),
        f"pref_vector is {pref_vector}, it must have no negative and a positive number",
    )
    return vector


def preferences(
    vector: jax.Array | None, active: jax.Array, dtype: jax.typing.DTypeLike
) -> jax.Array:
    """The preferences [N] of the active tasks, 0 for the others.

    Args:
      vector: from `checked_preferences`; for None, all active tasks share a sum of 1.
      active: bool [N].
      dtype: of the result.

    Raises:
      ValueError: if there is not one preference for each task.
    """
    if vector is None:
        return active / jnp.maximum(active.sum(), 1).astype(dtype)
    require(
        vector.shape == active.shape,
        f"pref_vector {vector.shape} must be one number per task, {active.shape}",
    )
    return jnp.where(active, vector, 0).astype(dtype)
