"""Predicts on photographs from Python: `mtl_jax.load`."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np
from PIL import Image

from mtl_jax import metrics, tasks, workdirs
from mtl_jax.data import images
from mtl_jax.data.images import conversion
from mtl_jax.errors import UserError
from mtl_jax.evaluation import predict
from mtl_jax.inference.prediction import Prediction

# A photograph: uint8 [H, W, 3] RGB, or the path of a file.
Photograph = np.ndarray | str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class Result:
    """What a network says of a photograph, as `mtl-jax predict` writes it.

    A number is None where the network has no such task, or found nothing.

    Attributes:
      glaucoma: whether the diagnosis is glaucoma.
      probability: probability of glaucoma, the mean of the next two or calibrated.
      probability_fc: probability of glaucoma from the classifier.
      probability_vcdr: probability of glaucoma from the cup-to-disc ratio.
      vcdr: vertical cup-to-disc ratio.
      masks: uint8 [H, W] masks of the photograph's size by task, 1 inside.
      points: points (x, y) by task in pixels of the photograph, with pixel centres at
        whole numbers.
      others: probabilities of other classes by task.
      spread: spread over the members of an average, by the columns of
        `predictions.csv`; empty for one network.
      quality: doubts about the photograph, each with its reason. Of what is not a
        fundus nothing else is said.
    """

    glaucoma: bool | None
    probability: float | None
    probability_fc: float | None
    probability_vcdr: float | None
    vcdr: float | None
    masks: Mapping[str, np.ndarray]
    points: Mapping[str, tuple[float, float] | None]
    others: Mapping[str, float]
    spread: Mapping[str, float | None]
    quality: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A network that is called with photographs.

    Attributes:
      network: the network, with its config, calibration and checkpoint.
    """

    network: workdirs.TrainedNetwork

    @overload
    def __call__(self, photographs: Photograph) -> Result: ...

    @overload
    def __call__(self, photographs: Sequence[Photograph]) -> list[Result]: ...

    def __call__(
        self, photographs: Photograph | Sequence[Photograph]
    ) -> Result | list[Result]:
        """Predicts on one photograph, or on a list of them.

        Args:
          photographs: uint8 [H, W, 3] RGB of any size, the path of a file, or a list of
            these. The results of a list stay in memory, with their masks.

        Returns:
          The result, or a list of results.

        Raises:
          UserError: if a file cannot be read, or an array is no photograph.
        """
        if isinstance(photographs, np.ndarray | str | os.PathLike):
            (result,) = self([photographs])
            return result
        size = self.network.batch_size
        return [
            result
            for start in range(0, len(photographs), size)
            for result in self._of_batch(
                [self._read(one) for one in photographs[start : start + size]]
            )
        ]

    def _read(self, photograph: Photograph) -> predict.Photograph:
        if isinstance(photograph, np.ndarray):
            return predict.as_seen(self.network, _checked(photograph))
        picture, conversion, _ = images.open_photograph(pathlib.Path(photograph))
        return predict.as_seen(self.network, picture, conversion)

    def _of_batch(self, batch: Sequence[predict.Photograph]) -> list[Result]:
        outputs = predict.outputs_of(self.network, batch)
        return [
            _result(one.pixels, predict.interpret(self.network, outputs, index, one))
            for index, one in enumerate(batch)
        ]


def load(
    workdir: str | pathlib.Path | Sequence[str | pathlib.Path] | None = None,
) -> Predictor:
    """Reads a trained network; see `mtl_jax.load`."""
    if workdir is None and not workdirs.BUILT_IN.is_dir():
        raise UserError(
            "This installation of mtl_jax has no trained network of its own; name the "
            "workdir of a run."
        )
    folders = workdirs.as_folders(workdirs.BUILT_IN if workdir is None else workdir)
    return Predictor(workdirs.load_calibrated(folders))


def _checked(array: np.ndarray) -> Image.Image:
    is_rgb = array.dtype == np.uint8 and array.ndim == 3 and array.shape[-1] == 3
    if not is_rgb or min(array.shape[:2]) < conversion.MIN_SIZE:
        raise UserError(
            f"An array of {array.dtype} {[*array.shape]} is no photograph; give uint8 "
            f"[H, W, 3], RGB, of at least {conversion.MIN_SIZE} pixels a side."
        )
    return Image.fromarray(array)


def _result(pixels: np.ndarray, prediction: Prediction) -> Result:
    prediction, doubts = predict.judge(pixels, prediction)
    found = prediction.found

    def of_kind(kind: tasks.Kind) -> dict[str, Any]:
        names = (task.name for task in tasks.of_kind(kind))
        return {name: found[name] for name in names if name in found}

    classes = of_kind("classification")
    classes.pop(metrics.DIAGNOSIS, None)
    points = {
        name: None if point is None else (float(point[0]), float(point[1]))
        for name, point in of_kind("localisation").items()
    }
    return Result(
        glaucoma=prediction.diagnosis,
        probability=prediction.probability,
        probability_fc=prediction.probability_fc,
        probability_vcdr=prediction.probability_vcdr,
        vcdr=prediction.vcdr,
        masks=of_kind("segmentation"),
        points=points,
        others=classes,
        spread=prediction.spread,
        quality=[str(doubt) for doubt in doubts],
    )
