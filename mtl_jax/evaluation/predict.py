"""Applies a network to photographs."""

import collections
import dataclasses
import itertools
import os
import pathlib
import re
import sys
import time
import unicodedata
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tqdm
from PIL import Image

from mtl_jax import files, machine, workdirs
from mtl_jax.data import field_of_view, geometry, images, lookahead
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


@dataclasses.dataclass
class Tally:
    """What `predict` says of photographs beside their predictions.

    Attributes:
      failures: a sentence for every photograph that cannot be read or interpreted.
      conversions: number of photographs by `images.Photograph.conversion`.
      busy: intervals in seconds in which the network worked, each from `time.monotonic`
        to another; one for each batch.
    """

    failures: list[str] = dataclasses.field(default_factory=list)
    conversions: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    busy: list[tuple[float, float]] = dataclasses.field(default_factory=list)

    def waiting(self) -> float | None:
        """Share of the time in which the network waited; None if that says nothing.

        The first batch does not count: it includes compilation.
        """
        if len(self.busy) < 3:
            return None
        (_, start), *others = self.busy
        worked = sum(end - begin for begin, end in others)
        return 1 - worked / (self.busy[-1][1] - start)


class _Read(NamedTuple):
    """A photograph that has been read, and its place among those of its batch."""

    place: int
    num_places: int
    name: str
    path: pathlib.Path
    photograph: Photograph


def predict(
    network: workdirs.TrainedNetwork,
    photographs: Mapping[str, pathlib.Path],
    finish: Callable[[Predicted], _T],
    tally: Tally,
    done: Collection[str] = (),
) -> Generator[tuple[pathlib.Path, _T]]:
    """Applies a network to photographs of any size, with a progress bar.

    Threads read photographs and finish predictions while the network works: decoders,
    encoders and XLA need no lock of Python. A few
    batches, and two photographs for each core, are in memory, however many photographs
    there are. Each photograph has its place in a batch, whether or not the others can
    be read or are done: so its prediction does not depend on them.

    Args:
      network: network that `workdirs.load` or `load_averaged` returned.
      photographs: paths by name, as of `distinct_names`.
      finish: makes of a prediction what is wanted; a thread calls it.
      tally: gets what is to be said of the photographs.
      done: names of the photographs that are left out.

    Yields:
      The path of each photograph, and what `finish` returned. Photographs that cannot
      be read or finished are left out.
    """
    cores = machine.num_cores()
    progress = tqdm.tqdm(
        total=len(photographs), initial=len(done), desc="predicting", unit="image"
    )

    def run(batch: list[_Read]) -> averaging.Outputs:
        begin = time.monotonic()
        places: list[Photograph | None] = [None] * batch[0].num_places
        for one in batch:
            places[one.place] = one.photograph
        outputs = outputs_of(network, places)
        tally.busy.append((begin, time.monotonic()))
        return outputs

    def complete(task: tuple[_Read, averaging.Outputs]) -> _T:
        (place, _, name, path, photograph), outputs = task
        prediction = interpret(network, outputs, place, photograph)
        return finish(Predicted(name, path, photograph.pixels, prediction))

    with progress, lookahead.threads(cores) as pool, lookahead.threads(1) as device:
        batches = _batches(network, photographs, pool, tally, done, progress)
        run_ones = lookahead.in_order(device, run, batches, 1)
        tasks = ((one, ran.result()) for batch, ran in run_ones for one in batch)
        for (one, _), result in lookahead.in_order(pool, complete, tasks, 2 * cores):
            # None would stand for a failure.
            finished = attempt(tally.failures, one.path, lambda r=result: [r.result()])
            if finished is not None:
                yield one.path, finished[0]
            progress.update()


def _batches(
    network: workdirs.TrainedNetwork,
    photographs: Mapping[str, pathlib.Path],
    pool: ThreadPoolExecutor,
    tally: Tally,
    done: Collection[str],
    progress: tqdm.tqdm,
) -> Iterator[list[_Read]]:
    """Reads photographs ahead, batch by batch; leaves out those that cannot be read."""
    size = network.batch_size
    wanted = (
        (*divmod(number, size), name, path)
        for number, (name, path) in enumerate(photographs.items())
        if name not in done
    )
    results = lookahead.in_order(pool, lambda x: _read(x[-1], network), wanted, size)
    for number, group in itertools.groupby(results, lambda pair: pair[0][0]):
        batch, num_places = [], min(size, len(photographs) - number * size)
        for (_, place, name, path), result in group:
            photograph = attempt(tally.failures, path, result.result)
            if photograph is None:
                progress.update()
                continue
            tally.conversions[photograph.conversion] += 1
            batch.append(_Read(place, num_places, name, path, photograph))
        if batch:
            yield batch


def outputs_of(
    network: workdirs.TrainedNetwork, photographs: Sequence[Photograph | None]
) -> averaging.Outputs:
    """Computes what a network says of up to a batch of photographs; None is black."""
    side = network.image_size
    model_images = np.zeros((len(photographs), side, side, 3), np.uint8)
    for place, one in enumerate(photographs):
        if one is not None:
            model_images[place] = one.model_image
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
      ModuleNotFoundError: likewise, and the installation.
    """
    try:
        return function(*arguments, **options)
    except UserError as error:
        failure = str(error)
    except (OSError, ModuleNotFoundError):
        raise
    # Nobody has seen all photographs that there are.
    except Exception as error:
        failure = f"{path} cannot be used ({type(error).__name__}: {error})."
    failures.append(files.escape(failure))
    tqdm.tqdm.write(f"error: {failures[-1]}", file=sys.stderr)
    return None


def _read(path: pathlib.Path, network: workdirs.TrainedNetwork) -> Photograph:
    before = _state(path)
    try:
        picture, conversion, _ = images.open_photograph(path)
    finally:
        # Half a file is often damaged, and the reason is then this one.
        if before is not None and _state(path) != before:
            raise UserError(
                f"{path} changed while it was read; predict on it again when nothing "
                "writes to it any more."
            )
    return as_seen(network, picture, conversion)


def _state(path: pathlib.Path) -> tuple[int, int, int] | None:
    """What differs after a file has been written to; None if there is no file."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns


def as_seen(
    network: workdirs.TrainedNetwork, picture: Image.Image, conversion: str = ""
) -> Photograph:
    """Makes the image that a network sees of an RGB photograph."""
    frame = field_of_view.frame_of(picture, network.shape)
    size = (network.image_size, network.image_size)
    model_image = geometry.photograph_to_model(picture, frame, size)
    field = field_of_view.limits(model_image, frame, network.shape)
    return Photograph(np.array(picture), conversion, frame, model_image, field)


def distinct_names(paths: Sequence[pathlib.Path]) -> dict[pathlib.Path, str]:
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
