"""Aligned-MTL: the gradients with all singular values made equal."""

from typing import Literal

import jax.numpy as jnp
import optax

from mtl_jax.optim import _arguments, _task_axis
from mtl_jax.optim._from_gram import WeightedAggregator, from_gram


def aligned_mtl(
    pref_vector: _arguments.Preferences = None,
    scale_mode: Literal["min", "median", "rmse"] = "min",
) -> WeightedAggregator:
    """Sums the gradients after all their singular values have been made equal.

    Let U S V^T be the singular value decomposition of the gradients [N, D]. They are
    replaced by s U V^T, whose condition number is 1, and summed with the weights p.

    U and S are found from the eigenvalues S^2 of the Gram matrix. Those below N eps
    times the largest count as zero, as in the official code: in float32 and for N = 4,
    a singular value below 1/1400 of the largest. Directions of such values are left
    out, and so are gradients of zero. Of opposite gradients g and -g, the aligned ones
    are opposite, too.

    The range of norms is that of `from_gram`, and so is the extra argument `active`.

    Args:
      pref_vector: p, [N], not negative. By default it is 1 / n for n active tasks, as
        in TorchJD. The official code and LibMTL take 1, which is N times as much.
      scale_mode: what s^2 is of the eigenvalues that are not zero. `min` is the default
        of the official code and of TorchJD, and what LibMTL does; `rmse` is the mean.
        Of an even number, `median` is the lower of the two in the middle, as in
        PyTorch.

    Returns:
      A `WeightedAggregator`.

    Raises:
      ValueError: if `pref_vector` is not a vector of such or `scale_mode` is another;
        by `update` if the length of `pref_vector` is not N.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mtl_jax import optim
      >>> tx = optax.chain(optim.aligned_mtl(), optax.sgd(1.0))
      >>> params = jnp.zeros(2)
      >>> gradients = jnp.array([[4.0, 0.0], [0.0, 1.0]])  # One row for each task.
      >>> updates, _ = tx.update(gradients, tx.init(params), params)
      >>> [round(float(x), 3) for x in updates]
      [-0.5, -0.5]

    References:
      Senushkin et al., `Independent Component Alignment for Multi-Task Learning
      <https://arxiv.org/abs/2305.19000>`_, CVPR 2023, algorithm 1.
    """
    pref_vector = _arguments.checked_preferences(pref_vector)
    if scale_mode not in ("min", "median", "rmse"):
        raise ValueError(f"scale_mode must be min, median or rmse, got {scale_mode!r}")

    def weights_fn(gram, state, *, active, **extra_args):
        del extra_args
        pref = _arguments.preferences(pref_vector, active, gram.dtype)
        largest = jnp.diagonal(gram).max()
        # Ascending; B does not depend on the scale of the gradients.
        values, vectors = jnp.linalg.eigh(gram / jnp.where(largest > 0, largest, 1))
        is_kept = values > values[-1] * _task_axis.rounding(gram)
        values = jnp.where(is_kept, values, 0)
        rank = is_kept.sum()
        square = {
            "min": values[-rank],
            "median": values[len(values) - rank + (rank - 1) // 2],
            "rmse": values.sum() / jnp.maximum(rank, 1),
        }[scale_mode]
        along = (vectors * pref[:, None]).sum(0) * _task_axis.inverse(jnp.sqrt(values))
        return jnp.sqrt(square) * (vectors * along).sum(1), state

    return from_gram(weights_fn, optax.init_empty_state)
