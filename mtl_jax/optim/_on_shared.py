"""An aggregator for the parameters that the tasks share."""

import jax
import optax
from optax.experimental import aggregating

from mtl_jax.optim import _paths
from mtl_jax.optim._weighting import weighted_sum


def on_shared(
    aggregator: aggregating.Aggregator, shared: _paths.Predicate
) -> aggregating.Aggregator:
    """Aggregates the gradients of shared parameters, and sums those of all others.

    A parameter of one task alone, such as those of its head, has a gradient from no
    other task: the sum is its own gradient, whatever weight the aggregator gives the
    task. TorchJD's `mtl_backward` does the same.

    This differs from the argument `shared` of `from_gram` and `gradnorm`, where the
    shared parameters decide on the weights, and the weights are those of all
    parameters.

    All arguments of `update` are passed on. The aggregator sees the tree of parameters
    with an `optax.MaskedNode` in the place of those that are not shared.

    Args:
      aggregator: for the shared parameters.
      shared: selects them by their paths, such as "encoder/block5_conv2/conv/kernel".

    Returns:
      An `optax.experimental.aggregating.Aggregator`.

    Raises:
      ValueError: by `init` if `shared` selects no parameter; by `update` if the
        gradients have no task axis.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from mtl_jax import optim
      >>> tx = optax.chain(
      ...     optim.on_shared(
      ...         optim.pcgrad(jax.random.key(0)), lambda path: path == "encoder"
      ...     ),
      ...     optax.sgd(1.0),
      ... )
      >>> params = {"encoder": jnp.zeros(2), "head": jnp.zeros(2)}
      >>> gradients = {
      ...     "encoder": jnp.array([[1.0, 0.0], [-1.0, 1.0]]),
      ...     "head": jnp.array([[3.0, 0.0], [0.0, 5.0]]),
      ... }
      >>> updates, _ = tx.update(gradients, tx.init(params), params)
      >>> print(updates["encoder"], updates["head"])
      [-0.5 -1.5] [-3. -5.]
    """

    def labels(tree):
        _paths.choose(tree, shared)
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "shared" if shared(_paths.name(path)) else "own", tree
        )

    tx = optax.partition({"shared": aggregator, "own": weighted_sum()}, labels)

    def update_fn(per_elt_updates, state, params=None, **extra_args):
        return tx.update(per_elt_updates, state, params, **extra_args)

    return aggregating.Aggregator(tx.init, update_fn)
