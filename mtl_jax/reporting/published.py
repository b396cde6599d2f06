"""Holds the results of Pascal et al. on REFUGE, which reports show beside their own.

They are of the test split at 256 x 256 pixels. AUC and Dice are in %, the fovea error
in pixels of the model image. The numbers of parameters are those of VGG-13, in
millions; the seconds of an iteration were measured on a Titan XP.

`_FROM_SCRATCH` and `_PRETRAINED` are from the first version on arXiv (official splits,
three runs). `_CROSS_VALIDATED` is from the abstract of Scientific Reports 12:12361,
which leaves open whether the encoder was pretrained.
"""

from collections.abc import Mapping

# Mean and, if known, standard deviation, by method and metric.
Published = Mapping[str, Mapping[str, tuple[float, ...]]]

_COST = ("num_parameters", "seconds_per_step")
_COSTS = {
    "single": ((61.2,), (0.686,)),
    "independent": ((17.2,), (0.557,)),
    "gradnorm": ((17.2,), (0.260,)),
    "pcgrad": ((17.2,), (0.556,)),
}
_QUALITY = ("auc", "dice_disc", "dice_cup", "fovea_error")
_FROM_SCRATCH = {
    "single": ((87.37, 1.51), (93.87, 0.74), (80.62, 1.25), (5.96, 0.17)),
    "independent": ((92.61, 0.38), (91.61, 0.64), (81.21, 0.99), (5.71, 0.24)),
    "gradnorm": ((86.31, 1.35), (80.32, 1.10), (68.93, 4.78), (28.48, 0.65)),
    "pcgrad": ((85.51, 1.71), (85.23, 1.52), (71.08, 7.40), (34.45, 0.33)),
}
_PRETRAINED = {
    "single": ((94.30, 1.68), (95.29, 0.01), (85.86, 0.21), (5.42, 0.06)),
    "independent": ((96.15, 0.14), (94.24, 0.38), (83.95, 0.90), (5.22, 0.18)),
}
_CROSS_VALIDATED = {"single": ((93.56, 1.48),), "independent": ((96.76, 0.96),)}


def heading(metric: str) -> str:
    """Returns the text after a metric's heading above the paper's results."""
    is_time = metric == "seconds_per_step"
    return "published (REFUGE, Titan XP)" if is_time else "published (REFUGE)"


def of(kind: str, *, is_pretrained: bool) -> Published:
    """Returns the paper's results that are comparable with an experiment's.

    Args:
      kind: kind of the experiment, such as `cross_validation`.
      is_pretrained: whether the encoder starts from pretrained weights. The paper gives
        the cost of networks from scratch only.
    """
    if kind == "learning_rates":
        return {}
    quality = _PRETRAINED if is_pretrained else _FROM_SCRATCH
    if kind == "cross_validation":
        quality = _CROSS_VALIDATED
    cost = {} if is_pretrained else _COSTS
    return {
        method: {
            **dict(zip(_COST, cost.get(method, ()), strict=False)),
            **dict(zip(_QUALITY, quality.get(method, ()), strict=False)),
        }
        for method in {**cost, **quality}
    }
