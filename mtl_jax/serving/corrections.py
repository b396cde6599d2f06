"""Keeps corrected annotations as a folder that `prepare_data.py` reads.

The folder holds `manifest.csv` with the photographs and masks that it names. The
manifest is the only state: a save first writes files of new names, then replaces the
manifest, and so is there completely or not at all.
"""

import csv
import hashlib
import io
import json
import pathlib
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mtl_jax import files
from mtl_jax.data import images
from mtl_jax.errors import UserError

# The structures that a manifest has masks of; each is in the column PART_mask.
PARTS = ("disc", "cup")
_COLUMNS = ("image_id", "image", "disc_mask", "cup_mask", "fovea_x", "fovea_y")
_COLUMNS += ("glaucoma",)
# Bytes of a file's name in the names that are made of it.
_LONGEST_STEM = 80
# What an `image_id` ends with.
_KEY = re.compile(r"-([0-9a-f]{12})$")


class Conflict(UserError):
    """Somebody else has saved a correction of the photograph in the meantime."""


class Annotations(NamedTuple):
    """Annotations of one photograph; None or absent stands for "not annotated".

    Attributes:
      masks: by structure; a file, or uint8 [H, W] of the photograph's size, non-zero
        inside.
      fovea: (x, y) in pixels of the photograph.
      glaucoma: 1 or 0.
    """

    masks: Mapping[str, Any]
    fovea: tuple[float, float] | None
    glaucoma: int | None


