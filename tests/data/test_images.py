import io
import pathlib
import struct

import numpy as np
import pytest
from photograph_files import (
    BAD_KINDS,
    INCOMPLETE,
    cmyk_profile,
    deep,
    encoded,
    gradient,
    lab_of_inks,
    png_bytes,
    round_fundus,
    scaled,
    srgb_of_lab,
    tiff16_bytes,
    write_bad_file,
)
from PIL import Image

from mtl_jax.data import images
from mtl_jax.errors import UserError


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


SIXTEEN_BITS = {
    "png": lambda v: png_bytes(v.astype(">u2"), 16),
    "interlaced png": lambda v: png_bytes(v.astype(">u2"), 16, interlaced=True),
    "tiff": tiff16_bytes,
    "big-endian tiff": lambda v: tiff16_bytes(v, ">"),
    "compressed tiff": lambda v: tiff16_bytes(v, deflate=True),
    "big-endian compressed tiff": lambda v: tiff16_bytes(v, ">", deflate=True),
}


@pytest.mark.parametrize("write", SIXTEEN_BITS.values(), ids=SIXTEEN_BITS)
def test_16_bits_are_scaled_to_8_and_said(tmp_path, write):
    values = deep(16)
    (tmp_path / "a").write_bytes(write(values))
    photograph = images.open_photograph(tmp_path / "a")
    # Cutting the lower byte off, as Pillow does, would be one too dark in half of them.
    assert (np.asarray(photograph.picture) == scaled(values, 16)).all()
    assert images.conversion_sentences({photograph.conversion: 12, "": 5}) == [
        "12 photographs of 16 bits per channel were reduced to 8 bits."
    ]
    (tmp_path / "a").write_bytes(write(values[..., 0]))
    grey = images.read_photograph(tmp_path / "a")
    assert (grey == scaled(values[..., :1], 16)).all()
    assert (images.read_mask(tmp_path / "a") == grey[..., 0]).all()


def test_transparency_of_16_bits_is_dropped(tmp_path):
    values = deep(16, shape=(48, 64, 4))
    (tmp_path / "a").write_bytes(png_bytes(values.astype(">u2"), 16))
    photograph = images.read_photograph(tmp_path / "a")
    assert (photograph == scaled(values[..., :3], 16)).all()


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_turned_too(tmp_path, orientation, order, channels):
    upright = deep(16)[..., :channels]
    stored = np.rot90(upright, {1: 0, 3: 2, 6: 1}[orientation]).squeeze()
    (tmp_path / "a").write_bytes(tiff16_bytes(stored, order, orientation=orientation))
    photograph = images.read_photograph(tmp_path / "a")
    assert (photograph == scaled(upright, 16)).all()


def test_16_bit_grey_may_count_from_white(tmp_path):
    values = deep(16)[..., 0]
    (tmp_path / "a").write_bytes(tiff16_bytes(values, photometric=0))
    assert (images.read_mask(tmp_path / "a") == scaled(65535 - values, 16)).all()


def test_a_16_bit_mask_without_anything_inside_is_black(tmp_path):
    (tmp_path / "a").write_bytes(png_bytes(np.zeros((40, 40), ">u2"), 16))
    assert not images.read_mask(tmp_path / "a").any()


def test_cmyk_is_converted_by_its_profile(tmp_path):
    inks = np.random.default_rng(0).integers(0, 256, (6, 8, 4)).astype(np.uint8)
    inks = inks.repeat(16, axis=0).repeat(16, axis=1)
    picture = Image.fromarray(inks, "CMYK")
    picture.save(
        tmp_path / "a.jpg", quality=100, subsampling=0, icc_profile=cmyk_profile()
    )
    photograph = images.open_photograph(tmp_path / "a.jpg")
    expected = srgb_of_lab(lab_of_inks(inks / 255))
    found = np.asarray(photograph.picture).astype(float)
    assert np.abs(found - expected).max() < 4
    assert np.abs(np.asarray(picture.convert("RGB")) - expected).max() > 50
    assert images.conversion_sentences({photograph.conversion: 1}) == [
        "1 photograph in CMYK was converted to RGB by the colour profile in the file."
    ]


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_cmyk_without_a_profile_is_converted_by_a_formula(tmp_path, name):
    inks = np.zeros((32, 32, 4), np.uint8)
    inks[:, 16:] = 50, 100, 150, 30
    picture = Image.fromarray(inks, "CMYK")
    picture.save(tmp_path / name, quality=100)
    photograph = images.open_photograph(tmp_path / name)
    expected = (255 - inks[..., :3].astype(float)) * (255 - inks[..., 3:]) / 255
    assert np.abs(np.asarray(photograph.picture) - expected).max() < 3
    (sentence,) = images.conversion_sentences({photograph.conversion: 2})
    assert sentence.startswith("2 photographs in CMYK without a colour profile were")


