"""Reads ophthalmic photographs in DICOM, by `pydicom` of the extra `dicom`."""

import logging
import pathlib
import warnings
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image

from mtl_jax.data.images import conversion
from mtl_jax.data.images.conversion import Photograph
from mtl_jax.errors import UserError

if TYPE_CHECKING:
    from pydicom import Dataset

# Ophthalmic photography, external-camera photography, and secondary capture: how
# archives keep a picture that another program has exported.
_MODALITIES = ("OP", "XC", "SC")
_PHOTOGRAPHY = "1.2.840.10008.5.1.4.1.1.77.1."
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
# Standard, Part 4, Annex B.5.
_CLASSES = (
    f"{_PHOTOGRAPHY}5.1",  # Ophthalmic Photography 8 Bit
    f"{_PHOTOGRAPHY}5.2",  # Ophthalmic Photography 16 Bit
    f"{_PHOTOGRAPHY}5.5",  # Wide Field, Stereographic Projection
    f"{_PHOTOGRAPHY}5.6",  # Wide Field, 3D Coordinates
    f"{_PHOTOGRAPHY}4",  # VL Photographic
    _SECONDARY_CAPTURE,
    f"{_SECONDARY_CAPTURE}.4",  # Multi-frame True Color
)
_PALETTE = "PALETTE COLOR"
_YBR = ("YBR_FULL", "YBR_FULL_422")
# The last two are JPEG 2000's, whose decoders return RGB.
_COLOURS = ("RGB", *_YBR, _PALETTE, "YBR_RCT", "YBR_ICT")
_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"


def recognises(start: bytes) -> bool:
    """Whether a file that begins with these bytes is DICOM."""
    return start[128:132] == b"DICM"


def read(path: pathlib.Path, file: BinaryIO) -> Photograph:
    """Decodes a photograph to RGB; see `open_photograph`."""
    import pydicom
    from pydicom import pixels

    # It tells for every file what it puts right, such as YBR that is called RGB.
    logging.getLogger("pydicom").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"pydicom\.")
    dataset = pydicom.dcmread(file)
    _check_kind(dataset, path)
    _check_pixels(dataset, path)
    photometric = dataset.PhotometricInterpretation
    if photometric == _PALETTE:
        indices = pixels.pixel_array(dataset)
        values = pixels.apply_color_lut(indices, dataset)[..., :3]
        bits = 8 * values.itemsize
    else:
        bits = dataset.BitsStored
        # pydicom converts no more than 8 bits to RGB.
        is_deep_ybr = photometric in _YBR and dataset.BitsAllocated > 8
        values = pixels.pixel_array(dataset, raw=is_deep_ybr)
        if is_deep_ybr:
            values = _rgb_of_ybr(values, bits)
    if bits > 8:
        conversion.check_depth(values, bits, path)
        return conversion.reduce_to_8_bits(values, bits)
    return Photograph(Image.fromarray(values.astype(np.uint8)))


def _check_kind(dataset: "Dataset", path: pathlib.Path) -> None:
    """Refuses what is no colour photograph."""
    modality = dataset.get("Modality") or "unknown"
    if modality not in _MODALITIES:
        raise UserError(
            f"{path} is DICOM of the modality {modality}; only photographs are read"
            f" ({', '.join(_MODALITIES)})."
        )
    kind = dataset.get("SOPClassUID")
    if kind not in _CLASSES:
        raise UserError(
            f"{path} is DICOM of the class {getattr(kind, 'name', 'unknown')}; only"
            " photographs are read."
        )
    if "PixelData" not in dataset:
        raise UserError(f"{path} is DICOM without a picture; export it with one.")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise UserError(
            f"{path} holds {frames} frames; save the right one as a separate file."
        )
    photometric = dataset.PhotometricInterpretation
    if photometric.startswith("MONOCHROME"):
        raise UserError(
            f"{path} is a grey photograph (DICOM {photometric}), such as an angiogram;"
            " name a colour photograph."
        )
    if photometric not in _COLOURS:
        raise UserError(
            f"{path} has colours that are not read (DICOM {photometric}); export it as"
            " RGB."
        )


def _check_pixels(dataset: "Dataset", path: pathlib.Path) -> None:
    """Refuses numbers without a known range, and compressions without a decoder."""
    from pydicom.pixels import get_decoder

    conversion.check_size(dataset.Columns, dataset.Rows, path)
    bits = dataset.BitsStored
    if not 8 <= bits <= 16 or dataset.PixelRepresentation != 0:
        raise UserError(
            f"{path} holds {'signed ' if dataset.PixelRepresentation else ''}numbers of"
            f" {bits} bits; export it with 8 to 16 unsigned bits per channel."
        )
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        can_decode = get_decoder(syntax).is_available
    except NotImplementedError:
        can_decode = False
    # Of this one its decoders know only 8 bits.
    if not can_decode or (syntax == _JPEG_EXTENDED and bits > 8):
        raise UserError(
            f"{path} is compressed in a way that cannot be decoded here ({syntax.name},"
            f" {bits} bits); install mtl_jax[dicom] whole, or export it uncompressed."
        )


def _rgb_of_ybr(ybr: np.ndarray, bits: int) -> np.ndarray:
    """Converts YBR_FULL of any depth to RGB (Standard, Part 3, C.7.6.3.1.2)."""
    maximum = 2**bits - 1
    y, b, r = np.moveaxis(ybr.astype(np.float32), -1, 0)
    b, r = b - 2 ** (bits - 1), r - 2 ** (bits - 1)
    rgb = np.stack([y + 1.402 * r, y - 0.344136 * b - 0.714136 * r, y + 1.772 * b], -1)
    return np.rint(rgb.clip(0, maximum)).astype(np.uint16)
