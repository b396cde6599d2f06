"""Norms of the task gradients and the angles between them."""

import jax
import optax

from mtl_jax.optim import _task_axis


def interference(updates: optax.Updates) -> tuple[jax.Array, jax.Array]:
    """Norms of the task gradients, and the cosines of the angles between them.

    Two tasks with a negative cosine are in conflict (Yu et al. 2020, section 2.2). The
    range of norms is that of `from_gram`.

    Args:
      updates: gradients with a leading task axis.

    Returns:
      Norms [N] and cosines [N, N], at least float32; 0 for a gradient of zero.

    Raises:
      ValueError: if the leaves do not have one task axis in common, or there are none.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtl_jax import optim
      >>> norms, cosines = optim.interference(jnp.array([[3.0, 4.0], [0.0, -2.0]]))
      >>> norms.tolist()
      [5.0, 2.0]
      >>> round(float(cosines[0, 1]), 3)
      -0.8
    """
    if _task_axis.num_tasks(updates) is None:
        raise ValueError("there are no gradients in an empty tree")
    return _task_axis.norms_and_cosines(_task_axis.gram(updates))
