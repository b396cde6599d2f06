"""Applies a network to photographs."""

import collections
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tqdm
from PIL import Image

from mtl_jax import workdirs
from mtl_jax.data import field_of_view, geometry, images
from mtl_jax.errors import UserError
from mtl_jax.inference import averaging
from mtl_jax.inference.prediction import Prediction

# Name, file, pixels.
_Photograph = tuple[str, pathlib.Path, np.ndarray]


class Predicted(NamedTuple):
    """A photograph and the prediction for it.

    Attributes:
      name: stem of the file, with a number if an earlier file has the same.
      path: path of the file.
      photograph: uint8 [H, W, 3].
      prediction: prediction at the photograph's size.
    """

    name: str
    path: pathlib.Path
    photograph: np.ndarray
    prediction: Prediction


def predict(
    network: workdirs.TrainedNetwork,
    paths: Sequence[pathlib.Path],
    failures: list[str],
    conversions: collections.Counter[str],
) -> Iterator[Predicted]:
    """Applies a network to photographs of any size, with a progress bar.

    Args:
      network: network that `workdirs.load` or `load_averaged` returned.
      paths: paths of the photographs.
      failures: list that gets a sentence for every photograph that cannot be read and
        is left out.
      conversions: counter that gets the number of photographs by
        `images.Photograph.conversion`.
    """
    names = _distinct_names(paths)
    progress = tqdm.tqdm(total=len(paths), desc="predicting", unit="image")
    with progress:
        for start in range(0, len(paths), network.batch_size):
            chunk = paths[start : start + network.batch_size]
            read: list[_Photograph] = []
            for path in chunk:
                try:
                    photograph = images.open_photograph(path)
                except UserError as error:
                    failures.append(str(error))
                    progress.write(f"skipped: {error}", file=sys.stderr)
                else:
                    pixels = np.array(photograph.picture)
                    read.append((names[path], path, pixels))
                    conversions[photograph.conversion] += 1
            if read:
                yield from _predict_batch(read, network)
            progress.update(len(chunk))


def _predict_batch(
    read: Sequence[_Photograph], network: workdirs.TrainedNetwork
) -> list[Predicted]:
    size = (network.image_size, network.image_size)
    model_images = np.zeros((network.batch_size, *size, 3), np.uint8)
    frames = []
    for index, (*_, photograph) in enumerate(read):
        picture = Image.fromarray(photograph)
        frames.append(field_of_view.frame_of(picture, network.shape))
        model_images[index] = geometry.photograph_to_model(picture, frames[-1], size)
    outputs = network.outputs({"image": model_images})
    return [
        Predicted(
            name,
            path,
            photograph,
            averaging.read(
                outputs,
                index,
                network.classifier,
                frames[index],
                network.post,
                network.calibration,
                field=field_of_view.limits(
                    model_images[index], frames[index], network.shape
                ),
            ),
        )
        for index, (name, path, photograph) in enumerate(read)
    ]


def _distinct_names(paths: Sequence[pathlib.Path]) -> dict[pathlib.Path, str]:
    """Returns file stems, numbered where several photographs share one."""
    names: dict[pathlib.Path, str] = {}
    taken: set[str] = set()
    for path in paths:
        name, number = path.stem, 2
        while name in taken:
            name, number = f"{path.stem}_{number}", number + 1
        taken.add(name)
        names[path] = name
    return names
