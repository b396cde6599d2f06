"""The tasks as data: what the network must compute for each, and its loss.

A task is a `Task`; those of the method, in its order glaucoma, optic disc, optic cup,
fovea, are made by `build`. docs/extending.md adds one.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import jax

from mtl_jax import losses

Batch = Mapping[str, jax.Array]
Kind = Literal["classification", "segmentation", "localisation"]

NAMES = ("glaucoma", "disc", "cup", "fovea")


@dataclasses.dataclass(frozen=True)
class Task:
    """One task of the network.

    Attributes:
      name: of the task and of the network's head for it.
      kind: classification uses the encoder alone, the others the decoder as well.
      labels: columns of the batch's `has_label`, all of which an image must have to
        count for the task.
      loss: maps the head's logits and the batch to one loss per image, [B]. Images
        without the label are left out later, but their targets must be finite.
    """

    name: str
    kind: Kind
    labels: tuple[int, ...]
    loss: Callable[[jax.Array, Batch], jax.Array]

    @property
    def is_dense(self) -> bool:
        """Whether the head predicts a map rather than one number per image."""
        return self.kind != "classification"

    def is_labelled(self, batch: Batch) -> jax.Array:
        """Which images of a batch are annotated for the task, bool [B]."""
        return batch["has_label"][:, list(self.labels)].all(axis=-1)


def build(
    names: Sequence[str] = NAMES,
    *,
    focal_gamma: float = 2.0,
    fovea_sigma: float = losses.FOVEA_SIGMA,
    fovea_reduction: losses.Reduction = "mean",
    fovea_peak: losses.Peak = "point",
) -> tuple[Task, ...]:
    """The tasks called `names`, in the method's order.

    Args:
      names: some of `NAMES`.
      focal_gamma: of the glaucoma loss.
      fovea_sigma: of the fovea's target map, as a fraction of the image width.
      fovea_reduction: of the fovea loss over pixels, `mean` or `sum`.
      fovea_peak: where the fovea's target map has its maximum, `point` or `pixel`.

    Raises:
      ValueError: for an unknown name, a name given twice, or none at all.
    """
    if not names or len(set(names)) != len(names) or not set(names) <= set(NAMES):
        raise ValueError(f"tasks must be distinct names among {NAMES}, got {names}")

    def glaucoma(logits: jax.Array, batch: Batch) -> jax.Array:
        return losses.focal_loss(logits, batch["glaucoma"], focal_gamma)

    def segmentation(key: str) -> Callable[[jax.Array, Batch], jax.Array]:
        return lambda logits, batch: losses.pixel_cross_entropy(logits, batch[key])

    def fovea(logits: jax.Array, batch: Batch) -> jax.Array:
        target = losses.fovea_map(
            batch["fovea_xy"], logits.shape[1:], fovea_sigma, fovea_peak
        )
        return losses.heatmap_l1(logits, target, fovea_reduction)

    everything = (
        Task("glaucoma", "classification", (0,), glaucoma),
        Task("disc", "segmentation", (1,), segmentation("disc_mask")),
        Task("cup", "segmentation", (2,), segmentation("cup_mask")),
        Task("fovea", "localisation", (3,), fovea),
    )
    return tuple(task for task in everything if task.name in names)