class Corrections:
    """A folder of corrections; see `opened`."""

    def __init__(self, folder: pathlib.Path) -> None:
        """Takes a folder that exists."""
        self._folder, self._manifest = folder, folder / "manifest.csv"
        self._saving = threading.Lock()
        self._read()

    def load(self, photograph: str) -> tuple[str, Annotations | None]:
        """Reads a correction.

        Returns:
          Its version, empty if there is none; and the annotations, with files as masks.

        Raises:
          UserError: if the manifest cannot be read.
        """
        row = self._read()[0].get(photograph)
        if row is None:
            return "", None
        named = {part: row[f"{part}_mask"] for part in PARTS}
        masks = {part: self._inside(name) for part, name in named.items() if name}
        try:
            fovea = None
            if row["fovea_x"]:
                fovea = float(row["fovea_x"]), float(row["fovea_y"])
            glaucoma = int(float(row["glaucoma"])) if row["glaucoma"] else None
        except ValueError as error:
            raise UserError(
                f"{self._manifest} has a wrong cell ({error}); correct it there."
            ) from None
        return _version(row), Annotations(masks, fovea, glaucoma)

    def save(
        self,
        photograph: str,
        version: str,
        annotations: Annotations,
        name: str,
        contents: bytes,
    ) -> str:
        """Saves a correction, completely or not at all.

        The cup counts as part of the disc. An empty mask is no annotation.

        Args:
          photograph: digest of the photograph's file.
          version: version that the correction was made from.
          annotations: the correction, with arrays as masks.
          name: name of the photograph's file.
          contents: bytes of the photograph's file.

        Returns:
          The new version.

        Raises:
          Conflict: if another version was saved in the meantime.
          OSError: if a file cannot be written.
        """
        path = pathlib.PurePath(name)
        stem = re.sub(r"[^\w-]+", "_", path.stem).encode()[:_LONGEST_STEM]
        stem = stem.decode(errors="ignore").strip("_-") or "photograph"
        image_id = f"{stem}-{photograph}"
        suffix = path.suffix.lower() if path.suffix.lower() in images.EXTENSIONS else ""
        masks = {part: mask for part, mask in annotations.masks.items() if mask.any()}
        if {*PARTS} <= masks.keys():
            masks["disc"] = masks["disc"] | masks["cup"]
        with self._saving:
            rows, columns = self._read()
            old = rows.get(photograph)
            _check_version(old, version)
            if old is None:
                place = f"photographs/{image_id}{suffix}"
                files.write_bytes(self._folder / place, contents)
                old = {"image_id": image_id, "image": place}
            row = {**old, **dict.fromkeys(_COLUMNS[2:], "")}
            for part, mask in masks.items():
                png = _encode(mask)
                digest = hashlib.sha256(png).hexdigest()[:12]
                path = f"masks/{image_id}_{part}_{digest}.png"
                files.write_bytes(self._folder / path, png)
                row[f"{part}_mask"] = path
            if annotations.fovea is not None:
                row["fovea_x"], row["fovea_y"] = (f"{v:.2f}" for v in annotations.fovea)
            if annotations.glaucoma is not None:
                row["glaucoma"] = str(annotations.glaucoma)
            self._write({**rows, photograph: row}, columns)
            self._remove_unused(old, row)
            return _version(row)

    def withdraw(self, photograph: str, version: str) -> None:
        """Removes a correction, and the files that its row names.

        Raises:
          Conflict: if another version was saved in the meantime.
        """
        with self._saving:
            rows, columns = self._read()
            old = rows.pop(photograph, None)
            _check_version(old, version)
            self._write(rows, columns)
            if old is not None:
                self._remove_unused(old, {})

    def _read(self) -> tuple[dict[str, dict[str, str]], list[str]]:
        """Reads the rows by the digest at the end of `image_id`, and the columns."""
        if not self._manifest.exists():
            return {}, [*_COLUMNS]
        try:
            text = self._manifest.read_text("utf-8-sig")
            reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
            found = [{str(k): v or "" for k, v in row.items()} for row in reader]
            columns = [*(reader.fieldnames or ())]
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(f"{self._manifest} cannot be read ({error}).") from error
        if not {*_COLUMNS} <= {*columns}:
            raise UserError(
                f"{self._manifest} is not a manifest that this page wrote; name "
                "another folder by --corrections."
            )
        # Rows that somebody else has added stay.
        keys = [_KEY.search(row["image_id"]) for row in found]
        return {
            key[1] if key else f" {number}": row
            for number, (key, row) in enumerate(zip(keys, found, strict=True))
        }, columns

    def _write(self, rows: Mapping[str, dict[str, str]], columns: list[str]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())
        files.write_text(self._manifest, text.getvalue())

    def _inside(self, name: str) -> pathlib.Path:
        """The path of a file that a row names; refuses one outside the folder."""
        path = (self._folder / name).resolve()
        if not path.is_relative_to(self._folder.resolve()):
            raise UserError(
                f"{self._manifest} names {name}, which is outside its folder."
            )
        return path

    def _remove_unused(self, old: Mapping[str, str], new: Mapping[str, str]) -> None:
        for column in ("image", *(f"{part}_mask" for part in PARTS)):
            name = old.get(column)
            if name and name != new.get(column):
                self._inside(name).unlink(missing_ok=True)


@contextmanager
def opened(folder: pathlib.Path) -> Iterator[Corrections]:
    """Opens or makes a folder of corrections, for this process alone.

    Raises:
      UserError: if it cannot be used, holds another manifest, or is in use.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be used ({error.strerror}); name another folder by "
            "--corrections."
        ) from error
    with files.locked(folder) as is_free:
        if not is_free:
            raise UserError(
                f"Another process saves corrections to {folder}; end it, or name "
                "another folder by --corrections."
            )
        yield Corrections(folder)


def _check_version(row: Mapping[str, str] | None, version: str) -> None:
    if _version(row) != version:
        raise Conflict(
            "Another window has saved a correction of this photograph in the meantime; "
            "load that one, and correct it."
        )


def _version(row: Mapping[str, str] | None) -> str:
    if row is None:
        return ""
    # The names of masks hold their digests.
    cells = json.dumps([row.get(column) for column in _COLUMNS])
    return hashlib.sha256(cells.encode()).hexdigest()[:16]


def _encode(mask: np.ndarray) -> bytes:
    content = io.BytesIO()
    pixels = np.where(mask > 0, np.uint8(255), np.uint8(0))
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()
