"""Photographs, which one command predicts on: each is a row or is refused."""

import functools
import io

import numpy as np
import photograph_files as files
from corpus.case import NEAR, SAME, Case
from PIL import Image, ImageCms, PngImagePlugin

from mtl_jax.data.synthetic import renderer

PLAIN = "plain.png"


@functools.cache
def fundus():
    """The photograph in most of the files, uint8 [144, 160, 3]."""
    rng = np.random.default_rng(0)
    camera = renderer.EVALUATION_CAMERA
    return renderer.render(rng, (144, 160), camera, True).photograph


def picture():
    return Image.fromarray(fundus())


def saved(convert=None, turn=None, **options):
    """A function that saves the photograph, converted to a mode, or turned."""

    def make(path):
        array = np.ascontiguousarray(turn(fundus()) if turn else fundus())
        shown = Image.fromarray(array)
        shown = shown.convert(convert) if convert else shown
        shown.save(path, **options)

    return make


def oriented(orientation, turn, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(turn=turn, exif=exif, **options)


def content(function):
    """A function that writes what another returns."""
    return lambda path: path.write_bytes(function())


def sixteen():
    return fundus().astype(np.uint16) * 257


def png(**options):
    buffer = io.BytesIO()
    picture().save(buffer, "PNG", **options)
    return buffer.getvalue()


def with_text():
    text = PngImagePlugin.PngInfo()
    text.add_text("Patient", "=cmd|'/C calc'!A0")
    return text


def srgb():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def filled(array):
    return lambda path: Image.fromarray(array.astype(np.uint8)).save(path)


def as_dicom(path):
    files.write_dicom(path, fundus())


def linked(path):
    target = path.parent.parent / "elsewhere.png"
    picture().save(target)
    path.symlink_to(target)


def noise():
    return np.random.default_rng(0).integers(0, 256, (144, 160, 3))


USED = {
    PLAIN: ("a PNG of 8 bits", SAME, saved()),
    "UPPER.PNG": ("an extension in upper case", SAME, saved()),
    "plain.bmp": ("a BMP", SAME, saved()),
    "plain.tif": ("a TIFF", SAME, saved()),
    "lzw.tiff": ("a TIFF, LZW", SAME, saved(compression="tiff_lzw")),
    "deflate.tif": ("a TIFF, deflate", SAME, saved(compression="tiff_deflate")),
    "packbits.tif": ("a TIFF, PackBits", SAME, saved(compression="packbits")),
    "lossless.webp": ("a WebP without loss", SAME, saved(lossless=True)),
    "interlaced.png": (
        "a PNG, interlaced",
        SAME,
        content(lambda: files.png_bytes(fundus(), 8, interlaced=True)),
    ),
    "16 bits.png": (
        "a PNG of 16 bits",
        SAME,
        content(lambda: files.png_bytes(sixteen().astype(">u2"), 16)),
    ),
    "16 bits interlaced.png": (
        "a PNG of 16 bits, interlaced",
        SAME,
        content(lambda: files.png_bytes(sixteen().astype(">u2"), 16, interlaced=True)),
    ),
    "16 bits.tif": (
        "a TIFF of 16 bits",
        SAME,
        content(lambda: files.tiff16_bytes(sixteen())),
    ),
    "16 bits big-endian.tif": (
        "a TIFF of 16 bits, the larger byte first",
        SAME,
        content(lambda: files.tiff16_bytes(sixteen(), ">")),
    ),
    "16 bits deflate.tif": (
        "a TIFF of 16 bits, deflate",
        SAME,
        content(lambda: files.tiff16_bytes(sixteen(), deflate=True)),
    ),
    "transparent.png": ("a PNG with an alpha channel", SAME, saved("RGBA")),
    "profile.png": ("a PNG with a profile of sRGB", SAME, saved(icc_profile=srgb())),
    "broken profile.png": (
        "a PNG with a broken profile",
        SAME,
        saved(icc_profile=b"no profile"),
    ),
    "text.png": ("a PNG with a formula as comment", SAME, saved(pnginfo=with_text())),
    "trailing.png": (
        "a PNG with bytes after its end",
        SAME,
        content(lambda: png() + b"<?php"),
    ),
    "dpi.png": ("a PNG of 1 dot per inch", SAME, saved(dpi=(1, 1))),
    "exif.png": ("a PNG with broken EXIF", SAME, saved(exif=b"Exif\0\0nonsense")),
    "turned.png": (
        "a PNG that EXIF turns by 180 degrees",
        SAME,
        oriented(3, lambda a: a[::-1, ::-1]),
    ),
    "mirrored.webp": (
        "a WebP that EXIF mirrors",
        SAME,
        oriented(2, lambda a: a[:, ::-1], lossless=True),
    ),
    "upright.tif": (
        "a TIFF that EXIF turns by 90 degrees",
        SAME,
        oriented(6, lambda a: np.rot90(a, 1)),
    ),
    "transposed.png": (
        "a PNG that EXIF transposes",
        SAME,
        oriented(5, lambda a: a.transpose(1, 0, 2)),
    ),
    "orientation 9.png": (
        "a PNG with an orientation that EXIF does not have",
        SAME,
        oriented(9, lambda a: a),
    ),
    "png.jpg": ("a PNG whose name ends in .jpg", SAME, saved(format="PNG")),
    "png.dcm": ("a PNG whose name ends in .dcm", SAME, saved(format="PNG")),
    "no extension": ("a PNG without extension", SAME, saved(format="PNG")),
    "photograph.dcm": ("a DICOM photograph", SAME, as_dicom),
    "1.2.840.10008": ("a DICOM photograph named by its UID", SAME, as_dicom),
    "plain.heic": (
        "a HEIC without loss",
        NEAR,
        lambda path: files.write_heic(path, fundus()),
    ),
    "link.png": ("a symbolic link to a PNG", SAME, linked),
    "two words.png": ("a blank in the name", SAME, saved()),
    "Häufig 眼底.png": ("a name in other scripts", SAME, saved()),
    "=1+1.png": ("a name that is a formula", SAME, saved()),
    "-x.png": ("a name that begins like a flag", SAME, saved()),
    "$x^2$.png": ("a name in TeX", SAME, saved()),
    "a[1]{b}.png": ("brackets in the name", SAME, saved()),
    "a%20b&c;d.png": ("other signs in the name", SAME, saved()),
    "<b>.png": ("HTML in the name", SAME, saved()),
    'quote".png': ("a quotation mark in the name", SAME, saved()),
    "comma,.png": ("a comma in the name", SAME, saved()),
    "new\nline.png": ("a line break in the name", SAME, saved()),
    "back\\slash.png": ("a backslash in the name", SAME, saved()),
    "x" * 250 + ".png": ("a name of 254 bytes", SAME, saved()),
    "CON.png": ("a name that Windows reserves", SAME, saved()),
    "jpeg.jpg": ("a JPEG", NEAR, saved(quality=95)),
    "444.jpg": ("a JPEG with full colour", NEAR, saved(quality=95, subsampling=0)),
    "progressive.jpeg": (
        "a progressive JPEG",
        NEAR,
        saved(quality=95, progressive=True),
    ),
    "turned.jpg": (
        "a JPEG that EXIF turns",
        NEAR,
        oriented(8, lambda a: np.rot90(a, -1), quality=95),
    ),
    "exif.jpg": (
        "a JPEG with broken EXIF",
        NEAR,
        saved(exif=b"Exif\0\0nonsense", quality=95),
    ),
    "camera.mpo": (
        "an MPO with a preview",
        NEAR,
        saved(quality=95, append_images=[Image.new("RGB", (8, 8))]),
    ),
    "lossy.webp": ("a WebP", NEAR, saved(quality=95)),
    "palette.png": ("a PNG of 256 colours", NEAR, saved("P", format="PNG")),
    "grey.png": ("a grey PNG", "^used: 160 x 144", saved("L")),
    "grey.jpg": ("a grey JPEG", "^used: 160 x 144", saved("L")),
    "grey and alpha.png": ("a grey PNG with alpha", "^used: 160 x 144", saved("LA")),
    "bits.png": ("a PNG of 1 bit", "^used: 160 x 144", saved("1")),
    "still.gif": ("a GIF", NEAR, saved("P")),
    "cmyk.jpg": ("a JPEG in CMYK without a profile", NEAR, saved("CMYK")),
    "cmyk.tif": ("a TIFF in CMYK", SAME, saved("CMYK")),
    "ycbcr.tif": ("a TIFF in YCbCr", NEAR, saved("YCbCr")),
    "black.png": (
        "all black",
        "not a fundus|dark",
        filled(np.zeros((64, 64, 3))),
    ),
    "white.png": ("all white", "not a fundus", filled(np.full((64, 64, 3), 255))),
    "noise.png": ("noise", "not a fundus", filled(noise())),
    "smallest.png": (
        "32 x 32 pixels",
        "^used: 32 x 32",
        lambda path: picture().resize((32, 32)).save(path),
    ),
    "strip.png": (
        "32 x 1000 pixels",
        "^used: 1000 x 32",
        lambda path: picture().resize((1000, 32)).save(path),
    ),
}


def few(height, width):
    return filled(np.full((height, width, 3), 90))


def shortened(path, share):
    whole = path.with_name("whole")
    files.write_dicom(whole, fundus())
    data = whole.read_bytes()
    whole.unlink()
    path.write_bytes(data[: int(share * len(data))])


def refused_dicom(fields):
    def make(path):
        pixels = b"video" if "TransferSyntaxUID" in fields else files.gradient()
        files.write_dicom(path, pixels, **{"Rows": 48, "Columns": 64, **fields})

    return make


def incomplete(kind, options, damage):
    return content(lambda: damage(files.encoded(kind, **options), 0.5))


REFUSED = {
    "1 x 1.png": ("one pixel", "1 x 1 pixels; at least 32", few(1, 1)),
    "3 x 3.png": ("nine pixels", "3 x 3 pixels; at least 32", few(3, 3)),
    "31 x 200.png": ("31 x 200 pixels", "200 x 31 pixels; at least 32", few(31, 200)),
    "page.jpg": (
        "a web page named .jpg",
        "not an image",
        content(lambda: b"<!DOCTYPE html><title>404</title>"),
    ),
    "zip.png": ("an archive named .png", "not an image", content(lambda: b"PK\3\4")),
    "signature.png": (
        "the first 8 bytes of a PNG",
        "not an image|damaged",
        content(lambda: png()[:8]),
    ),
    "header.png": (
        "a PNG without pixels",
        "not an image|damaged",
        content(lambda: png()[:33] + png()[-12:]),
    ),
    "zeros.jpg": ("a file of zeros", "not an image", content(lambda: bytes(5000))),
    "vector.svg": ("an SVG", "not an image", content(lambda: b"<svg/>")),
    "script.eps": (
        "an EPS",
        "not an image|damaged|unsuitable",
        content(lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n"),
    ),
    "cut.dcm": (
        "half of a DICOM photograph",
        "damaged",
        functools.partial(shortened, share=0.5),
    ),
    "cut.heic": (
        "half of a HEIC photograph",
        "not an image|damaged",
        lambda path: (
            files.write_heic(path, fundus()),
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        ),
    ),
    **{
        f"bad {kind}": (
            f"{kind}, as a photograph",
            reason,
            functools.partial(files.write_bad_file, kind=kind),
        )
        for kind, reason in files.BAD_KINDS
        if kind not in ("directory", "missing")
    },
    **{
        f"incomplete {name}": (name, "damaged", incomplete(*how))
        for name, how in files.INCOMPLETE.items()
    },
    **{
        f"refused {name}.dcm": (f"DICOM: {name}", reason, refused_dicom(fields))
        for name, (fields, reason) in files.REFUSED_DICOM.items()
    },
}

CASES = [
    Case(name, *values[:2], 0, values[2], "photograph") for name, values in USED.items()
] + [
    Case(name, *values[:2], 1, values[2], "photograph")
    for name, values in REFUSED.items()
]


def write(folder):
    """Writes all files into a new folder."""
    folder.mkdir()
    for case in CASES:
        case.make(folder / case.name)
