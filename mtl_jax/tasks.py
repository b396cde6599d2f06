"""The tasks as data: each has a head of the network, labels and a loss.

`build` makes the tasks of Pascal et al. 2022, in the order glaucoma, optic disc, optic
cup, fovea. docs/extending.md shows how to add a task.
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
      name: name of the task and of its head.
      kind: classification uses only the encoder; the others also use the decoder.
      labels: columns of the batch's `has_label`. An image counts for the task if it has
        all of them.
      loss: maps the head's logits and the batch to one loss per image, [B]. Images
        without the labels are left out later, but their targets must be finite.
    """

    name: str
    kind: Kind
    labels: tuple[int, ...]
    loss: Callable[[jax.Array, Batch], jax.Array]

    @property
    def is_dense(self) -> bool:
        """Whether the head predicts a map, not one number per image."""
        return self.kind != "classification"

    def is_labelled(self, batch: Batch) -> jax.Array:
        """Tells which images of a batch have the task's labels, bool [B]."""
        return batch["has_label"][:, list(self.labels)].all(axis=-1)


def build(
    names: Sequence[str] = NAMES,
    *,
    focal_gamma: float = 2.0,
    fovea_sigma: float = losses.FOVEA_SIGMA,
    fovea_reduction: losses.Reduction = "mean",
    fovea_peak: losses.Peak = "point",
) -> tuple[Task, ...]:
    """Makes the tasks called `names`, in the order of `NAMES`.

    Args:
      names: some of `NAMES`.
      focal_gamma: gamma of the glaucoma loss, see `losses.focal_loss`.
      fovea_sigma: sigma of the fovea's target map, as a fraction of the image width.
      fovea_reduction: reduction of the fovea loss over pixels, `mean` or `sum`.
      fovea_peak: maximum of the fovea's target map, `point` or `pixel`.

    Raises:
      ValueError: for an unknown name, a repeated name, or no name.
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
