"""Applies a network to photographs."""

import collections
import itertools
import pathlib
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tqdm
from PIL import Image

from mtl_jax import files, workdirs
from mtl_jax.data import field_of_view, geometry, images
from mtl_jax.errors import UserError
from mtl_jax.inference import averaging, quality
from mtl_jax.inference.prediction import Prediction

# Bytes of a name in UTF-8. With a number and an extension it has less than the 255
# that file systems allow.
_LONGEST_NAME = 240

_T = TypeVar("_T")


class Photograph(NamedTuple):
    """A photograph as it is, and as a network sees it.

    Attributes:
      pixels: uint8 [h, w, 3].
      conversion: what was converted to read it.
      frame: what the model image shows of it.
      model_image: uint8 [H, W, 3].
      field: field of view in the model image; None if nothing limits it.
    """

    pixels: np.ndarray
    conversion: str
    frame: geometry.Frame
    model_image: np.ndarray
    field: field_of_view.FieldOfView | None


class Predicted(NamedTuple):
    """A photograph and the prediction for it.

    Attributes:
      name: stem of the file, with a number if an earlier file has the same. Bytes that
        are not UTF-8 are escaped, and a long stem is cut.
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
      failures: list that gets a sentence for every photograph that cannot be read or
        interpreted and is left out.
      conversions: counter that gets the number of photographs by
        `images.Photograph.conversion`.
    """
    names = _distinct_names(paths)
    progress = tqdm.tqdm(total=len(paths), desc="predicting", unit="image")
    with progress:
        for start in range(0, len(paths), network.batch_size):
            chunk = paths[start : start + network.batch_size]
            tried = [
                (path, attempt(failures, path, _read, path, network)) for path in chunk
            ]
            read = [(path, one) for path, one in tried if one is not None]
            conversions.update(one.conversion for _, one in read)
            if read:
                outputs = outputs_of(network, [one for _, one in read])
                for index, (path, one) in enumerate(read):
                    prediction = attempt(
                        failures, path, interpret, network, outputs, index, one
                    )
                    if prediction is not None:
                        yield Predicted(names[path], path, one.pixels, prediction)
            progress.update(len(chunk))


def outputs_of(
    network: workdirs.TrainedNetwork, photographs: Sequence[Photograph]
) -> averaging.Outputs:
    """Computes what a network says of one photograph to a batch of them."""
    # The rest of the batch is black.
    shape = (network.batch_size, *photographs[0].model_image.shape)
    model_images = np.zeros(shape, np.uint8)
    model_images[: len(photographs)] = [one.model_image for one in photographs]
    return network.outputs({"image": model_images})


def interpret(
    network: workdirs.TrainedNetwork,
    outputs: averaging.Outputs,
    index: int,
    photograph: Photograph,
) -> Prediction:
    """Reads the prediction for one of the photographs off `outputs_of` them."""
    return averaging.read(
        outputs,
        index,
        network.classifier,
        photograph.frame,
        network.post,
        network.calibration,
        field=photograph.field,
    )


def judge(
    pixels: np.ndarray, prediction: Prediction
) -> tuple[Prediction, list[quality.Doubt]]:
    """Lists the doubts about a photograph, see `inference.quality`.

    Returns:
      The prediction, which is empty for what is not a fundus, and the doubts.
    """
    doubts = quality.doubts(
        pixels,
        prediction.disc,
        prediction.found.get("fovea"),
        prediction.spread.get("vcdr_spread"),
    )
    if quality.NOT_A_FUNDUS in [doubt.name for doubt in doubts]:
        prediction = Prediction(prediction.size)
    return prediction, doubts


def attempt(
    failures: list[str],
    path: pathlib.Path,
    function: Callable[..., _T],
    *arguments: Any,
    **options: Any,
) -> _T | None:
    """Calls a function on one photograph, so that no failure ends the run on all.

    Args:
      failures: list that gets a sentence if the function fails; it is printed, too.
      path: path of the photograph.
      function: function to call.
      *arguments: its arguments.
      **options: its arguments by name.

    Returns:
      What the function returns; None if it fails.

    Raises:
      OSError: if the function does. All photographs share the disk.
    """
    try:
        return function(*arguments, **options)
    except UserError as error:
        failure = str(error)
    except OSError:
        raise
    # Nobody has seen all photographs that there are.
    except Exception as error:
        failure = f"{path} cannot be used ({type(error).__name__}: {error})."
    failures.append(files.escape(failure))
    tqdm.tqdm.write(f"error: {failures[-1]}", file=sys.stderr)
    return None


def _read(path: pathlib.Path, network: workdirs.TrainedNetwork) -> Photograph:
    picture, conversion, _ = images.open_photograph(path)
    return as_seen(network, picture, conversion)


def as_seen(
    network: workdirs.TrainedNetwork, picture: Image.Image, conversion: str = ""
) -> Photograph:
    """Makes the image that a network sees of an RGB photograph."""
    frame = field_of_view.frame_of(picture, network.shape)
    size = (network.image_size, network.image_size)
    model_image = geometry.photograph_to_model(picture, frame, size)
    field = field_of_view.limits(model_image, frame, network.shape)
    return Photograph(np.array(picture), conversion, frame, model_image, field)


def _distinct_names(paths: Sequence[pathlib.Path]) -> dict[pathlib.Path, str]:
    """Returns file stems, numbered where several photographs share one.

    They also differ where a file system ignores case, or how accents are composed. No
    photograph gets a name that is another one's stem.
    """
    stems = {path: _sound(path.stem) for path in paths}
    owners: dict[str, pathlib.Path] = {}
    for path, stem in stems.items():
        owners.setdefault(_key(stem), path)
    numbers = collections.defaultdict[str, Iterator[int]](lambda: itertools.count(2))
    for path, stem in stems.items():
        if owners[_key(stem)] == path:
            continue
        for number in numbers[stem]:
            name = f"{stem}_{number}"
            if _key(name) not in owners:
                break
        stems[path], owners[_key(name)] = name, path
    return stems


def _sound(stem: str) -> str:
    """Turns a stem into a name in UTF-8 of one line, without backslashes."""
    text = re.sub(r"[\\\x00-\x1f\x7f]", "_", files.escape(stem))
    return text.encode()[:_LONGEST_NAME].decode(errors="ignore")


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
