"""The record that every builder writes, and its TFDS features.

A record is one photograph at model size with its annotations. It also has what
evaluation at native resolution needs. Images are stored as PNG bytes, so that data sets
are written and read without TensorFlow.
"""

from __future__ import annotations

import functools
import io
import pathlib
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from etils import epy
from PIL import Image

from mtl_jax.annotations import LABELS
from mtl_jax.data import field_of_view, geometry
from mtl_jax.errors import UserError

with epy.lazy_imports():
    import tensorflow_datasets as tfds
    from google.protobuf import json_format
    from tensorflow_datasets.core import proto

SPLITS = ("train", "validation", "test")

# Encoded masks; only evaluation at native resolution decodes them.
NATIVE_MASKS = ("native_disc_mask", "native_cup_mask")

# The keys that a record holds as PNG bytes.
IMAGES = ("image", "disc_mask", "cup_mask", *NATIVE_MASKS)

# The network halves an image four times; smaller images show too little.
SIZE_MULTIPLE, MIN_SIZE = 16, 32


def check_image_size(image_size: int) -> None:
    """Refuses a size of model images that does not fit the network.

    Raises:
      UserError: with the sizes that do.
    """
    if image_size < MIN_SIZE or image_size % SIZE_MULTIPLE:
        raise UserError(
            f"An image size of {image_size} pixels does not fit the network; choose a "
            f"multiple of {SIZE_MULTIPLE}, at least {MIN_SIZE}."
        )


def features(image_size: int) -> tfds.features.FeaturesDict:
    """Returns the TFDS features of records with `image_size` pixels a side."""
    image = tfds.features.Image

    def mask(shape: tuple[int | None, int | None]) -> tfds.features.Image:
        return image(shape=(*shape, 1), encoding_format="png")

    square = (image_size, image_size)
    return tfds.features.FeaturesDict(
        {
            "image_id": tfds.features.Text(),
            "file_name": tfds.features.Text(),
            "camera": tfds.features.Text(),
            "source": tfds.features.Text(),
            "patient": tfds.features.Text(),
            "eye": tfds.features.Text(),
            "image": image(shape=(*square, 3), encoding_format="png"),
            "disc_mask": mask(square),
            "cup_mask": mask(square),
            "fovea_xy": tfds.features.Tensor(shape=(2,), dtype=np.float32),
            "glaucoma": np.float32,
            "has_label": tfds.features.Tensor(shape=(len(LABELS),), dtype=np.bool_),
            "native_size": tfds.features.Tensor(shape=(2,), dtype=np.int32),
            # `geometry.Frame.box`
            "frame": tfds.features.Tensor(shape=(4,), dtype=np.int32),
            # As bytes: otherwise TFDS stores float32.
            "native_fovea_xy": tfds.features.Tensor(
                shape=(2,), dtype=np.float64, encoding="bytes"
            ),
            "native_disc_mask": mask((None, None)),
            "native_cup_mask": mask((None, None)),
        }
    )


def open_built(version_dir: pathlib.Path) -> tfds.core.DatasetBuilder:
    """Opens a data set whose records have `features`.

    A data set names the Python classes of its features. TFDS imports them, from the
    working directory too. So only those of `features` are let through.

    Args:
      version_dir: version directory of the data set.

    Raises:
      UserError: if the data set names other classes, or cannot be parsed.
    """
    expected = set(_classes(features(MIN_SIZE).to_proto()))
    described, info = proto.feature_pb2.Feature(), proto.dataset_info_pb2.DatasetInfo()
    for name, message in (("features.json", described), ("dataset_info.json", info)):
        path = version_dir / name
        try:
            json_format.Parse(path.read_bytes(), message)
        except (json_format.ParseError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path} cannot be parsed ({str(error).splitlines()[0]}); build the "
                "data set again."
            ) from error
        stated = info.features if info.HasField("features") else described
        for other, _ in set(_classes(stated)) - expected:
            raise UserError(
                f"{path} names the Python class {other!r}, whose code would run; "
                "scripts/prepare_data.py does not write that, so build the data set "
                "again."
            )
    return tfds.builder_from_directory(version_dir)


