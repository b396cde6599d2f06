"""Cross-validation: which images each fold holds out.

As in Pascal et al. 2022, the official training and validation splits are merged and
divided anew, and the test split stays as it is. That paper shuffles all images
(`shuffled`). `stratified` also gives every fold its share of each diagnosis.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Kind = Literal["stratified", "shuffled"]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclasses.dataclass(frozen=True)
class Fold:
    """One division of the merged images into training and validation.

    Attributes:
      number: index of the fold, from 0.
      num_folds: number of folds.
      seed: seed of the shuffling, the same for all folds of one cross-validation.
      kind: `stratified` divides each class separately, `shuffled` all images together.
    """

    number: int
    num_folds: int = 5
    seed: int = 0
    kind: Kind = "stratified"

    def divide(
        self, image_ids: Sequence[str], classes: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Divides images into training and validation.

        Args:
          image_ids: [N] unique names.
          classes: [N] whole numbers, such as diagnoses.

        Returns:
          Indices into `image_ids` of the training and of the validation images, each
          in ascending order.
        """
        strata = np.zeros(len(classes), int) if self.kind == "shuffled" else classes
        held_out = assign(image_ids, strata, self.num_folds, self.seed) == self.number
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def assign(
    image_ids: Sequence[str], strata: npt.ArrayLike, num_folds: int, seed: int
) -> np.ndarray:
    """Assigns images to folds, stratum by stratum.

    The result depends on names and strata, not on their order. The sizes of the folds
    differ by at most one image, in total and in each stratum.

    Args:
      image_ids: [N] unique names.
      strata: [N] whole numbers, equal for images of one stratum.
      num_folds: k.
      seed: seed of the shuffling.

    Returns:
      [N] indices of folds, from 0 to k - 1.
    """
    names = np.asarray(image_ids)
    # RandomState's streams are frozen for all versions of NumPy; Generator's are not.
    lot = np.empty(len(names))
    lot[np.argsort(names)] = np.random.RandomState(seed).permutation(len(names))
    folds = np.empty(len(names), int)
    folds[np.lexsort((lot, np.asarray(strata)))] = np.arange(len(names)) % num_folds
    return folds
