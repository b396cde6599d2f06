"""Cross-validation: which images each fold holds out.

As in Pascal et al. 2022, the official training and validation splits are merged and
divided anew, and the test split stays as it is. That paper shuffles all images
(`shuffled`). `stratified` also gives every fold its share of each diagnosis. Either
keeps the photographs of a patient in one fold.
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
        self,
        image_ids: Sequence[str],
        classes: Sequence[int],
        patients: Sequence[str] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Divides images into training and validation.

        Args:
          image_ids: [N] unique names.
          classes: [N] whole numbers, such as diagnoses.
          patients: [N] their patients, empty where unknown; None if all are.

        Returns:
          Indices into `image_ids` of the training and of the validation images, each
          in ascending order.
        """
        strata = np.zeros(len(classes), int) if self.kind == "shuffled" else classes
        folds = assign(image_ids, strata, self.num_folds, self.seed, patients)
        held_out = folds == self.number
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def assign(
    image_ids: Sequence[str],
    strata: npt.ArrayLike,
    num_folds: int,
    seed: int,
    patients: Sequence[str] | None = None,
) -> np.ndarray:
    """Assigns images to folds, stratum by stratum, and a patient's together.

    The result depends on names and strata, not on their order. If no patient has
    several images, the sizes of the folds differ by at most one image, in total and in
    each stratum. Patients with most images are assigned first; each goes to a fold that
    has fewest images of its strata, among these to one with fewest in all.

    Args:
      image_ids: [N] unique names.
      strata: [N] whole numbers, equal for images of one stratum.
      num_folds: k.
      seed: seed of the shuffling.
      patients: [N] their patients, empty where unknown; None if all are.

    Returns:
      [N] indices of folds, from 0 to k - 1.
    """
    names, classes = np.asarray(image_ids), np.asarray(strata).tolist()
    # RandomState's streams are frozen for all versions of NumPy; Generator's are not.
    lot = np.empty(len(names), int)
    lot[np.argsort(names)] = np.random.RandomState(seed).permutation(len(names))
    groups: dict[tuple[str, str], list[int]] = {}
    for i, patient in enumerate(patients or [""] * len(names)):
        groups.setdefault((patient, "" if patient else image_ids[i]), []).append(i)

    def turn(group: list[int]) -> tuple[int, int, int]:
        return -len(group), max(classes[i] for i in group), min(lot[group])

    folds = np.empty(len(names), int)
    held = {stratum: [0] * num_folds for stratum in classes}
    total = [0] * num_folds
    for group in sorted(groups.values(), key=turn):
        same = map(sum, zip(*(held[classes[i]] for i in group), strict=True))
        loads = list(zip(same, total, strict=True))
        fold = loads.index(min(loads))
        folds[group] = fold
        total[fold] += len(group)
        for i in group:
            held[classes[i]][fold] += 1
    return folds
