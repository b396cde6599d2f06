import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mtl_jax.data import images
from mtl_jax.errors import UserError


def gradient(height=48, width=64):
    """A smooth colour picture without symmetry, kind to JPEG."""
    y, x = np.mgrid[:height, :width]
    return np.stack([3 * x, 2 * y + x, 200 - 2 * y], axis=-1).astype(np.uint8)


def png_bytes(array, bit_depth):
    """A PNG written by hand, for depths that Pillow does not write."""
    height, width = array.shape[:2]
    colour = 2 if array.ndim == 3 else 0

    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in array)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [
            chunk(b"IHDR", header),
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        ]
    )


def tiff16_bytes(array):
    """An uncompressed 16-bit RGB TIFF."""
    height, width = array.shape[:2]
    data = array.astype("<u2").tobytes()
    after = 8 + 2 + 9 * 12 + 4
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 3, after),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, after + 6),
        (277, 3, 1, 3),
        (278, 4, 1, height),
        (279, 4, 1, len(data)),
    ]
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", *entry) for entry in entries)
    bits = struct.pack("<3H", 16, 16, 16)
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + bits + data


def save_oriented(path, array, orientation, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(array).save(path, exif=exif, **options)


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("a.png", 0),
        ("A.PNG", 0),
        ("a.bmp", 0),
        ("A.BMP", 0),
        ("a.tif", 0),
        ("A.TIFF", 0),
        ("a.jpg", 12),
        ("A.JPEG", 12),
        ("a.webp", 12),
    ],
)
def test_reads_common_formats(tmp_path, name, tolerance):
    expected = gradient()
    options = {"quality": 95} if tolerance else {}
    Image.fromarray(expected).save(tmp_path / name, **options)
    photograph = images.read_photograph(tmp_path / name)
    assert photograph.dtype == np.uint8
    assert photograph.shape == (48, 64, 3)
    assert np.abs(photograph.astype(int) - expected).max() <= tolerance


def test_reads_a_file_with_the_wrong_extension(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "a.jpg", "PNG")
    assert (images.read_photograph(tmp_path / "a.jpg") == gradient()).all()


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "1"])
def test_grey_and_transparent_pictures_become_rgb(tmp_path, mode):
    picture = Image.fromarray(gradient()).convert(mode)
    picture.save(tmp_path / "a.png")
    expected = np.asarray(picture.convert("RGB"))
    assert (images.read_photograph(tmp_path / "a.png") == expected).all()


@pytest.mark.parametrize("transparency", [None, 1, b"\0\x80\xff"])
def test_palette_counts_by_its_colours(tmp_path, transparency, recwarn):
    indices = np.tile(np.uint8([0, 1, 2, 1]), (40, 10))
    picture = Image.fromarray(indices, "P")
    picture.putpalette([255, 255, 255, 255, 0, 0, 0, 0, 0])
    extra = {} if transparency is None else {"transparency": transparency}
    picture.save(tmp_path / "a.png", **extra)
    colours = np.uint8([[255, 255, 255], [255, 0, 0], [0, 0, 0]])
    assert (images.read_photograph(tmp_path / "a.png") == colours[indices]).all()
    luminance = np.uint8([255, 76, 0])
    assert (images.read_mask(tmp_path / "a.png") == luminance[indices]).all()
    assert not [w for w in recwarn if w.category is UserWarning]


def test_reads_a_still_gif(tmp_path):
    Image.fromarray(gradient()[..., 0]).save(tmp_path / "a.gif")
    expected = gradient()[..., 0]
    assert (images.read_photograph(tmp_path / "a.gif")[..., 1] == expected).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.mpo", "a.png", "a.tif", "a.webp"])
def test_orientation_is_applied_once(tmp_path, name, orientation):
    upright = gradient()
    # What a camera held that way has on its sensor, by the EXIF standard's definitions.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    options = {
        "a.jpg": {"quality": 95},
        "a.mpo": {"quality": 95, "append_images": [Image.new("RGB", (8, 8))]},
        "a.webp": {"lossless": True},
    }.get(name, {})
    save_oriented(tmp_path / name, stored.copy(), orientation, **options)
    photograph = images.read_photograph(tmp_path / name)
    assert photograph.shape == upright.shape
    assert np.abs(photograph.astype(int) - upright).max() <= 12
    assert images.read_mask(tmp_path / name).shape == upright.shape[:2]


def test_broken_exif_does_not_lose_the_picture(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "a.jpg", exif=b"Exif\0\0nonsense")
    assert images.read_photograph(tmp_path / "a.jpg").shape == (48, 64, 3)