def test_nothing_is_said_of_a_common_photograph(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "a.png")
    photograph = images.open_photograph(tmp_path / "a.png")
    assert images.conversion_sentences({photograph.conversion: 3}) == []


def test_one_bit_mask_becomes_black_and_white(tmp_path):
    inside = gradient()[..., 0] > 90
    Image.fromarray(inside).save(tmp_path / "a.png")
    assert (images.read_mask(tmp_path / "a.png") == 255 * inside).all()


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
    assert images.find_photographs(f"{tmp_path}/**") == [a, b, c]
    assert images.find_photographs(f"{tmp_path}/**/**/c.*") == [c]
    assert images.find_photographs(str(notes)) == [notes]


def test_links_in_a_circle_end(tmp_path, monkeypatch):
    """A plain glob enters each link 40 times, and six of them in all orders."""
    for place in ("a/[1]", "b"):
        (tmp_path / place).mkdir(parents=True)
        for number in range(3):
            (tmp_path / place / f"up{number}").symlink_to(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    photograph = tmp_path / "a" / "[1]" / "a.png"
    photograph.touch()
    other = tmp_path.with_name(f"{tmp_path.name}-other")
    other.mkdir()
    (other / "b.png").touch()
    (tmp_path / "linked").symlink_to(other)
    found = [photograph, tmp_path / "linked" / "b.png"]
    for pattern in ("**", "**/*.png", "**/[[]1]/*", "*/**/?.png"):
        expected = found[: 1 if "[" in pattern else 2]
        assert images.find_photographs(f"{tmp_path}/{pattern}") == expected
    monkeypatch.chdir(tmp_path / "a")
    assert images.find_photographs("**/a.png") == [pathlib.Path("[1]/a.png")]
    with pytest.raises(UserError, match="loop does not exist"):
        images.find_photographs(tmp_path / "loop")


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


# Photographs of which a part is missing, though the decoder says nothing.


@pytest.mark.parametrize("share", [0.3, 0.5])
@pytest.mark.parametrize("name", INCOMPLETE)
def test_a_photograph_without_its_end_is_refused(name, share):
    kind, options, damage = INCOMPLETE[name]
    whole = encoded(kind, **options)
    assert images.read_photograph("whole", whole).shape == (180, 240, 3)
    with pytest.raises(UserError, match=r"^eye is .*damaged"):
        images.open_photograph("eye", damage(whole, share))


@pytest.mark.parametrize("kind", ["BMP", "TIFF"])
@pytest.mark.parametrize("above", [0, 40])
def test_black_bars_are_no_missing_part(kind, above):
    """Above and below the fundus they make a square of it; else it must end round."""
    whole = round_fundus(height=160, width=240)[10:-10]
    if not above:
        y, x = np.mgrid[:140, :240]
        whole = whole * (np.hypot(y - 70, x - 120) < 70)[..., None].astype(np.uint8)
    file = io.BytesIO()
    padded = np.pad(whole, ((above, 40), (0, 0), (0, 0)))
    Image.fromarray(padded).save(file, kind)
    np.testing.assert_array_equal(images.read_photograph("a", file.getvalue()), padded)


def test_a_grey_ground_is_no_missing_block():
    """As filtered photographs have, which show differences from a grey of 128."""
    pixels = np.full((64, 64, 3), 128, np.uint8)
    pixels[20:40, 20:40] = 200
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    assert images.read_photograph("a", file.getvalue()).shape == (64, 64, 3)


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (31, 200)])
def test_a_few_pixels_are_no_photograph(size):
    file = io.BytesIO()
    Image.new("RGB", size, (200, 90, 30)).save(file, "PNG")
    with pytest.raises(UserError, match=rf"{size[0]} x {size[1]} pixels; at least 32"):
        images.open_photograph("a", file.getvalue())
