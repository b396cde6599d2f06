"""Photographs in formats that Pillow does not write, and damaged ones."""

import io
import struct
import zlib

import numpy as np
import pillow_heif
import pydicom
from PIL import Image, ImageCms
from pydicom.encaps import encapsulate

OPHTHALMIC_8_BIT = "1.2.840.10008.5.1.4.1.1.77.1.5.1"
OPHTHALMIC_16_BIT = "1.2.840.10008.5.1.4.1.1.77.1.5.2"


def gradient(height=48, width=64):
    """A smooth colour picture without symmetry, kind to JPEG."""
    y, x = np.mgrid[:height, :width]
    return np.stack([3 * x, 2 * y + x, 200 - 2 * y], axis=-1).astype(np.uint8)


def deep(bits, seed=0, shape=(48, 64, 3)):
    """Random numbers of `bits` bits, with the smallest and the largest among them."""
    values = np.random.default_rng(seed).integers(0, 2**bits, shape)
    values.flat[0], values.flat[-1] = 0, 2**bits - 1
    return values.astype(np.uint16)


def scaled(values, bits):
    """The same with 8 bits, by whole numbers alone."""
    maximum = 2**bits - 1
    return (2 * 255 * values.astype(np.int64) + maximum) // (2 * maximum)


def png_bytes(array, bit_depth, interlaced=False):
    """A PNG written by hand, for depths that Pillow does not write.

    Grey, grey with transparency, RGB or RGBA, by the number of channels.
    """
    height, width = array.shape[:2]
    colour = 0 if array.ndim == 2 else {2: 4, 3: 2, 4: 6}[array.shape[2]]
    passes = [array]
    if interlaced:  # Adam7: first row and column of each pass, and its steps.
        passes = [array[0::8, 0::8], array[0::8, 4::8], array[4::8, 0::4]]
        passes += [array[0::4, 2::4], array[2::4, 0::2], array[0::2, 1::2], array[1::2]]

    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(
        ">IIBBBBB", width, height, bit_depth, colour, 0, 0, int(interlaced)
    )
    rows = b"".join(b"\0" + row.tobytes() for part in passes for row in part)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [
            chunk(b"IHDR", header),
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        ]
    )


def tiff16_bytes(
    array, order="<", bits=16, orientation=1, photometric=None, planar=1, deflate=False
):
    """A TIFF of 16 bits per channel, grey or RGB, in one strip."""
    height, width = array.shape[:2]
    channels = 1 if array.ndim == 2 else array.shape[2]
    if planar == 2:
        array = np.moveaxis(array, -1, 0)
    data = array.astype(f"{order}u2").tobytes()
    data = zlib.compress(data) if deflate else data
    strips = channels if planar == 2 else 1
    if photometric is None:
        photometric = 1 if channels == 1 else 2
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, channels, bits),
        (259, 3, 1, 8 if deflate else 1),
        (262, 3, 1, photometric),
        (273, 4, strips, None),
        (274, 3, 1, orientation),
        (277, 3, 1, channels),
        (278, 4, 1, height),
        (279, 4, strips, len(data) // strips),
        (284, 3, 1, planar),
    ]
    after = 8 + 2 + len(entries) * 12 + 4
    start = after + 6 + 24
    directory = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        if tag == 273:
            value = start if strips == 1 else after + 6
        elif tag == 279 and strips > 1:
            value = after + 18
        elif tag == 258 and channels > 1:
            value = after
        head = struct.pack(f"{order}HHI", tag, kind, count)
        short = kind == 3 and count == 1
        directory += head + (
            struct.pack(f"{order}HH", value, 0)
            if short
            else struct.pack(f"{order}I", value)
        )
    tail = struct.pack(f"{order}3H", *(3 * [bits]))
    size = len(data) // strips
    tail += struct.pack(f"{order}3I", *(start + i * size for i in range(3)))
    tail += struct.pack(f"{order}3I", *(3 * [size]))
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(f"{order}I", 8) + directory + bytes(4) + tail + data