def test_a_broken_field_beside_the_orientation_does_not_hide_it(tmp_path):
    """The width is text here, which Pillow reads but cannot write again."""
    fields = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    fields = struct.pack("<HHI4s", 0x0100, 2, 2, b"a") + fields
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + fields + bytes(4)
    stored = np.rot90(gradient(), 1).copy()
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    assert (images.read_photograph(tmp_path / "a.png") == gradient()).all()


def test_one_bit_mask_becomes_black_and_white(tmp_path):
    inside = gradient()[..., 0] > 90
    Image.fromarray(inside).save(tmp_path / "a.png")
    assert (images.read_mask(tmp_path / "a.png") == 255 * inside).all()


def write_bad_file(path, kind):
    picture = Image.fromarray(gradient(256, 256))
    deep = gradient().astype(">u2") * 257
    if kind == "text":
        path.write_text("image_id,image\n")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "directory":
        path.mkdir()
    elif kind == "cmyk":
        picture.convert("CMYK").save(path, "JPEG")
    elif kind == "rgb16 png":
        path.write_bytes(png_bytes(deep, 16))
    elif kind == "grey16 png":
        path.write_bytes(png_bytes(deep[..., 0], 16))
    elif kind == "rgb16 tiff":
        path.write_bytes(tiff16_bytes(deep))
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
    ("cmyk", "CMYK"),
    ("rgb16 png", "8 bits"),
    ("grey16 png", "8 bits"),
    ("rgb16 tiff", "8 bits"),
    ("float tiff", "8 bits"),
    ("int32 tiff", "8 bits"),
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


@pytest.mark.parametrize(("kind", "reason"), BAD_KINDS)
def test_bad_files_get_one_sentence(tmp_path, kind, reason):
    path = tmp_path / "bad file"
    if kind != "missing":
        write_bad_file(path, kind)
    for read in (images.read_photograph, images.read_mask):
        with pytest.raises(UserError, match=reason) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_impossible_file_names_do_not_exist(name):
    with pytest.raises(UserError, match="does not exist"):
        images.read_photograph(name)


def test_binary_mask_is_cut_at_half_range_or_holds_labels():
    assert images.binary_mask(np.uint8([[0, 127, 128, 255]])).tolist() == [[0, 0, 1, 1]]
    assert images.binary_mask(np.uint8([[0, 1]])).tolist() == [[0, 1]]
    assert images.binary_mask(np.uint8([[0, 0]])).tolist() == [[0, 0]]


def test_jpeg_mask_keeps_its_area(tmp_path):
    y, x = np.mgrid[:200, :200]
    inside = np.hypot(y - 90, x - 110) < 60
    Image.fromarray(255 * inside.astype(np.uint8)).save(tmp_path / "m.jpg", quality=60)
    grey = images.read_mask(tmp_path / "m.jpg")
    assert len(np.unique(grey)) > 10
    found = images.binary_mask(grey)
    assert np.logical_xor(found, inside).sum() < 0.01 * inside.sum()


def test_refuge_values_go_to_the_nearest():
    grey = np.uint8([[0, 63, 65, 128, 191, 192, 255]])
    disc, cup = images.disc_and_cup_masks(grey)
    for value, in_disc, in_cup in zip(grey[0], disc[0], cup[0], strict=True):
        nearest = min((0, 128, 255), key=lambda v, value=int(value): abs(v - value))
        assert (in_disc, in_cup) == (nearest < 255, nearest == 0)


def test_find_photographs(tmp_path):
    for name in ("b.JPG", "a.png", ".hidden.png", ".DS_Store", "notes.txt"):
        (tmp_path / name).touch()
    for folder in ("sub.png", "__MACOSX"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "c.tif").touch()
    a, b, notes = (tmp_path / name for name in ("a.png", "b.JPG", "notes.txt"))
    c = tmp_path / "sub.png" / "c.tif"
    assert images.find_photographs(str(tmp_path)) == [a, b]
    assert images.find_photographs(f"{tmp_path}/*") == [a, b, notes]
    assert images.find_photographs(f"{tmp_path}/**/*.*") == [a, b, notes, c]
    assert images.find_photographs(str(notes)) == [notes]


def test_find_photographs_takes_brackets_in_a_name_literally(tmp_path):
    (tmp_path / "a[1].png").touch()
    found = images.find_photographs(tmp_path / "a[1].png")
    assert found == [tmp_path / "a[1].png"]


@pytest.mark.parametrize(
    ("place", "reason"),
    [("", "holds no image"), ("no.png", "does not exist"), ("*.png", "No file")],
)
def test_finding_nothing_is_an_error(tmp_path, place, reason):
    with pytest.raises(UserError, match=reason):
        images.find_photographs(str(tmp_path / place))
