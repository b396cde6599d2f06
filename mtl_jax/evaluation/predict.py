"""Applies a network to photographs."""

import collections
import itertools
import pathlib
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tqdm

from mtl_jax import files, workdirs
from mtl_jax.data import field_of_view, geometry, images
from mtl_jax.errors import UserError
from mtl_jax.inference import averaging
from mtl_jax.inference.prediction import Prediction

# Bytes of a name in UTF-8. With a number and an extension it has less than the 255
# that file systems allow.
_LONGEST_NAME = 240

_T = TypeVar("_T")


class _Photograph(NamedTuple):
    """A photograph as it is, and as the network sees it.

    Attributes:
      path: path of the file.
      pixels: uint8 [h, w, 3].
      conversion: what was converted to read it.
      frame: what the model image shows of it.
      model_image: uint8 [H, W, 3].
      field: field of view in the model image; None if nothing limits it.
    """

    path: pathlib.Path
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
            tried = [attempt(failures, path, _read, path, network) for path in chunk]
            read = [photograph for photograph in tried if photograph is not None]
            conversions.update(photograph.conversion for photograph in read)
            if read:
                yield from _predict_batch(read, names, network, failures)
            progress.update(len(chunk))


def _predict_batch(
    read: Sequence[_Photograph],
    names: Mapping[pathlib.Path, str],
    network: workdirs.TrainedNetwork,
    failures: list[str],
) -> Iterator[Predicted]:
    # The last batch is filled with black.
    model_images = np.zeros((network.batch_size, *read[0].model_image.shape), np.uint8)
    model_images[: len(read)] = [photograph.model_image for photograph in read]
    outputs = network.outputs({"image": model_images})
    for index, photograph in enumerate(read):
        prediction = attempt(
            failures,
            photograph.path,
            averaging.read,
            outputs,
            index,
            network.classifier,
            photograph.frame,
            network.post,
            network.calibration,
            field=photograph.field,
        )
        if prediction is not None:
            path, pixels = photograph.path, photograph.pixels
            yield Predicted(names[path], path, pixels, prediction)


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


def _read(path: pathlib.Path, network: workdirs.TrainedNetwork) -> _Photograph:
    picture, conversion, _ = images.open_photograph(path)
    frame = field_of_view.frame_of(picture, network.shape)
    size = (network.image_size, network.image_size)
    model_image = geometry.photograph_to_model(picture, frame, size)
    field = field_of_view.limits(model_image, frame, network.shape)
    return _Photograph(path, np.array(picture), conversion, frame, model_image, field)


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