def cmyk_profile():
    """An ICC profile of inks whose Lab colours are linear in their amounts.

    ICC.1:2001, 6.5.10: `lut8Type` with two grid points for each ink.
    """
    grid = [lab_of_inks(np.array(np.unravel_index(i, (2,) * 4))) for i in range(16)]
    ramp = bytes(range(256))
    identity = [1, 0, 0, 0, 1, 0, 0, 0, 1]
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0])
    table += struct.pack(">9i", *(65536 * i for i in identity))
    table += 4 * ramp + np.array(grid).astype(np.uint8).tobytes() + 3 * ramp
    white = b"XYZ " + bytes(4) + D50
    name = b"desc" + bytes(4) + struct.pack(">I", 5) + b"inks\0" + bytes(78)
    text = b"text" + bytes(4) + b"none\0\0\0\0"
    tags = {b"desc": name, b"cprt": text, b"wtpt": white, b"A2B0": table}
    offset, index, body = 128 + 4 + 12 * len(tags), b"", b""
    for tag, data in tags.items():
        data += bytes(-len(data) % 4)
        index += tag + struct.pack(">II", offset + len(body), len(data))
        body += data
    header = bytes(8) + struct.pack(">I", 0x02400000) + b"prtrCMYKLab "
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + D50
    header += bytes(128 - len(header))
    whole = header + struct.pack(">I", len(tags)) + index + body
    return struct.pack(">I", len(whole)) + whole[4:]


D50 = struct.pack(">3i", *(round(65536 * i) for i in (0.9642, 1, 0.8249)))


def lab_of_inks(inks):
    """The profile's Lab colours in its 8 bits, for inks [..., 4] from 0 to 1."""
    shift = [[-40, -20, -15], [-50, 25, 0], [-25, 0, 30], [-75, 0, 0]]
    return np.array([230, 128, 128]) + inks @ np.array(shift)


