"""Another learning rate for some of the parameters."""

import jax
import optax

from mtl_jax.optim import _paths


def scale_where(
    chosen: _paths.Predicate, factor: float | jax.Array
) -> optax.GradientTransformation:
    """Multiplies the updates of some parameters by a factor.

    After an optimizer it multiplies the learning rate of these parameters; with the
    factor 0 they stay exactly where they are, while the optimizer's moving averages go
    on. (Before Adam it would do nothing, which divides by the gradients' size.)

    Args:
      chosen: says of a parameter, by its path such as
        "encoder/block5_conv2/conv/kernel", whether its updates are multiplied.
      factor: a number, or a traced one as from `by_step`.

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
