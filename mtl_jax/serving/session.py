"""Holds the photographs of one run of the page, and what a network says of them."""

import base64
import binascii
import dataclasses
import hashlib
import io
import os
import pathlib
import tempfile
import threading
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from mtl_jax import files, tasks, workdirs
from mtl_jax.data import geometry, images
from mtl_jax.errors import UserError
from mtl_jax.evaluation import predict, saliency
from mtl_jax.inference.prediction import Prediction
from mtl_jax.reporting import predictions, submission
from mtl_jax.serving.corrections import PARTS, Annotations, Conflict, Corrections

# Long side of the picture that the browser shows, and the quality of its JPEG.
_VIEW, _QUALITY = 1600, 90
# The colour of gradient maps, and the percentile of a map that is drawn opaque.
_GRADIENT, _OPAQUE = tasks.COLOURS["vermilion"], 99.5

Size = tuple[int, int]


class Unknown(UserError):
    """There is no such photograph, or it lacks what is asked for."""


@dataclasses.dataclass(frozen=True)
class _Photograph:
    """A photograph, and what is said of it; its files are in the session's folder.

    Attributes:
      key: digest of the file.
      name: name of the file.
      size: (height, width).
      view: (height, width) of the picture that the browser shows.
      row: what `predict` would write into its table.
      doubts: doubts about it, with their reasons.
    """

    key: str
    name: str
    size: Size
    view: Size
    row: dict[str, Any]
    doubts: tuple[str, ...]