def srgb_of_lab(lab):
    """sRGB in 0 to 255 of Lab colours under D50, in the 8 bits of ICC."""
    lightness, a, b = np.moveaxis(lab, -1, 0)
    y = (lightness * 100 / 255 + 16) / 116
    f = np.stack([y + (a - 128) / 500, y, y - (b - 128) / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, (f - 4 / 29) * 3 * (6 / 29) ** 2)
    # B. Lindbloom, "RGB/XYZ Matrices": sRGB adapted to D50 by Bradford's method.
    matrix = [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
    linear = ((xyz * (0.9642, 1, 0.8249)) @ np.transpose(matrix)).clip(0, 1)
    curved = 1.055 * linear ** (1 / 2.4) - 0.055
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, curved)


def dicom(pixels, **fields):
    """A data set of an ophthalmic photograph.

    Args:
      pixels: integers [H, W, 3], or indices [H, W] of a palette; or the bytes of an
        encoded frame, with `Rows`, `Columns` and `TransferSyntaxUID` among the fields.
      **fields: attributes that differ from those of an RGB photograph; None leaves an
        attribute out.
    """
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    syntax = fields.pop("TransferSyntaxUID", pydicom.uid.ExplicitVRLittleEndian)
    dataset.file_meta.TransferSyntaxUID = syntax
    attributes = {
        "SOPClassUID": OPHTHALMIC_8_BIT,
        "SOPInstanceUID": "1.2.3",
        "Modality": "OP",
        "PixelRepresentation": 0,
        "PhotometricInterpretation": "RGB",
        "SamplesPerPixel": 3,
        "PlanarConfiguration": 0,
        "BitsAllocated": 8,
    }
    if isinstance(pixels, bytes):
        attributes["PixelData"] = encapsulate([pixels])
    else:
        attributes |= {
            "Rows": pixels.shape[0],
            "Columns": pixels.shape[1],
            "BitsAllocated": 8 * pixels.itemsize,
            "PixelData": pixels.tobytes(),
        }
    attributes |= fields
    attributes.setdefault("BitsStored", attributes["BitsAllocated"])
    attributes["HighBit"] = attributes["BitsStored"] - 1
    for name, value in attributes.items():
        if value is not None:
            setattr(dataset, name, value)
    if "PixelData" in dataset:
        dataset["PixelData"].VR = "OB" if attributes["BitsAllocated"] == 8 else "OW"
        if isinstance(pixels, bytes):
            dataset["PixelData"].is_undefined_length = True
    return dataset


def write_dicom(path, pixels, **fields):
    """Writes the data set of `dicom` into a file."""
    dicom(pixels, **fields).save_as(path, enforce_file_format=True)


def jpeg_frame(pixels, **options):
    """A photograph as the bytes of a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def write_heic(path, array, **options):
    """Writes a photograph of 8 bits, or one of 16 bits with 10, without loss."""
    mode = "RGB" if array.dtype == np.uint8 else "RGB;16"
    picture = pillow_heif.from_bytes(mode, array.shape[1::-1], array.tobytes())
    picture.save(path, format="HEIF", quality=-1, chroma=444, **options)


def write_bad_file(path, kind):
    picture = Image.fromarray(gradient(256, 256))
    wide = gradient().astype(">u2")
    if kind == "text":
        path.write_text("image_id,image\n")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "directory":
        path.mkdir()
    elif kind == "cmyk, broken profile":
        picture.convert("CMYK").save(path, "JPEG", icc_profile=b"no profile")
    elif kind == "cmyk, profile of rgb":
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        picture.convert("CMYK").save(path, "JPEG", icc_profile=profile)
    elif kind == "8 bits as 16, png":
        path.write_bytes(png_bytes(wide, 16))
    elif kind == "8 bits as 16, grey png":
        path.write_bytes(png_bytes(wide[..., 0], 16))
    elif kind == "8 bits as 16, tiff":
        path.write_bytes(tiff16_bytes(wide))
    elif kind == "12 bits as 16, tiff":
        path.write_bytes(tiff16_bytes(deep(12)))
    elif kind == "colours of 12 bits":
        path.write_bytes(tiff16_bytes(deep(12), bits=12))
    elif kind == "planes of 16 bits":
        path.write_bytes(tiff16_bytes(deep(16), planar=2))
    elif kind == "compressed planes of 16 bits":
        path.write_bytes(tiff16_bytes(deep(16), planar=2, deflate=True))
    elif kind == "grey16 with transparency":
        path.write_bytes(png_bytes(deep(16, shape=(48, 64, 2)).astype(">u2"), 16))
    elif kind == "float tiff":
        Image.fromarray(gradient()[..., 0].astype(np.float32)).save(path, "TIFF")
    elif kind == "int32 tiff":
        Image.fromarray(gradient()[..., 0].astype(np.int32)).save(path, "TIFF")
    elif kind == "lab":
        Image.new("LAB", (64, 64)).save(path, "TIFF")
    elif kind == "no pixels":
        path.write_bytes(png_bytes(np.zeros((0, 0), np.uint8), 8))
    elif kind == "bomb":
        path.write_bytes(png_bytes(np.zeros((1, 1), np.uint8), 8))
        data = bytearray(path.read_bytes())
        data[16:24] = struct.pack(">II", 60_000, 60_000)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        path.write_bytes(data)
    elif kind == "animation":
        frames = [Image.fromarray(gradient()[..., i]) for i in range(3)]
        frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])
    else:
        picture.save(path, kind.split()[1].upper())
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * 0.6)])


BAD_KINDS = [
    ("text", "not an image"),
    ("empty", "not an image"),
    ("directory", "not a file"),
    ("missing", "does not exist"),
    ("cmyk, broken profile", "CMYK.*profile"),
    ("cmyk, profile of rgb", "CMYK.*profile"),
    ("8 bits as 16, png", "claims 16 bits.*exceeds 2.. of 65535"),
    ("8 bits as 16, grey png", "claims 16 bits.*exceeds 1.. of 65535"),
    ("8 bits as 16, tiff", "claims 16 bits"),
    ("12 bits as 16, tiff", "claims 16 bits.*exceeds 4095 of 65535"),
    ("colours of 12 bits", "numbers that are not read"),
    ("planes of 16 bits", "plane by plane"),
    ("compressed planes of 16 bits", "plane by plane"),
    ("grey16 with transparency", "not read"),
    ("float tiff", "floating-point"),
    ("int32 tiff", "32-bit"),
    ("lab", "LAB"),
    ("no pixels", "no pixels|not an image|damaged"),
    ("bomb", "more than any fundus"),
    ("animation", "3 pictures"),
    ("truncated jpeg", "truncated"),
    ("truncated png", "truncated"),
    ("truncated bmp", "truncated"),
    ("truncated tiff", "truncated"),
    ("truncated gif", "truncated"),
    ("truncated webp", "truncated|damaged"),
]


# Photographs of which a part is missing, though the decoder says nothing.


def round_fundus(height=180, width=240):
    """With a ground that is exactly black, as the most difficult case."""
    y, x = np.mgrid[:height, :width]
    inside = np.hypot(y - height / 2, x - width / 2) < 0.6 * height
    noise = np.random.default_rng(0).integers(0, 30, (height, width, 3))
    pixels = np.stack([200 + 0 * x, 90 + x // 8, 20 + y // 4], axis=-1) + noise
    return (pixels * inside[..., None]).astype(np.uint8)


def encoded(kind, **options):
    file = io.BytesIO()
    Image.fromarray(round_fundus()).save(file, kind, **options)
    return file.getvalue()


def zeroed(data, share):
    kept = int(share * len(data))
    return data[:kept] + bytes(len(data) - kept)


def closed_jpeg(data, share):
    return data[: int(share * len(data))] + b"\xff\xd9"


def png_without_rows(_, share):
    rows = round_fundus()
    whole = png_bytes(rows, 8)
    short = png_bytes(rows[: int(share * len(rows))], 8)
    return whole[:33] + short[33:]


def interlaced_png_without_rows(_, share):
    whole = png_bytes(round_fundus(), 8, interlaced=True)
    rows = zlib.decompress(whole[41:-16])
    data = zlib.compress(rows[: int(share * len(rows))])
    body = b"IDAT" + data
    size, crc = struct.pack(">I", len(data)), struct.pack(">I", zlib.crc32(body))
    return whole[:33] + size + body + crc + whole[-12:]


INCOMPLETE = {
    "png without rows": ("PNG", {}, png_without_rows),
    "interlaced png without rows": ("PNG", {}, interlaced_png_without_rows),
    "png in zeros": ("PNG", {}, zeroed),
    "webp in zeros": ("WEBP", {"quality": 90}, zeroed),
    "lossless webp in zeros": ("WEBP", {"lossless": True}, zeroed),
    "tiff in zeros": ("TIFF", {}, zeroed),
    "deflated tiff in zeros": ("TIFF", {"compression": "tiff_deflate"}, zeroed),
    "bmp in zeros": ("BMP", {}, zeroed),
    "jpeg in zeros": ("JPEG", {}, zeroed),
    "jpeg, closed": ("JPEG", {}, closed_jpeg),
    "progressive jpeg, closed": ("JPEG", {"progressive": True}, closed_jpeg),
}


# Fields of a data set that is not read, and why.
REFUSED_DICOM = {
    "another modality": ({"Modality": "OPT"}, "modality OPT"),
    "no modality": ({"Modality": None}, "modality unknown"),
    "no photograph": (
        {"SOPClassUID": pydicom.uid.OphthalmicThicknessMapStorage},
        "class Ophthalmic Thickness Map Storage",
    ),
    "unknown class": ({"SOPClassUID": "1.2.3.4"}, r"class 1\.2\.3\.4"),
    "no pixels": ({"PixelData": None}, "without a picture"),
    "no columns": ({"Columns": 0}, "no pixels"),
    "frames": ({"NumberOfFrames": 19}, "19 frames"),
    "grey": (
        {"PhotometricInterpretation": "MONOCHROME2", "SamplesPerPixel": 1},
        "grey.*MONOCHROME2",
    ),
    "other colours": ({"PhotometricInterpretation": "HSV"}, "colours.*HSV"),
    "signed": ({"PixelRepresentation": 1}, "signed numbers of 8 bits"),
    "few bits": ({"BitsStored": 6}, "numbers of 6 bits"),
    "many bits": ({"BitsAllocated": 32}, "numbers of 32 bits"),
    "large": ({"Rows": 60_000, "Columns": 60_000}, "more than any fundus"),
    "video": ({"TransferSyntaxUID": pydicom.uid.MPEG2MPML}, "cannot be decoded.*MPEG2"),
    "short": ({"Rows": 49}, "truncated or damaged"),
}
