"""Figures of Pascal et al. on REFUGE, to stand beside those of a report.

They are of the test split, 256 x 256 pixels, from the paper's first version on arXiv
(official splits, three runs) and, `CROSS_VALIDATED`, from the abstract of Scientific
Reports 12:12361, which does not say whether that encoder was pretrained. AUC and Dice
in %, fovea error in pixels of the model image. By method and metric the mean and the
standard deviation, of `COST` the mean alone: millions of parameters (VGG-13), and
seconds of a step on a Titan XP.
"""

from collections.abc import Mapping

COST = {
    "single": {"num_parameters": (61.2,), "seconds_per_step": (0.686,)},
    "independent": {"num_parameters": (17.2,), "seconds_per_step": (0.557,)},
    "gradnorm": {"num_parameters": (17.2,), "seconds_per_step": (0.260,)},
    "pcgrad": {"num_parameters": (17.2,), "seconds_per_step": (0.556,)},
}
FROM_SCRATCH = {
    "single": {
        "auc": (87.37, 1.51),
        "dice_disc": (93.87, 0.74),
        "dice_cup": (80.62, 1.25),
        "fovea_error": (5.96, 0.17),
    },
    "independent": {
        "auc": (92.61, 0.38),
        "dice_disc": (91.61, 0.64),
        "dice_cup": (81.21, 0.99),
        "fovea_error": (5.71, 0.24),
    },
    "gradnorm": {
        "auc": (86.31, 1.35),
        "dice_disc": (80.32, 1.10),
        "dice_cup": (68.93, 4.78),
        "fovea_error": (28.48, 0.65),
    },
    "pcgrad": {
        "auc": (85.51, 1.71),
        "dice_disc": (85.23, 1.52),
        "dice_cup": (71.08, 7.40),
        "fovea_error": (34.45, 0.33),
    },
}
PRETRAINED = {
    "single": {
        "auc": (94.30, 1.68),
        "dice_disc": (95.29, 0.01),
        "dice_cup": (85.86, 0.21),
        "fovea_error": (5.42, 0.06),
    },
    "independent": {
        "auc": (96.15, 0.14),
        "dice_disc": (94.24, 0.38),
        "dice_cup": (83.95, 0.90),
        "fovea_error": (5.22, 0.18),
    },
}
CROSS_VALIDATED = {
    "single": {"auc": (93.56, 1.48)},
    "independent": {"auc": (96.76, 0.96)},
}

# By method and metric the mean and, where it is known, the standard deviation.
Published = Mapping[str, Mapping[str, tuple[float, ...]]]


def of(kind: str, *, is_pretrained: bool) -> Published:
    """The paper's figures that a table of an experiment can be held against.

    Args:
      kind: of the experiment, such as `cross_validation`.
      is_pretrained: whether the encoder starts from pretrained weights, for which the
        paper does not repeat the cost.
    """
    if kind == "learning_rates":
        return {}
    found = PRETRAINED if is_pretrained else FROM_SCRATCH
    if kind == "cross_validation":
        found = CROSS_VALIDATED
    cost = {} if is_pretrained else COST
    return {
        method: {**cost.get(method, {}), **found.get(method, {})}
        for method in {**cost, **found}
    }
