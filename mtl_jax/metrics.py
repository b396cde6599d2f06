"""Computes the metrics of the paper and of the REFUGE challenge from per-image rows.

A metric is one `Metric`, which has its formula and everything that tables say of it.
`METRICS` lists the metrics of derived quantities. The kind of a task adds the task's
own. A metric without labels is None (JSON null), never 0.

References:
  Pascal et al., Multi-task deep learning for glaucoma detection from color fundus
  images, Scientific Reports 12:12361, 2022.
  Orlando et al., REFUGE Challenge, Medical Image Analysis 59:101570, 2020, and the
  evaluation program published with it.
  Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
  Nixon et al., Measuring Calibration in Deep Learning, CVPR Workshops 2019.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike

from mtl_jax import tasks

# Resamples of `intervals`.
NUM_RESAMPLES = 1000

# The challenge's operating point.
SPECIFICITY = 0.85

# Largest number of bins of a reliability diagram, and smallest number of images in one.
NUM_BINS, BIN_SIZE = 10, 5

# The task whose probability is averaged with that of the vertical cup-to-disc ratio.
DIAGNOSIS = "glaucoma"

# Where a metric is shown. `model` and `native` are the tables at these resolutions.
# `comparison` has the differences between methods. `validation` metrics score
# checkpoints, and are drawn against the learning rate. `page` is beside each image.
Place = Literal["terminal", "model", "native", "comparison", "validation", "page"]


def dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Computes the Dice coefficient 2 |A and B| / (|A| + |B|) of two masks.

    Args:
      prediction: [H, W], non-zero inside.
      truth: [H, W], non-zero inside.

    Returns:
      A number in [0, 1]: 1 if both masks are empty, 0 if only one is.

    Raises:
      ValueError: if the shapes differ.
    """
    prediction, truth = np.asarray(prediction) != 0, np.asarray(truth) != 0
    if prediction.shape != truth.shape:
        raise ValueError(f"masks differ in shape: {prediction.shape}, {truth.shape}")
    total = np.count_nonzero(prediction) + np.count_nonzero(truth)
    if total == 0:
        return 1.0
    return 2 * np.count_nonzero(prediction & truth) / total


def distance(predicted_xy: Iterable[float], true_xy: Iterable[float]) -> float:
    """Computes the Euclidean distance between two points (x, y), in their pixels."""
    return math.dist(predicted_xy, true_xy)


