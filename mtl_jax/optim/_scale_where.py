"""A different learning rate for some of the parameters."""

import jax
import optax

from mtl_jax.optim import _paths


def scale_where(
    chosen: _paths.Predicate, factor: float | jax.Array
) -> optax.GradientTransformation:
    """Multiplies the updates of some parameters by a factor.

    Placed after an optimizer, it multiplies the learning rate of these parameters. With
    the factor 0 they do not move, while the optimizer's moving averages are still
    updated. Placed before Adam it has no effect, since Adam divides by the size of the
    gradients.

    Args:
      chosen: selects parameters by their paths, such as
        "encoder/block5_conv2/conv/kernel".
      factor: a number, or a traced scalar as `by_step` gives it.

    Returns:
      A transformation without state.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mtl_jax import optim
      >>> tx = optax.chain(
      ...     optax.sgd(1.0),
      ...     optim.scale_where(lambda path: path.startswith("encoder/"), 0.1),
      ... )
      >>> params = {"encoder": {"w": jnp.ones(1)}, "head": jnp.ones(1)}
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> print(updates["encoder"]["w"], updates["head"])
      [-0.1] [-1.]
    """

    def scale(path, update):
        if chosen(_paths.name(path)):
            return (update * factor).astype(update.dtype)
        return update

    return optax.stateless(
        lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates)
    )
