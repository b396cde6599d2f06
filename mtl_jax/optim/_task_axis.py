"""Trees whose leaves carry a leading task axis, [N, *shape of the parameter]."""

import functools

import jax
import jax.numpy as jnp
import optax
from jax import lax

# Squared norms from here to its reciprocal are taken as they are. Those beyond are near
# the ends of float32's range, or at them, where squares of 1e20 and 1e-20 are.
_SMALLEST_SQUARE = 2.0**-60


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


def gram(
    updates: optax.Updates, n: int, active: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Inner products of the tasks' gradients, at any scale of each.

    The gradients are read once. Where a squared norm is outside of 2^-60 to 2^60, they
    are read again for their largest absolute values, and once more for the inner
    products of gradients that are scaled to values near 1; of these a copy is made.

    Args:
      updates: gradients g_k with a leading task axis.
      n: its length.
      active: bool [n], or None for all. Where it is False the gradient is zero, and
        that is no reason to look at its scale.

    Returns:
      Inner products [n, n], at least float32, of 2^-e_k g_k, and the e_k, int32 [n]: 0
      but where gradients were scaled.
    """
    leaves = jax.tree.leaves(updates)
    products = _inner_products(leaves, n)

    def rescaled():
        exponents = _exponents(leaves, n)
        return _inner_products(_scaled_down(leaves, exponents), n), exponents

    return lax.cond(
        _in_range(jnp.diagonal(products), active),
        lambda: (products, jnp.zeros(n, jnp.int32)),
        rescaled,
    )


def norms(
    leaves: list[jax.Array], n: int, active: jax.Array | None = None
) -> jax.Array:
    """Norm of each task's gradient, [n], at least float32; arguments as for `gram`."""
    squares = _squared_norms(leaves, n)

    def rescaled():
        exponents = _exponents(leaves, n)
        squares = _squared_norms(_scaled_down(leaves, exponents), n)
        return jnp.ldexp(jnp.sqrt(squares), exponents)

    return lax.cond(_in_range(squares, active), lambda: jnp.sqrt(squares), rescaled)


def scale(weights: jax.Array, updates: optax.Updates) -> optax.Updates:
    """Multiplies task k's gradient by weights[k]; dtypes stay."""
    return jax.tree.map(
        lambda leaf: _weighted(weights, leaf).astype(leaf.dtype), updates
    )


def combine(
    weights: jax.Array, updates: optax.Updates, exponents: jax.Array | None = None
) -> optax.Updates:
    """sum_k weights[k] g_k without the task axis, added in float32; dtypes stay.

    Args:
      weights: [N].
      updates: gradients g_k with a leading task axis.
      exponents: int [N]; where they are given, 2^exponents[k] g_k takes g_k's place,
        for weights that have no float32.
    """

    # A product and a sum rather than a matrix product: XLA makes one pass of them, and
    # no accelerator rounds their operands to fewer bits.
    def combined(leaf):
        wide = leaf
        if exponents is not None:
            wide = _weighted(jnp.ldexp(jnp.float32(1), exponents), leaf)
        return _weighted(weights, wide).sum(0).astype(leaf.dtype)

    return jax.tree.map(combined, updates)


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


def _inner_products(leaves, n):
    def of_leaf(leaf):
        axes = tuple(range(1, leaf.ndim))
        return lax.dot_general(
            leaf,
            leaf,
            ((axes, axes), ((), ())),
            precision=lax.Precision.HIGHEST,
            preferred_element_type=_accumulator(leaf),
        )

    return sum(map(of_leaf, leaves), jnp.zeros((n, n)))


def _squared_norms(leaves, n):
    return sum(
        (
            jnp.square(leaf.astype(_accumulator(leaf))).sum(tuple(range(1, leaf.ndim)))
            for leaf in leaves
        ),
        jnp.zeros(n),
    )


def _in_range(squares, active):
    """Whether the squares are right as they are: neither over- nor underflown."""
    right = (squares >= _SMALLEST_SQUARE) & (squares <= 1 / _SMALLEST_SQUARE)
    return (right if active is None else right | ~active).all()


def _exponents(leaves, n):
    """For each task the e that has its largest absolute value in [2^(e-1), 2^e)."""
    maxima = functools.reduce(
        jnp.maximum,
        (
            jnp.abs(leaf.astype(_accumulator(leaf))).max(
                tuple(range(1, leaf.ndim)), initial=0
            )
            for leaf in leaves
        ),
        jnp.zeros(n),
    )
    # At the ends of the range 2^-e would have no float of full precision.
    limit = jnp.finfo(maxima.dtype).maxexp - 2
    return jnp.clip(jnp.frexp(maxima)[1], -limit, limit).astype(jnp.int32)


def _scaled_down(leaves, exponents):
    """2^-exponents[k] g_k: exact, and at least float32."""
    return [
        _weighted(jnp.ldexp(jnp.ones((), _accumulator(leaf)), -exponents), leaf)
        for leaf in leaves
    ]


def _accumulator(leaf):
    return jnp.promote_types(leaf.dtype, jnp.float32)


def _along(vector, leaf):
    return vector.reshape(-1, *(1,) * (leaf.ndim - 1))


def _weighted(weights, leaf):
    return _along(weights, leaf) * leaf.astype(_accumulator(leaf))
