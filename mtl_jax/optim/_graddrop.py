"""GradDrop: each element of the update has one sign, drawn by the tasks' majority."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.experimental import aggregating

from mtl_jax.optim import _arguments, _task_axis


class GradDropState(NamedTuple):
    """State of `graddrop`.

    Attributes:
      count: int32, steps made; with the key it gives the next step's random numbers.
    """

    count: jax.typing.ArrayLike


def graddrop(
    key: jax.Array,
    f: Callable[[jax.Array], jax.Array] | None = None,
    leak: jax.typing.ArrayLike | None = None,
) -> aggregating.Aggregator:
    """Draws a sign for each element, and sums the gradients that have it there.

    For each element of the parameters, P = (1 + sum_k g_k / sum_k |g_k|) / 2 is the
    purity of the positive sign, and U is drawn evenly from [0, 1). If f(P) > U, the
    negative gradients of this element are dropped, and if f(P) < U the positive ones. A
    share of what is dropped leaks through. Where all gradients are 0, so is the update.

    LibMTL applies the rule to the gradients of the shared features, with the sum over
    the batch and the sign of the features in P. Here, as in TorchJD, it is applied to
    the gradients of the parameters, lines 10 to 15 of algorithm 1.

    `update` takes the extra argument `active`, bool [N] (None for all). The gradient of
    a task that is not active is not read.

    Args:
      key: for U, see `pcgrad`. It is folded anew for each leaf. Keys of other
        implementations, such as `jax.random.key(0, impl="rbg")`, may be faster to draw
        with.
      f: increasing function of P, [0, 1] to [0, 1], element by element; None for P.
      leak: [N], from 0 to 1, the share of each task that is never dropped. None for 0.
        `optax.inject_hyperparams` needs `static_args=("key", "f")`.

    Returns:
      An `optax.experimental.aggregating.Aggregator`.

    Raises:
      ValueError: if `leak` is out of range; by `update` if the gradients have no task
        axis or there is not one leak per task.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from mtl_jax import optim
      >>> tx = optim.graddrop(jax.random.key(0))
      >>> params = jnp.zeros(3)
      >>> gradients = jnp.array([[1.0, 1.0, -2.0], [2.0, -1.0, -1.0]])
      >>> updates, state = tx.update(gradients, tx.init(params), params)
      >>> print(updates[0], updates[2], abs(updates[1]))  # Of the two, one is dropped.
      3.0 -3.0 1.0

    References:
      Chen et al., `Just Pick a Sign: Optimizing Deep Multitask Models with Gradient
      Sign Dropout <https://arxiv.org/abs/2010.06808>`_, NeurIPS 2020, algorithm 1.
    """
    if leak is not None:
        _arguments.require_range("leak", leak, 0, 1)

    def init_fn(params):
        del params
        return GradDropState(jnp.zeros((), jnp.int32))

    def update_fn(per_elt_updates, state, params=None, *, active=None, **extra_args):
        del extra_args
        n = _task_axis.num_tasks(per_elt_updates, params)
        if n is None:
            return per_elt_updates, state
        shares = None if leak is None else _arguments.one_per_task("leak", leak, n)
        per_elt_updates = _task_axis.of_active(active, per_elt_updates)

        def of_leaf(leaf, uniform):
            # One by one: of all rows at once XLA would store the parts on a CPU.
            rows = [_task_axis.widened(leaf[k]) for k in range(len(leaf))]
            positive, negative = _totals(rows)
            size = positive - negative
            purity = positive / jnp.where(size == 0, 1, size)
            purity = purity if f is None else f(purity)
            of_positive, of_negative = 0, 0
            if shares is not None:
                of_positive, of_negative = _totals(
                    [shares[k] * row for k, row in enumerate(rows)]
                )
            kept = jnp.where(purity > uniform, positive, of_positive)
            kept += jnp.where(purity < uniform, negative, of_negative)
            # The purity of what is not finite would drop it.
            kept = jnp.where(jnp.isfinite(size), kept, jnp.nan)
            return kept.astype(leaf.dtype)

        uniforms = _uniforms(key, state.count, per_elt_updates)
        updates = jax.tree.map(of_leaf, per_elt_updates, uniforms)
        return updates, GradDropState(optax.safe_increment(state.count))

    return aggregating.Aggregator(init_fn, update_fn)


def _totals(rows: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The sums of what is positive in rows, and of what is negative."""
    return (
        functools.reduce(jnp.add, [jnp.maximum(row, 0) for row in rows]),
        functools.reduce(jnp.add, [jnp.minimum(row, 0) for row in rows]),
    )


def _uniforms(key, count, updates):
    """Random numbers in [0, 1) for each parameter."""
    leaves, structure = jax.tree.flatten(updates)
    keys = jax.random.split(jax.random.fold_in(key, count), len(leaves))
    return structure.unflatten(
        jax.random.uniform(k, leaf.shape[1:], _task_axis.accumulator(leaf))
        for k, leaf in zip(keys, leaves, strict=True)
    )