class Session:
    """Photographs by the digest of their files, in the order in which they came.

    Methods may be called from several threads. Whatever needs the network is done one
    at a time, and so are corrections.
    """

    def __init__(
        self,
        folders: Sequence[pathlib.Path],
        place: pathlib.Path,
        corrections: Corrections | None = None,
    ) -> None:
        """Reads the network.

        Args:
          folders: workdirs of the networks that are averaged, or of one.
          place: empty folder for files of the session.
          corrections: where corrections are kept; None if they cannot be made.

        Raises:
          UserError: if the network cannot be read.
        """
        network = workdirs.load_calibrated(folders)
        # Photographs come one by one.
        self.network = network.in_batches_of(jax.local_device_count())
        self.corrections = corrections
        self._workdir, self._place = folders[0], place
        self._photographs: dict[str, _Photograph] = {}
        self._working, self._correcting = threading.Lock(), threading.Lock()

    def describe_network(self) -> dict[str, Any]:
        """Says what the page needs to know of the network, as JSON."""
        names = self.network.config.tasks
        shown = [tasks.TASKS[name] for name in names if tasks.TASKS[name].is_dense]
        parts = [tasks.TASKS[name] for name in (*PARTS, "fovea")]
        return {
            "tasks": [*names],
            "parts": [
                {"name": one.name, "title": one.title, "kind": one.kind, "rgb": one.rgb}
                for one in dict.fromkeys([*parts, *shown])
            ],
            "has_classifier": any(
                tasks.TASKS[name].kind == "classification" for name in names
            ),
            "is_calibrated": self.network.calibration is not None,
            "can_correct": self.corrections is not None,
            "note": self.network.note,
        }

    def add(self, name: str, contents: bytes) -> dict[str, Any]:
        """Predicts on a photograph, unless it is there already.

        Args:
          name: name of its file.
          contents: bytes of its file.

        Returns:
          What the page shows of it, as JSON.

        Raises:
          UserError: if it is no photograph that can be read.
        """
        key = hashlib.sha256(contents).hexdigest()[:12]
        with self._working:
            if key not in self._photographs:
                try:
                    self._photographs[key] = self._predict(key, name, contents)
                except (UserError, OSError, ModuleNotFoundError):
                    raise
                # Nobody has seen all photographs that there are.
                except Exception as error:
                    raise UserError(
                        f"{name} cannot be used ({type(error).__name__}: {error})."
                    ) from error
        return self.describe(key)

    def _predict(self, key: str, name: str, contents: bytes) -> _Photograph:
        picture, conversion, _ = images.open_photograph(name, contents)
        seen = predict.as_seen(self.network, picture, conversion)
        outputs = predict.outputs_of(self.network, [seen])
        prediction = predict.interpret(self.network, outputs, 0, seen)
        prediction, doubts = predict.judge(seen.pixels, prediction)
        one = predict.Predicted(
            pathlib.PurePath(name).stem, pathlib.Path(name), seen.pixels, prediction
        )
        row, grey_masks = predictions.describe(one, doubts)
        size = (picture.height, picture.width)
        scale = min(1, _VIEW / max(size))
        view = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        shown = io.BytesIO()
        small = picture.resize(view[::-1], Image.Resampling.LANCZOS, reducing_gap=3)
        small.save(shown, "JPEG", quality=_QUALITY)
        self._file(key, "view.jpg").write_bytes(shown.getvalue())
        for task in _masks_of(prediction):
            mask = Image.fromarray(prediction.found[task] * np.uint8(255))
            mask.save(self._file(key, f"{task}.png"), compress_level=1)
        for column, pixels in grey_masks.items():
            png = submission.encode(pixels, "PNG")
            self._file(key, f"{column}.png").write_bytes(png)
        self._file(key, "upload").write_bytes(contents)
        return _Photograph(key, name, size, view, row, tuple(map(str, doubts)))

    def describe_all(self) -> list[dict[str, Any]]:
        """Says what the page shows of every photograph, as JSON."""
        return [self.describe(one.key) for one in self._all()]

    def describe(self, key: str) -> dict[str, Any]:
        """Says what the page shows of a photograph, as JSON.

        Raises:
          UserError: if there is no such photograph, or its correction is damaged.
        """
        one = self._one(key)
        version, correction = self._correction(one)
        fovea = correction.fovea if correction else _fovea(one.row)
        return {
            "id": key,
            "name": one.name,
            "size": one.size,
            "view": one.view,
            "numbers": {
                name: value
                for name, value in one.row.items()
                if isinstance(value, int | float) or value is None
            },
            "quality": one.doubts,
            "masks": [
                part
                for part in (*PARTS, *predictions.other_masks())
                if self._mask_file(one, part, correction) is not None
            ],
            "fovea": fovea,
            "version": version,
            "correction": correction
            and {
                "glaucoma": correction.glaucoma,
                "fovea": correction.fovea,
                "masks": [*correction.masks],
            },
        }

    def view(self, key: str) -> bytes:
        """Returns the JPEG that the browser shows."""
        return self._file(self._one(key).key, "view.jpg").read_bytes()

    def mask_view(self, key: str, part: str) -> bytes:
        """Returns a mask of the size that the browser shows: PNG, opaque inside."""
        one = self._one(key)
        mask = self._mask(one, part, self._correction(one)[1])
        if mask is None:
            raise Unknown(f"{one.name} has no mask of {part!r}.")
        small = Image.fromarray(mask * np.uint8(255))
        small = small.resize(one.view[::-1], Image.Resampling.BOX, reducing_gap=3)
        picture = Image.new("LA", small.size, 255)
        picture.putalpha(small)
        content = io.BytesIO()
        picture.save(content, "PNG", compress_level=1)
        return content.getvalue()

    def gradient_view(self, key: str) -> bytes:
        """Returns the gradient map of a photograph as PNG, see `saliency`.

        Raises:
          Unknown: if the network has no classifier.
        """
        one, file = self._one(key), self._file(key, "gradient.png")
        with self._working:
            if not file.exists():
                contents = self._file(key, "upload").read_bytes()
                picture, *_ = images.open_photograph(one.name, contents)
                seen = predict.as_seen(self.network, picture)
                disc = self._mask(one, "disc", None)
                if disc is not None:
                    size = seen.model_image.shape[:2]
                    disc = geometry.mask_to_model(disc, seen.frame, size)
                found = saliency.of_run(self._workdir, seen.model_image, disc)
                if found is None:
                    raise Unknown("This network has no classifier to draw the map of.")
                file.write_bytes(_draw(found, seen.frame, one.view))
        return file.read_bytes()

    def table(self) -> pathlib.Path:
        """Writes the table that `predict` would write, without pictures, as CSV.

        Returns:
          A new file, which the caller deletes.
        """
        columns = [
            column
            for column in predictions.columns()
            if column != "overlay" and not column.endswith("mask")
        ]
        path = self._new_file()
        files.write_csv(path, columns, (one.row for one in self._all()))
        return path

    def masks(self) -> pathlib.Path:
        """Packs the masks that `predict` would write; returns as `table`."""
        path = self._new_file()
        with zipfile.ZipFile(path, "w") as file:
            for one in self._all():
                mask = self._file(one.key, "mask.png")
                if mask.exists():
                    # Photographs of one name differ in their digest.
                    stem = pathlib.PurePath(one.name).stem
                    file.write(mask, f"{stem}-{one.key}.png")
        return path

    def correct(self, key: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Saves a correction.

        Args:
          key: the photograph.
          request: `version` that it was made from; `fovea`, [x, y] or null; `glaucoma`,
            1, 0 or null; `masks`, by structure a PNG in base64 that is opaque inside,
            or null for none. A structure that is absent stays as it is.

        Returns:
          What the page shows of the photograph, as JSON.

        Raises:
          UserError: if the request is malformed.
          Conflict: if another version was saved in the meantime.
        """
        one, corrections = self._one(key), self._folder()
        correction = _parse(request, one)
        with self._correcting:
            _, old = self._correction(one)
            kept = {
                part: mask
                for part in PARTS
                if part not in request["masks"]
                and (mask := self._mask(one, part, old)) is not None
            }
            contents = self._file(key, "upload").read_bytes()
            correction = correction._replace(masks={**kept, **correction.masks})
            corrections.save(
                key, str(request["version"]), correction, one.name, contents
            )
        return self.describe(key)

    def withdraw(self, key: str, version: str) -> dict[str, Any]:
        """Removes a correction; raises and returns as `correct`."""
        with self._correcting:
            self._folder().withdraw(self._one(key).key, version)
        return self.describe(key)

    def _folder(self) -> Corrections:
        if self.corrections is None:
            raise Conflict("Corrections need a folder; start with --corrections=DIR.")
        return self.corrections

    def _all(self) -> list[_Photograph]:
        return [*self._photographs.values()]

    def _new_file(self) -> pathlib.Path:
        handle, path = tempfile.mkstemp(dir=self._place)
        os.close(handle)
        return pathlib.Path(path)

    def _one(self, key: str) -> _Photograph:
        if key not in self._photographs:
            raise Unknown(
                "This photograph is not on the page (any more); drop it again."
            )
        return self._photographs[key]

    def _correction(self, one: _Photograph) -> tuple[str, Annotations | None]:
        """Reads the version of a correction, and the correction, if there is one."""
        return self.corrections.load(one.key) if self.corrections else ("", None)

    def _mask_file(
        self, one: _Photograph, part: str, correction: Annotations | None
    ) -> pathlib.Path | None:
        """Finds the corrected mask of a structure, or else the predicted one."""
        if correction is not None and part in PARTS:
            return correction.masks.get(part)
        if part not in (*PARTS, *predictions.other_masks()):
            return None
        path = self._file(one.key, f"{part}.png")
        return path if path.exists() else None

    def _mask(
        self, one: _Photograph, part: str, correction: Annotations | None
    ) -> np.ndarray | None:
        path = self._mask_file(one, part, correction)
        if path is None:
            return None
        mask = images.binary_mask(images.read_mask(path))
        if mask.shape != one.size:
            raise UserError(
                f"{path} has another size than its photograph; delete its row in the "
                "manifest."
            )
        return mask

    def _file(self, key: str, name: str) -> pathlib.Path:
        return self._place / f"{key}.{name}"


def _masks_of(prediction: Prediction) -> list[str]:
    names = [task.name for task in tasks.of_kind("segmentation")]
    return [name for name in names if prediction.found.get(name) is not None]


def _fovea(row: Mapping[str, Any]) -> tuple[float, float] | None:
    x, y = row.get("fovea_x"), row.get("fovea_y")
    return None if x is None or y is None else (x, y)


def _parse(request: Mapping[str, Any], one: _Photograph) -> Annotations:
    """Reads a request; see `Session.correct`."""
    try:
        str(request["version"])
        fovea = request["fovea"]
        if fovea is not None:
            x, y = map(float, fovea)
            # A comparison with NaN is false, too.
            if not (-0.5 <= x < one.size[1] - 0.5 and -0.5 <= y < one.size[0] - 0.5):
                raise ValueError("the fovea lies outside the photograph")
            fovea = x, y
        glaucoma = request["glaucoma"]
        if glaucoma not in (None, 0, 1):
            raise ValueError("glaucoma must be 1, 0 or null")
        masks = {}
        for part, text in dict(request["masks"]).items():
            if part not in PARTS:
                raise ValueError(f"{part!r} is none of {', '.join(PARTS)}")
            masks[part] = _decode(text, one)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"The correction is malformed ({error}).") from error
    return Annotations(masks, fovea, None if glaucoma is None else int(glaucoma))


def _decode(text: str | None, one: _Photograph) -> np.ndarray:
    """Brings a mask of the browser's size to the photograph's."""
    if text is None:
        return np.zeros(one.size, np.uint8)
    try:
        content = base64.b64decode(text, validate=True)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            if picture.size != one.view[::-1]:
                raise ValueError(f"a mask must have {one.view[::-1]} pixels")
            alpha = picture.convert("RGBA").getchannel("A")
    except (OSError, SyntaxError, binascii.Error) as error:
        raise ValueError(f"a mask is no PNG in base64: {error}") from error
    # Between pixels of the view the outline is smooth.
    native = alpha.resize(one.size[::-1], Image.Resampling.BILINEAR)
    return (np.asarray(native) >= 128).astype(np.uint8)


def _draw(found: np.ndarray, frame: geometry.Frame, view: Size) -> bytes:
    """Draws a gradient map of the model image over the picture that is shown."""
    strength = found / np.float32(max(np.percentile(found, _OPAQUE), 1e-12))
    scale = view[1] / frame.native_size[1]
    left, top, width, height = (round(scale * value) for value in frame.box)
    shown = geometry.Frame(left, top, max(1, width), max(1, height), view)
    alpha = geometry.picture_to_native(np.clip(strength, 0, 1), shown)
    pixels = np.empty((*view, 4), np.uint8)
    pixels[..., :3] = _GRADIENT
    pixels[..., 3] = np.rint(255 * np.clip(alpha, 0, 1))
    return submission.encode(pixels, "PNG")
