"""Trees whose leaves carry a leading task axis, [N, *shape of the parameter]."""

import jax
import jax.numpy as jnp
import optax
from jax import lax


def num_tasks(
    updates: optax.Updates,
    params: optax.Params | None = None,
    expected: int | None = None,
) -> int | None:
    """Length of the task axis.

    Args:
      updates: gradients with a leading task axis.
      params: where they are given, the leaves' other axes are compared with them.
      expected: where it is given, the length that the axis must have.

    Returns:
      N, or None for a tree without leaves, such as the updates that
      `optax.multi_transform` hands to a group that no parameter belongs to.

    Raises:
      ValueError: if the leaves do not have one task axis in common.
    """
    leaves = jax.tree.leaves(updates)
    if not leaves:
        return None
    lengths = {leaf.shape[0] if leaf.ndim else None for leaf in leaves}
    plain = params is not None and any(
        leaf.shape[1:] != param.shape
        for leaf, param in zip(leaves, jax.tree.leaves(params), strict=True)
    )
    if len(lengths) > 1 or None in lengths or plain:
        raise ValueError(
            "every gradient must have a leading task axis, [N, *shape of its "
            f"parameter], got shapes {sorted({leaf.shape for leaf in leaves})}; what "
            "takes in task gradients stands first in an optax.chain"
        )
    (length,) = lengths
    if expected not in (None, length):
        raise ValueError(
            f"the gradients are of {length} tasks, the optimizer is for {expected}"
        )
    return length


def gram(updates: optax.Updates, n: int) -> jax.Array:
    """Inner products of the tasks' gradients, [n, n], at least float32."""

    def inner_products(leaf):
        axes = tuple(range(1, leaf.ndim))
        return lax.dot_general(
            leaf,
            leaf,
            ((axes, axes), ((), ())),
            precision=lax.Precision.HIGHEST,
            preferred_element_type=_accumulator(leaf),
        )

    return sum(map(inner_products, jax.tree.leaves(updates)), jnp.zeros((n, n)))


def squared_norms(leaves: list[jax.Array], n: int) -> jax.Array:
    """Squared norm of each task's gradient, [n], at least float32."""
    return sum(
        (
            jnp.square(leaf.astype(_accumulator(leaf))).sum(tuple(range(1, leaf.ndim)))
            for leaf in leaves
        ),
        jnp.zeros(n),
    )


def scale(weights: jax.Array, updates: optax.Updates) -> optax.Updates:
    """Multiplies task k's gradient by weights[k]; dtypes stay."""
    return jax.tree.map(
        lambda leaf: _weighted(weights, leaf).astype(leaf.dtype), updates
    )


def combine(weights: jax.Array, updates: optax.Updates) -> optax.Updates:
    """sum_k weights[k] g_k without the task axis, added in float32; dtypes stay."""
    # A product and a sum rather than a matrix product: XLA makes one pass of them, and
    # no accelerator rounds their operands to fewer bits.
    return jax.tree.map(
        lambda leaf: _weighted(weights, leaf).sum(0).astype(leaf.dtype), updates
    )


def add_up(updates: optax.Updates) -> optax.Updates:
    """sum_k g_k without the task axis, added in float32; dtypes stay."""
    return jax.tree.map(
        lambda leaf: leaf.sum(0, dtype=_accumulator(leaf)).astype(leaf.dtype), updates
    )


def select(which: jax.Array, chosen: optax.OptState, other: optax.OptState):
    """Task k's part of `chosen` where which[k], else its part of `other`."""
    return jax.tree.map(lambda a, b: jnp.where(_along(which, a), a, b), chosen, other)


def init_stacked(
    tx: optax.GradientTransformation, params: optax.Params, n: int
) -> optax.OptState:
    """Fresh states of `tx` for n tasks, stacked on a leading axis."""
    return jax.vmap(lambda _: tx.init(params), axis_size=n)(jnp.arange(n))


def _accumulator(leaf):
    return jnp.promote_types(leaf.dtype, jnp.float32)


def _along(vector, leaf):
    return vector.reshape(-1, *(1,) * (leaf.ndim - 1))


def _weighted(weights, leaf):
    return _along(weights, leaf) * leaf.astype(_accumulator(leaf))