def _classes(feature: proto.feature_pb2.Feature) -> Iterator[tuple[str, str | None]]:
    """The class of a feature and of those inside, each with the kind of its content.

    Content as JSON is parsed by the class, which may find names of classes in it.
    """
    yield feature.python_class_name, feature.WhichOneof("content")
    for inside in feature.features_dict.features.values():
        yield from _classes(inside)


def encode_record(
    image_id: str,
    photograph: Image.Image,
    image_size: int,
    shape: field_of_view.Shape,
    *,
    disc_mask: np.ndarray | None = None,
    cup_mask: np.ndarray | None = None,
    fovea_xy: npt.ArrayLike | None = None,
    glaucoma: float | None = None,
    camera: str = "",
    file_name: str = "",
    source: str = "",
    patient: str = "",
    eye: str = "",
) -> dict[str, Any]:
    """Makes the record of one photograph; None stands for "not annotated".

    Args:
      image_id: unique name within the data set.
      photograph: RGB at native size.
      image_size: pixels a side of the model image.
      shape: what the model image shows of it, see `field_of_view.frame_of`.
      disc_mask: uint8 [H, W], non-zero inside the optic disc.
      cup_mask: uint8 [H, W], non-zero inside the optic cup.
      fovea_xy: (x, y) in native pixels.
      glaucoma: 1 for glaucoma, 0 for healthy.
      camera: name of the device.
      file_name: name of the photograph in results, with its extension.
      source: name of the data set that it is from.
      patient: unique name of the patient; empty if unknown.
      eye: `OD` (right), `OS` (left), or empty.

    Returns:
      A dict that fits `features(image_size)`. Absent annotations are zero, with False
      in `has_label`.
    """
    native_size = (photograph.height, photograph.width)
    model_size = (image_size, image_size)
    frame = field_of_view.frame_of(photograph, shape)
    masks = {"disc_mask": disc_mask, "cup_mask": cup_mask}
    native_xy = np.zeros(2) if fovea_xy is None else np.asarray(fovea_xy, np.float64)
    model_xy = geometry.xy_to_model(native_xy, frame, model_size)
    labels = (glaucoma, disc_mask, cup_mask, fovea_xy)
    return {
        "image_id": image_id,
        "file_name": file_name,
        "camera": camera,
        "source": source,
        "patient": patient,
        "eye": eye,
        "image": encode_png(
            geometry.photograph_to_model(photograph, frame, model_size)
        ),
        **{
            name: _no_mask(model_size)
            if mask is None
            else encode_mask(geometry.mask_to_model(mask, frame, model_size))
            for name, mask in masks.items()
        },
        "fovea_xy": np.zeros(2, np.float32)
        if fovea_xy is None
        else model_xy.astype(np.float32),
        "glaucoma": np.float32(0 if glaucoma is None else glaucoma),
        "has_label": np.array([label is not None for label in labels]),
        "native_size": np.array(native_size, np.int32),
        "frame": np.array(frame.box, np.int32),
        "native_fovea_xy": native_xy,
        **{
            f"native_{name}": _no_mask(native_size)
            if mask is None
            else encode_mask(mask)
            for name, mask in masks.items()
        },
    }


@functools.lru_cache(maxsize=8)
def _no_mask(size: tuple[int, int]) -> bytes:
    return encode_mask(np.zeros(size, np.uint8))


def encode_png(array: np.ndarray) -> bytes:
    """Encodes a uint8 [H, W] or [H, W, 3] array as PNG.

    A higher compression level would make photographs a tenth smaller, but take three
    times as long.
    """
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def encode_mask(mask: np.ndarray) -> bytes:
    """Encodes a [H, W] mask, non-zero inside, as PNG with one bit per pixel.

    Pillow takes five times as long to pack the bits: for the two native masks of a
    photograph, as long as decoding the photograph.
    """
    height, width = mask.shape
    # Every row begins with the number of its filter, 0 for none.
    rows = np.zeros((height, 1 + -(-width // 8)), np.uint8)
    rows[:, 1:] = np.packbits(mask, axis=1)
    # One bit of grey, the only compression method, not interlaced.
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = (b"IHDR" + header, b"IDAT" + zlib.compress(rows.data, 1), b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    )


def decode_png(encoded: bytes) -> np.ndarray:
    """Decodes the result of `encode_png` or `encode_mask` to a uint8 array."""
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image).astype(np.uint8, copy=False)
