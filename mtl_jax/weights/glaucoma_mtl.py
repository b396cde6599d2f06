"""Checkpoints of the original authors' PyTorch program."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
from scipy.special import expit

from mtl_jax.inference.vcdr import VcdrClassifier
from mtl_jax.weights import names, tensors

ARCHITECTURE = "glaucoma_mtl"


@dataclasses.dataclass(frozen=True)
class OriginalNetwork:
    """A network that the authors' program trained.

    Attributes:
      params: float32 NumPy parameters of a `MultiTaskUNet` with the encoder `vgg13` and
        the normalisation `batch_no_average`.
      classifier: classifier on the vertical cup-to-disc ratio; None if the file has no
        readable one.
      source: name of the file.
      epoch: epoch of the checkpoint; None if the file does not tell.
      n_iter: iteration of the checkpoint, likewise.
      ignored: names of the file's tensors that do not belong to the network.
    """

    params: Any
    classifier: VcdrClassifier | None
    source: str
    epoch: int | None
    n_iter: int | None
    ignored: tuple[str, ...]


def import_checkpoint(source: pathlib.Path) -> OriginalNetwork:
    """Reads a checkpoint of the original program.

    Args:
      source: file that its `torch.save` wrote: either the state dict, or a dict of
        `model_state_dict`, `classifier`, `epoch`, `n_iter` and perhaps
        `optimizer_state_dict`, which is not read. See `tensors.read_checkpoint`.

    Raises:
      UserError: if the file cannot be read or is of another architecture.
    """
    source = pathlib.Path(source).expanduser()
    found, others = tensors.read_checkpoint(source)
    layers = names.glaucoma_mtl()
    names.check(source, ARCHITECTURE, found, layers)
    params: dict[str, Any] = {}
    for path, layer in layers.items():
        *parents, last = path.split("/")
        node = params
        for name in parents:
            node = node.setdefault(name, {})
        kernel, bias, *norm = (found[name] for name, _ in layer)
        if norm:
            scale, shift = norm
            kernel = np.ascontiguousarray(kernel.transpose(2, 3, 1, 0))
            node[last] = {
                "conv": {"kernel": kernel, "bias": bias},
                "norm": {"scale": scale, "bias": shift},
            }
        else:
            # A 1x1 convolution is a dense layer, [out, in, 1, 1].
            node[last] = {"kernel": kernel.reshape(len(kernel), -1).T, "bias": bias}
    used = {name for layer in layers.values() for name, _ in layer}
    return OriginalNetwork(
        params=params,
        classifier=_classifier(others.get("classifier")),
        source=source.name,
        epoch=_whole_number(others.get("epoch")),
        n_iter=_whole_number(others.get("n_iter")),
        ignored=tuple(sorted(set(found) - used)),
    )


def _classifier(pickled: Any) -> VcdrClassifier | None:
    """Reads the two fitted numbers of scikit-learn's LogisticRegression."""
    state = getattr(pickled, "state", None)
    if not isinstance(state, dict):
        return None
    try:
        (coefficient,) = tensors.read_numbers(state["coef_"])
        (intercept,) = tensors.read_numbers(state["intercept_"])
        classes = tensors.read_numbers(state["classes_"])
    # A file may hold anything under these names.
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError):
        return None
    is_right = classes == [0, 1] and np.isfinite([coefficient, intercept]).all()
    if not is_right:
        return None
    # In that program the ratio of empty masks is 0, and its file has no other prior.
    return VcdrClassifier(coefficient, intercept, prior=float(expit(intercept)))


def _whole_number(value: Any) -> int | None:
    try:
        (number,) = tensors.read_numbers(value)
        return int(number)
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError):
        return None
