"""Defines the tasks: what a network learns from a photograph's annotations.

A task is one `Task` in `TASKS`. Its kind determines how it is trained, what its output
becomes, and how that is scored and drawn. `register` adds a task, and `config.tasks`
chooses among them.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import jax

from mtl_jax import losses
from mtl_jax.annotations import LABELS

Batch = Mapping[str, jax.Array]
Kind = Literal["classification", "segmentation", "localisation"]
# Maps logits, targets and settings to one loss per image, [B].
Criterion = Callable[[jax.Array, Any, losses.Settings], jax.Array]

# Okabe and Ito's colours differ under every form of colour blindness.
COLOURS = {
    "blue": (86, 180, 233),
    "green": (0, 158, 115),
    "yellow": (240, 228, 66),
    "purple": (204, 121, 167),
    "orange": (230, 159, 0),
    "vermilion": (213, 94, 0),
}

_CRITERIA: dict[Kind, Criterion] = {
    "classification": lambda logits, labels, settings: losses.focal_loss(
        logits, labels, settings.focal_gamma
    ),
    "segmentation": lambda logits, masks, _: losses.pixel_cross_entropy(logits, masks),
    "localisation": lambda logits, points, settings: losses.heatmap_l1(
        logits, settings.map_of(points, logits.shape[1:]), settings.fovea_reduction
    ),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """One task of the network.

    Attributes:
      name: name of the task and its head; columns and metrics contain it.
      title: full name of the task.
      kind: a classification uses only the encoder; the others also use the decoder.
      labels: names of the annotations that `target` reads. An image counts for the
        task if it has all of them.
      target: maps annotations, by their keys in a batch, to the class (0 or 1), the
        mask (1 inside), or the point (x, y). It gets one image or a batch, at the
        model's or the photograph's size, as JAX or NumPy arrays. For an image without
        the labels it must return finite numbers, too.
      colour: name in `COLOURS` for pictures; empty for a classification.
      criterion: loss of logits and targets; None for the loss of the kind.
      settings: settings of the loss, see `build`.
    """

    name: str
    title: str
    kind: Kind
    labels: tuple[str, ...]
    target: Callable[[Mapping[str, Any]], Any]
    colour: str = ""
    criterion: Criterion | None = None
    settings: losses.Settings = losses.Settings()

    @property
    def is_dense(self) -> bool:
        """Whether the head predicts a map, not one number per image."""
        return self.kind != "classification"

    @property
    def rgb(self) -> tuple[int, int, int]:
        """The colour's RGB bytes."""
        return COLOURS[self.colour]

    def is_labelled(self, batch: Batch) -> jax.Array:
        """Tells which images of a batch have the task's labels, bool [B]."""
        columns = [LABELS.index(label) for label in self.labels]
        return batch["has_label"][:, columns].all(axis=-1)

    def loss(self, logits: jax.Array, batch: Batch) -> jax.Array:
        """Maps the head's logits and a batch to one loss per image, [B].

        `losses.masked_mean` leaves out the images without the labels.
        """
        criterion = self.criterion or _CRITERIA[self.kind]
        return criterion(logits, self.target(batch), self.settings)


# Columns of results, and files and folders of a workdir, which have names of their own.
_RESERVED = re.compile(
    "(auc|dice|loss|probability|vcdr|fc)(_.*)?|.*_(error|found|native|x|y|spread)|image_id|"
    "diagnosis|sensitivity|specificity|split|source|score|checkpoints?|evaluation|"
    "tensorboard|whole|crop"
)

# The registered tasks by name, in the order of tables.
TASKS: dict[str, Task] = {}


def register(task: Task) -> None:
    """Makes a task known to configs, evaluations and reports.

    Raises:
      ValueError: if the name is taken or is not small letters, digits and `_`; if the
        kind, an annotation or the colour is unknown; or if there are no labels.
    """
    if task.name in TASKS or _RESERVED.fullmatch(task.name):
        raise ValueError(f"{task.name!r} is taken")
    if not re.fullmatch("[a-z][a-z0-9_]*", task.name):
        raise ValueError(f"{task.name!r} must be of small letters, digits and _")
    if task.kind not in get_args(Kind):
        raise ValueError(f"{task.kind!r} is no kind; there are {get_args(Kind)}")
    if not task.labels:
        raise ValueError(f"{task.name!r} has no labels; name some of {LABELS}")
    if unknown := set(task.labels) - set(LABELS):
        raise ValueError(f"{min(unknown)!r} is no annotation; there are {LABELS}")
    if task.is_dense and task.colour not in COLOURS:
        raise ValueError(f"{task.colour!r} is no colour; there are {(*COLOURS,)}")
    TASKS[task.name] = task


def of_kind(kind: Kind) -> list[Task]:
    """Lists the registered tasks of a kind, in the order of tables."""
    return [task for task in TASKS.values() if task.kind == kind]


def build(
    names: Sequence[str] | None = None, settings: losses.Settings | None = None
) -> tuple[Task, ...]:
    """Chooses the tasks called `names`, in the order of `TASKS`.

    Args:
      names: names in `TASKS`; None for all.
      settings: settings of their losses; None keeps those of each task.

    Raises:
      ValueError: for an unknown name, a repeated name, or no name.
    """
    names = list(TASKS) if names is None else names
    if not names or len(set(names)) != len(names) or not set(names) <= set(TASKS):
        raise ValueError(
            f"tasks must be distinct names among {tuple(TASKS)}, got {names}"
        )
    return tuple(
        dataclasses.replace(task, settings=settings or task.settings)
        for task in TASKS.values()
        if task.name in names
    )


register(
    Task(
        "glaucoma",
        "glaucoma",
        "classification",
        labels=("glaucoma",),
        target=lambda annotations: annotations["glaucoma"],
    )
)
register(
    Task(
        "disc",
        "optic disc",
        "segmentation",
        labels=("disc",),
        target=lambda annotations: annotations["disc_mask"],
        colour="blue",
    )
)
register(
    Task(
        "cup",
        "optic cup",
        "segmentation",
        labels=("cup",),
        target=lambda annotations: annotations["cup_mask"],
        colour="green",
    )
)
register(
    Task(
        "fovea",
        "fovea",
        "localisation",
        labels=("fovea",),
        target=lambda annotations: annotations["fovea_xy"],
        colour="yellow",
    )
)
