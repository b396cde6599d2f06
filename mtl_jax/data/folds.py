"""Cross-validation: which images of training and validation split a fold holds out.

The two official splits are merged and dealt out anew, and the test split stays as it
is, as in Pascal et al. 2022. That paper shuffles the images, which `shuffled` does; by
`stratified` every fold also has its share of each diagnosis.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

Kind = Literal["stratified", "shuffled"]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclasses.dataclass(frozen=True)
class Fold:
    """One of the ways to divide the merged images into training and validation.

    Attributes:
      number: which of them, from 0.
      num_folds: how many there are.
      seed: of the shuffling, the same for all folds of one cross-validation.
      kind: `stratified` deals out class by class, `shuffled` whatever the class.
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
          The places in `image_ids` of the images to train on, and of those to validate
          on, each in their order there.
        """
        strata = np.zeros(len(classes), int) if self.kind == "shuffled" else classes
        held_out = assign(image_ids, strata, self.num_folds, self.seed) == self.number
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def assign(
    image_ids: Sequence[str], strata: Sequence[int], num_folds: int, seed: int
) -> np.ndarray:
    """Deals images out to folds, stratum by stratum.

    The result depends on names and strata, not on the order they come in. The folds
    differ by at most one image in size, and by at most one in each stratum.

    Args:
      image_ids: [N] unique names.
      strata: [N] whole numbers, equal for images of one stratum.
      num_folds: k.
      seed: of the shuffling.

    Returns:
      [N] numbers of folds, from 0 to k - 1.
    """
    names = np.asarray(image_ids)
    # RandomState's streams are frozen for all versions of NumPy; Generator's are not.
    lot = np.empty(len(names))
    lot[np.argsort(names)] = np.random.RandomState(seed).permutation(len(names))
    folds = np.empty(len(names), int)
    folds[np.lexsort((lot, strata))] = np.arange(len(names)) % num_folds
    return folds
