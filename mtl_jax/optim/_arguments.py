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


def require_range(name: str, value: Any, low: float, high: float = jnp.inf) -> None:
    """Raises a ValueError unless a number, or all of an array, lies in a closed range.

    As `require`, it knows nothing of a traced value.
    """
    values = jnp.asarray(value)
    possible = f"lie between {low} and {high}"
    if high == jnp.inf:
        possible = f"be at least {low}"
    require(
        ((values >= low) & (values <= high)).all(),
        f"{name} must {possible}, got {value}",
    )


def require_positive(name: str, value: Any) -> None:
    """Raises a ValueError unless a number, or all of an array, is positive.

    As `require`, it knows nothing of a traced value.
    """
    require((jnp.asarray(value) > 0).all(), f"{name} must be positive, got {value}")


def one_per_task(name: str, values: Any, num_tasks: int) -> jax.Array:
    """The values as an array [N].

    Raises:
      ValueError: if there is not one for each task.
    """
    values = jnp.asarray(values)
    require(
        values.shape == (num_tasks,),
        f"{name} {values.shape} must be one number per task, ({num_tasks},)",
    )
    return values


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
    vector = one_per_task("pref_vector", vector, len(active))
    return jnp.where(active, vector, 0).astype(dtype)
