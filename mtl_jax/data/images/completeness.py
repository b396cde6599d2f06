"""Proves that a part of a picture is missing where the decoder fills it in silently.

A copy that broke off leaves a file that ends early, or in zeros. A program that repairs
such a file closes it properly. Decoders show what they have, and black or grey below.
"""

import re
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageFile

# The end of a scan in JPEG: a marker that is neither a stuffed byte nor a restart.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_EOI, _SOS, _PROGRESSIVE = 0xD9, 0xDA, 0xC2
_FRAMES = (0xC0, 0xC1, _PROGRESSIVE)
# A coefficient of which no scan has told any bit.
_UNKNOWN = 255
# Decoders of JPEG put this grey where a block is missing.
_NO_BLOCK = 128
# Zeros at the end of data in WebP, in bytes per pixel. Its coder has zeros for what it
# expects, such as the next block of a black ground: half a bit for 256 pixels of it.
_ZEROS = 1 / 2048
# Samples of a pixel in PNG, by type of colour.
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# First column and row, and steps, of the passes of an interlaced PNG.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4))
_ADAM7 += ((1, 0, 2, 2), (0, 1, 1, 2))
# The darkest grey value of a pixel that the ground of a photograph does not have.
_LIGHT = 48


def lacks_data(image: ImageFile.ImageFile, contents: bytes) -> bool:
    """Whether the file of a decoded picture lacks a part of its data.

    Args:
      image: the picture, not yet turned.
      contents: of its file.
    """
    if image.format == "PNG":
        return not _png_is_whole(contents)
    if image.format == "WEBP":
        zeros = bytes(32 + int(_ZEROS * image.width * image.height))
        return _webp_data(contents).endswith(zeros)
    if image.format in ("JPEG", "MPO"):
        return _ends_in_missing_blocks(image) or not _jpeg_is_whole(contents)
    return False


def _png_is_whole(contents: bytes) -> bool:
    """Checks sums, and counts the bytes that the data inflate to."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(
        ">IIBBBBB", contents[16:29]
    )
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    expected = 0
    for x, y, step_x, step_y in passes:
        columns, rows = -(-(width - x) // step_x), -(-(height - y) // step_y)
        if columns > 0 and rows > 0:
            # Each row begins with the number of its filter.
            expected += rows * (1 + -(-columns * depth * _SAMPLES[colour] // 8))
    inflate, inflated = zlib.decompressobj(), 0
    for kind, data, checksum in _png_chunks(contents):
        if kind == b"IDAT":
            if checksum != zlib.crc32(data, zlib.crc32(kind)):
                return False
            while data and inflated < expected:
                inflated += len(inflate.decompress(data, 1 << 20))
                data = inflate.unconsumed_tail
    return inflated >= expected


def _png_chunks(contents: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    place = 8
    while place + 12 <= len(contents):
        size, kind = struct.unpack(">I4s", contents[place : place + 8])
        data = contents[place + 8 : place + 8 + size]
        checksum = contents[place + 8 + size : place + 12 + size]
        yield kind, data, int.from_bytes(checksum, "big")
        place += 12 + size


def _webp_data(contents: bytes) -> bytes:
    """The coded picture, in lossy or lossless WebP."""
    place = 12
    while place + 8 <= len(contents):
        kind, size = struct.unpack("<4sI", contents[place : place + 8])
        if kind in (b"VP8 ", b"VP8L"):
            return contents[place + 8 : place + 8 + size]
        place += 8 + size + size % 2
    return b""


def _jpeg_is_whole(contents: bytes) -> bool:
    """Whether the scans of a JPEG tell every bit of every coefficient."""
    bits: dict[int, np.ndarray] = {}
    place, is_progressive = 2, False
    while (found := _MARKER.search(contents, place)) is not None:
        marker, place = contents[found.end() - 1], found.end()
        if marker == _EOI:
            break
        length = int.from_bytes(contents[place : place + 2], "big")
        segment = contents[place + 2 : place + length]
        place += 2 + len(segment)
        if marker in _FRAMES:
            is_progressive = marker == _PROGRESSIVE
            components = segment[6 : 6 + 3 * segment[5] : 3]
            bits = {c: np.full(64, _UNKNOWN) for c in components}
        elif marker == _SOS:
            count = segment[0]
            first, last, shifts = segment[1 + 2 * count :][:3]
            if not is_progressive:
                first, last, shifts = 0, 63, 0
            for component in {*segment[1 : 1 + 2 * count : 2]} & {*bits}:
                # The lower half counts the bits that are still to come.
                bits[component][first : last + 1] = shifts & 15
    return not any(told.any() for told in bits.values())


def _ends_in_missing_blocks(image: Image.Image) -> bool:
    """Whether the last block of a JPEG is missing and the first is not."""
    if image.mode not in ("L", "RGB"):
        return False
    width, height = image.size
    # The whole picture as an array would be a copy of it.
    last = image.crop(((width - 1) // 8 * 8, (height - 1) // 8 * 8, width, height))
    first = np.asarray(image.crop((0, 0, min(8, width), min(8, height))))
    return bool((np.asarray(last) == _NO_BLOCK).all() and (first != _NO_BLOCK).any())


def ends_inside(picture: Image.Image) -> bool:
    """Whether a photograph ends above or below in zeros, in the midst of the fundus.

    The round fundus narrows towards its end. It may be cut off where the photograph is
    padded, but then it is padded above and below.

    Args:
      picture: RGB.
    """
    grey = np.asarray(picture).max(-1)
    there = np.flatnonzero(grey.any(1))
    if not there.size:
        return False
    above, below = int(there[0]), len(grey) - 1 - int(there[-1])
    if not above and below:
        edge = grey[there[-1] - 2]
    elif above and not below:
        edge = grey[there[0] + 2]
    else:
        return False
    # Two rows inside, a circle as wide as the photograph is as wide as the root of
    # eight of its sides.
    return bool(np.count_nonzero(edge > _LIGHT) > 4 * np.sqrt(len(edge)))
