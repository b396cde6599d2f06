"""The metrics, each with its formula and everything that tables say of it.

`METRICS` lists the metrics of derived quantities. The kind of a task adds the task's
own.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

from mtl_jax import tasks
from mtl_jax.metrics import formulas

# The task whose probability is averaged with that of the vertical cup-to-disc ratio.
DIAGNOSIS = "glaucoma"

# Where a metric is shown. `model` and `native` are the tables at these resolutions.
# `comparison` has the differences between methods. `validation` metrics score
# checkpoints, and are drawn against the learning rate. `page` is beside each image.
Place = Literal["terminal", "model", "native", "comparison", "validation", "page"]


def uncalibrated(column: str) -> str:
    """Names the column with a probability of glaucoma before its calibration."""
    return f"{column}_uncalibrated"


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
    "|average|workdirs|calibration|note|intervals|by_source"
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
        formulas.auc,
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
        formulas.auc,
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
        formulas.auc,
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
        formulas.sensitivity_at_specificity,
    ),
    Metric(
        "sensitivity",
        "sensitivity",
        PERCENT,
        "higher",
        columns=("diagnosis", DIAGNOSIS),
        reduce=formulas.sensitivity,
    ),
    Metric(
        "specificity",
        "specificity",
        PERCENT,
        "higher",
        columns=("diagnosis", DIAGNOSIS),
        reduce=formulas.specificity,
    ),
    Metric(
        "calibration_error",
        "calibration error",
        better="lower",
        columns=("probability", DIAGNOSIS),
        reduce=formulas.calibration_error,
        title="calibration error, averaged",
        reliability="average",
    ),
    Metric(
        "calibration_error_fc",
        "calibration error of the classifier",
        better="lower",
        columns=("probability_fc", DIAGNOSIS),
        reduce=formulas.calibration_error,
        title="calibration error, classifier",
        reliability="classifier",
    ),
    Metric(
        "calibration_error_vcdr",
        "calibration error of the vCDR",
        better="lower",
        columns=("probability_vcdr", DIAGNOSIS),
        reduce=formulas.calibration_error,
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
        formulas.mean_distance,
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
            formulas.auc,
            title=f"AUC, {task.title}",
            curve=task.title,
            task=task.name,
        ),
        Metric(
            f"calibration_error_{task.name}",
            f"{task.name} calibration error",
            better="lower",
            columns=(score, task.name),
            reduce=formulas.calibration_error,
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
            formulas.mean,
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
            formulas.mean,
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
            formulas.mean,
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
            formulas.mean_of_first,
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
