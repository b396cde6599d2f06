"""The extra argument `samples`: task gradients of two further independent batches."""

from typing import Any

import jax
import jax.numpy as jnp

from mtl_jax.optim import _task_axis


def inner_products(
    method: str, samples: Any, num_tasks: int, active: jax.Array
) -> jax.Array:
    """Inner products [N, N] of the first sample's gradients and the second's.

    They are 0 for tasks that are not active, whatever the gradients are.

    Raises:
      ValueError: if there are no two samples, or they are not of N tasks.
    """
    if samples is None or len(samples) != 2:
        raise ValueError(
            f"{method} compares the gradients of two further batches: pass update(..., "
            "samples=(first, second)), two trees like the gradients"
        )
    for sample in samples:
        _task_axis.check_num_tasks(_task_axis.num_tasks(sample), num_tasks)
    products = _task_axis.inner_products(*samples)
    return jnp.where(jnp.outer(active, active), products, 0)
