"""Multi-task learning of glaucoma assessment with one optax state per task."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Sequence

    from mtl_jax.evaluation.library import Predictor


def load(
    workdir: str | pathlib.Path | Sequence[str | pathlib.Path] | None = None,
) -> Predictor:
    """Reads a trained network that is then called with photographs.

    Example:
      network = mtl_jax.load()
      result = network("eye.jpg")

    Args:
      workdir: folder of a run or of an export, or a list of those that are averaged; by
        default, the network in the package.

    Returns:
      A function of a photograph or a list of them, see `evaluation.library.Predictor`.
      It uses the best checkpoint, and the calibration if there is one.

    Raises:
      UserError: if the network cannot be read, or the extra `data` is not installed.
    """
    # Importing mtl_jax stays fast, and needs no extra.
    from mtl_jax import errors

    try:
        from mtl_jax.evaluation import library

        return library.load(workdir)
    except ModuleNotFoundError as error:
        if missing := errors.missing_extra(error):
            raise errors.UserError(missing) from error
        raise