def auc(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """Computes the area under the ROC curve; ties count one half.

    It is the statistic of Mann and Whitney over the number of pairs.

    Args:
      scores: [N] floats, larger for class 1.
      labels: [N] zeros and ones.

    Returns:
      A number in [0, 1]; None unless both classes are present.
    """
    if not has_both_classes(labels):
        return None
    # Takes a fraction of the time of scikit-learn's function, for `intervals`. The
    # import takes long, and predictions do not need it.
    from scipy import stats

    ranks = stats.rankdata(scores)
    positive = np.asarray(labels) > 0
    count, others = positive.sum(), (~positive).sum()
    wins = ranks[positive].sum() - count * (count + 1) / 2
    return float(wins / (count * others))


def roc(scores: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Computes the ROC curve: the origin, and a point for each distinct score.

    Args:
      scores: [N] floats, larger for class 1.
      labels: [N] zeros and ones.

    Returns:
      False-positive rates and true-positive rates, each [K] and non-decreasing, from
      (0, 0) to (1, 1).

    Raises:
      ValueError: if only one class is present.
    """
    if not has_both_classes(labels):
        raise ValueError("a ROC curve needs labels of both classes")
    from sklearn.metrics import roc_curve

    # With dropped points, the best sensitivity at each rate, and the interpolation,
    # would depend on scikit-learn's choice.
    false_positive_rate, true_positive_rate, _ = roc_curve(
        np.asarray(labels), np.asarray(scores), drop_intermediate=False
    )
    return false_positive_rate, true_positive_rate


def sensitivity_at_specificity(
    scores: ArrayLike, labels: ArrayLike, specificity: float = SPECIFICITY
) -> float | None:
    """Computes the sensitivity at a given specificity from the ROC curve.

    The highest sensitivity at each false-positive rate counts, and the curve is linear
    in between. The challenge's program interpolates over all points, including those
    of equal rate: a perfect classifier can score 0.15 there. Here it scores 1.

    Args:
      scores: [N] floats, larger for class 1.
      labels: [N] zeros and ones.
      specificity: in [0, 1].

    Returns:
      A number in [0, 1]; None unless both classes are present.
    """
    if not has_both_classes(labels):
        return None
    false_positive_rate, true_positive_rate = roc(scores, labels)
    # Sensitivity is non-decreasing, so the last point at each rate is the highest.
    last = np.append(np.diff(false_positive_rate) > 0, True)
    return float(
        np.interp(1 - specificity, false_positive_rate[last], true_positive_rate[last])
    )


def sensitivity(diagnoses: ArrayLike, labels: ArrayLike) -> float | None:
    """Computes the share of class 1 that is diagnosed; None without class 1.

    Args:
      diagnoses: [N] zeros and ones that are predicted.
      labels: [N] zeros and ones.
    """
    return _mean(np.asarray(diagnoses)[np.asarray(labels) == 1])


def specificity(diagnoses: ArrayLike, labels: ArrayLike) -> float | None:
    """Computes the share of class 0 that is not diagnosed; see `sensitivity`."""
    return _mean(1 - np.asarray(diagnoses)[np.asarray(labels) == 0])


class Reliability(NamedTuple):
    """How often images of a similar probability are of class 1.

    Attributes:
      probability: [K] mean probability of each bin, ascending.
      share: [K] share of class 1 among its images.
      count: [K] number of its images.
    """

    probability: np.ndarray
    share: np.ndarray
    count: np.ndarray


def reliability(probabilities: ArrayLike, labels: ArrayLike) -> Reliability:
    """Divides images into bins of equal numbers by their probability.

    Bins of equal width (Guo et al. 2017) leave most of a small set in one or two bins,
    and few images in the others. Quantiles (Nixon et al. 2019) give all bins a similar
    number: a tenth of the images, but no fewer than 5. Equal probabilities are in one
    bin.

    Args:
      probabilities: [N] probabilities of class 1, N > 0.
      labels: [N] zeros and ones.
    """
    values, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    num_bins = min(max(len(values) // BIN_SIZE, 1), NUM_BINS)
    edges = np.quantile(values, np.linspace(0, 1, num_bins + 1)[1:-1])
    bins = np.searchsorted(edges, values)
    count = np.bincount(bins)
    is_used = count > 0

    def mean(of: np.ndarray) -> np.ndarray:
        return np.bincount(bins, of)[is_used] / count[is_used]

    return Reliability(mean(values), mean(labels), count[is_used])


def calibration_error(probabilities: ArrayLike, labels: ArrayLike) -> float | None:
    """Computes the expected calibration error (Guo et al. 2017, equation 3).

    It is the mean over images of the distance between the mean probability of their bin
    and its share of class 1; see `reliability` for the bins.

    Args:
      probabilities: [N] probabilities of class 1.
      labels: [N] zeros and ones.

    Returns:
      A number in [0, 1]; None without images.
    """
    if not len(np.asarray(labels)):
        return None
    probability, share, count = reliability(probabilities, labels)
    return float(np.average(np.abs(probability - share), weights=count))


def uncalibrated(column: str) -> str:
    """Names the column with a probability of glaucoma before its calibration."""
    return f"{column}_uncalibrated"


def has_both_classes(labels: ArrayLike) -> bool:
    """Whether `labels` ([N] zeros and ones) holds at least one of each."""
    return len(np.unique(np.asarray(labels))) == 2


def _mean(values: Sequence[float] | np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _mean_distance(values: np.ndarray, references: np.ndarray) -> float | None:
    return _mean(np.abs(values - references))


def _mean_of_first(values: np.ndarray, _: np.ndarray) -> float | None:
    """Averages a column over the images that have another one, too."""
    return _mean(values)


class Unit(NamedTuple):
    """A unit of numbers in tables.

    Attributes:
      name: text after the heading; may be empty.
      factor: factor that converts a value to this unit.
      digits: number of digits after the point.
    """

    name: str = ""
    factor: float = 1.0
    digits: int = 3


PERCENT = Unit("%", 100.0, 2)
PIXELS = Unit("px", digits=2)
NATIVE_PIXELS = Unit("native px", digits=2)


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number that describes a network, or its prediction for an image.

    Attributes:
      name: key in `metrics.json` and `results.csv`, or column of `per_image.csv`.
      heading: heading in tables.
      unit: unit in tables.
      better: which values are better; None if neither are.
      places: places where it is shown.
      columns: columns that `reduce` reads, from the images that have all of them.
      reduce: maps these columns to the number, or to None; None for a metric that
        describes one image or the network itself.
      title: title in the terminal; empty for the heading.
      curve: name in the legend of ROC curves; empty without a curve.
      reliability: name above reliability diagrams; empty without a diagram.
      meaning: sentence that explains it on the page.
      task: name of its task; empty if it depends on several.
      is_constant: whether all runs of a method have the same value.
    """

    name: str
    heading: str
    unit: Unit = Unit()
    better: Literal["higher", "lower"] | None = None
    places: tuple[Place, ...] = ()
    columns: tuple[str, ...] = ()
    reduce: Callable[..., float | None] | None = None
    title: str = ""
    curve: str = ""
    reliability: str = ""
    meaning: str = ""
    task: str = ""
    is_constant: bool = False

    @property
    def column(self) -> str:
        """Heading and unit, as above a column of a table."""
        return ", ".join(filter(None, (self.heading, self.unit.name)))

    @property
    def digits(self) -> int:
        """Number of digits after the point of an unconverted value."""
        return self.unit.digits if self.unit.factor == 1 else Unit().digits

    @property
    def label(self) -> str:
        """Heading of an unconverted value, with the unit only if that has no factor."""
        return self.column if self.unit.factor == 1 else self.heading


# Other keys of `metrics.json`, `results.csv` and the log of a training.
_RESERVED = re.compile(
    "loss(_.*)?|num_images|dataset|split|fold|resolution|checkpoint|score|step|epoch"
    "|average|calibration|note|intervals|by_source"
)

# In the order of tables. A kind stands for the metrics of all its tasks.
METRICS: list[Metric | tasks.Kind] = [
    Metric(
        "num_parameters",
        "#P",
        Unit("millions", 1e-6, 1),
        places=("model", "native"),
        is_constant=True,
    ),
    Metric("seconds_per_step", "s/iteration", places=("model", "native")),
    Metric(
        "auc",
        "AUC",
        PERCENT,
        "higher",
        ("terminal", "model", "native", "comparison", "validation"),
        ("probability", DIAGNOSIS),
        auc,
        title="AUC, averaged",
        curve="average",
    ),
    Metric(
        "auc_fc",
        "AUC of the classifier",
        PERCENT,
        "higher",
        ("terminal",),
        ("probability_fc", DIAGNOSIS),
        auc,
        title="AUC, classifier",
        curve="classifier",
    ),
    "classification",
    Metric(
        "auc_vcdr",
        "AUC of the vCDR",
        PERCENT,
        "higher",
        ("terminal",),
        ("probability_vcdr", DIAGNOSIS),
        auc,
        title="AUC, vCDR",
        curve="vCDR",
    ),
    Metric(
        "sensitivity_at_85_specificity",
        "sensitivity at 85 % specificity",
        PERCENT,
        "higher",
        ("terminal",),
        ("probability", DIAGNOSIS),
        sensitivity_at_specificity,
    ),
    Metric(
        "sensitivity",
        "sensitivity",
        PERCENT,
        "higher",
        columns=("diagnosis", DIAGNOSIS),
        reduce=sensitivity,
    ),
    Metric(
        "specificity",
        "specificity",
        PERCENT,
        "higher",
        columns=("diagnosis", DIAGNOSIS),
        reduce=specificity,
    ),
    Metric(
        "calibration_error",
        "calibration error",
        better="lower",
        columns=("probability", DIAGNOSIS),
        reduce=calibration_error,
        title="calibration error, averaged",
        reliability="average",
    ),
    Metric(
        "calibration_error_fc",
        "calibration error of the classifier",
        better="lower",
        columns=("probability_fc", DIAGNOSIS),
        reduce=calibration_error,
        title="calibration error, classifier",
        reliability="classifier",
    ),
    Metric(
        "calibration_error_vcdr",
        "calibration error of the vCDR",
        better="lower",
        columns=("probability_vcdr", DIAGNOSIS),
        reduce=calibration_error,
        title="calibration error, vCDR",
        reliability="vCDR",
    ),
    Metric(
        "probability",
        f"P({DIAGNOSIS})",
        places=("page",),
        meaning=f"Probability of {DIAGNOSIS}; from 0.5 on, or from the calibrated "
        "network's threshold on, it is a diagnosis.",
    ),
    "segmentation",
    "localisation",
    Metric(
        "vcdr",
        "vCDR",
        places=("page",),
        meaning="Vertical cup-to-disc ratio that was predicted.",
    ),
    Metric(
        "vcdr_error",
        "vCDR error",
        better="lower",
        places=("page",),
        meaning="Distance of that ratio from the annotated one.",
    ),
    Metric(
        "vcdr_mae",
        "vCDR error",
        Unit(),
        "lower",
        ("terminal", "model", "native", "comparison"),
        ("vcdr", "vcdr_true"),
        _mean_distance,
    ),
]


def _of_classification(task: tasks.Task) -> list[Metric]:
    # `METRICS` lists the metrics of the diagnosis, which are derived.
    if task.name == DIAGNOSIS:
        return []
    score = probability_of(task)
    return [
        Metric(
            f"auc_{task.name}",
            f"{task.name} AUC",
            PERCENT,
            "higher",
            ("terminal", "model", "native", "comparison", "validation"),
            (score, task.name),
            auc,
            title=f"AUC, {task.title}",
            curve=task.title,
            task=task.name,
        ),
        Metric(
            f"calibration_error_{task.name}",
            f"{task.name} calibration error",
            better="lower",
            columns=(score, task.name),
            reduce=calibration_error,
            title=f"calibration error, {task.title}",
            reliability=task.title,
            task=task.name,
        ),
        Metric(
            score,
            f"P({task.name})",
            places=("page",),
            meaning=f"Probability of {task.title}.",
            task=task.name,
        ),
    ]


def _of_segmentation(task: tasks.Task) -> list[Metric]:
    name = f"dice_{task.name}"
    return [
        Metric(
            name,
            f"{task.name} Dice",
            PERCENT,
            "higher",
            get_args(Place),
            (name,),
            _mean,
            title=f"{task.title} Dice",
            meaning=f"Overlap of the {task.title} with the annotated one.",
            task=task.name,
        )
    ]


def _of_localisation(task: tasks.Task) -> list[Metric]:
    name = f"{task.name}_error"
    return [
        Metric(
            name,
            f"{task.name} error",
            PIXELS,
            "lower",
            ("terminal", "model", "comparison", "validation", "page"),
            (name,),
            _mean,
            title=f"{task.title} error, model pixels",
            meaning=f"Distance from the annotated {task.title}, in pixels of the model "
            "image.",
            task=task.name,
        ),
        Metric(
            f"{name}_native",
            f"{task.name} error",
            NATIVE_PIXELS,
            "lower",
            ("terminal", "native"),
            (f"{name}_native",),
            _mean,
            title=f"{task.title} error, native pixels",
            task=task.name,
        ),
        Metric(
            f"{task.name}_found",
            f"{task.name} found",
            PERCENT,
            "higher",
            ("terminal",),
            (f"{task.name}_found", name),
            _mean_of_first,
            title=f"{task.title} found, share",
            task=task.name,
        ),
    ]


_OF_KIND: dict[tasks.Kind, Callable[[tasks.Task], list[Metric]]] = {
    "classification": _of_classification,
    "segmentation": _of_segmentation,
    "localisation": _of_localisation,
}


def register(metric: Metric) -> None:
    """Adds a metric at the end of tables.

    Raises:
      ValueError: if its name or its heading is taken; or if it is for validation, but
        neither rises nor is in pixels.
    """
    known = every()
    if metric.name in known or _RESERVED.fullmatch(metric.name):
        raise ValueError(f"{metric.name!r} is taken")
    if metric.column in {other.column for other in known.values()}:
        raise ValueError(f"the heading {metric.column!r} is taken")
    # The mean that chooses a checkpoint converts them to numbers that are 1 at best.
    is_share = metric.better == "higher" or metric.unit == PIXELS
    if "validation" in metric.places and not is_share:
        raise ValueError(f"{metric.name!r} can have no part in the validation score")
    METRICS.append(metric)


def every() -> dict[str, Metric]:
    """Returns all metrics, derived ones and those of tasks, by name in table order."""
    found = {}
    for entry in METRICS:
        if isinstance(entry, Metric):
            own = [entry]
        else:
            own = [m for task in tasks.of_kind(entry) for m in _OF_KIND[entry](task)]
        found |= {metric.name: metric for metric in own}
    return found


def at(place: Place) -> dict[str, Metric]:
    """Returns the metrics that a place shows, by name, in the order of tables."""
    return {name: m for name, m in every().items() if place in m.places}


def rising() -> set[str]:
    """Returns the names of the metrics that are better when they are higher."""
    return {name for name, metric in every().items() if metric.better == "higher"}


def probability_of(task: tasks.Task) -> str:
    """Names the column with the probability of a classification.

    For the diagnosis it is the averaged one. The true class has the task's name.
    """
    return "probability" if task.name == DIAGNOSIS else f"probability_{task.name}"


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Reduces per-image rows to the metrics of a data set.

    Args:
      rows: one mapping per image, with the columns of the metrics as keys. None or an
        absent key stands for "not annotated" or "not predicted".

    Returns:
      Each metric over the images that have all of its columns. A metric without images
      is None. `num_images` maps each name to its number of images. If an AUC is None
      despite its images, they are all of one class.
    """
    metrics: dict[str, Any] = {}
    num_images: dict[str, int] = {}
    # Derived metrics stand first.
    for metric in sorted(every().values(), key=lambda m: bool(m.task)):
        if metric.reduce is not None:
            values = columns(rows, *metric.columns)
            metrics[metric.name] = metric.reduce(*values)
            num_images[metric.name] = len(values[0])
    return {**metrics, "num_images": num_images}


def intervals(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Computes 95 % intervals of the metrics that `summarize` computes.

    They are percentile bootstrap intervals over images. They tell how a metric would
    vary with other images of the same kind, not with another training. Images of one
    patient count as independent. A resample of one class has no AUC and is left out.

    Args:
      rows: as for `summarize`.

    Returns:
      Lower and upper end by metric. A metric that is None, or of a single image, has no
      interval. The same rows give the same intervals.
    """
    found = {}
    for metric in every().values():
        if metric.reduce is None:
            continue
        values = columns(rows, *metric.columns)
        count = len(values[0])
        if count < 2 or metric.reduce(*values) is None:
            continue
        drawn = np.random.default_rng(0).integers(count, size=(NUM_RESAMPLES, count))
        resampled = (metric.reduce(*(v[images] for v in values)) for images in drawn)
        kept = [value for value in resampled if value is not None]
        found[metric.name] = np.percentile(kept, [2.5, 97.5]).tolist()
    return found


def validation_score(metrics: Mapping[str, Any], image_size: int) -> float | None:
    """Computes one number, larger for better, that chooses the best checkpoint.

    Args:
      metrics: result of `summarize`.
      image_size: pixels a side of the model image, which scale errors in pixels.

    Returns:
      The mean of the validation metrics that are not None; None if all are. An error in
      pixels counts as 1 - error / `image_size`.
    """
    return _mean(shares(metrics, at("validation").values(), image_size))


def shares(
    values: Mapping[str, Any], metrics: Iterable[Metric], image_size: int
) -> list[float]:
    """Converts the metrics that are not None to numbers that are 1 at best."""
    return [
        values[m.name] if m.better == "higher" else 1 - values[m.name] / image_size
        for m in metrics
        if values.get(m.name) is not None
    ]


def columns(rows: Sequence[Mapping[str, Any]], *keys: str) -> list[np.ndarray]:
    """Returns the float64 columns `keys` of the rows that have all of them."""
    complete = [
        values
        for values in ([row.get(key) for key in keys] for row in rows)
        if all(value is not None for value in values)
    ]
    return list(np.array(complete, np.float64).reshape(-1, len(keys)).T)
