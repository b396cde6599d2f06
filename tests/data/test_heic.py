import sys

import numpy as np
import pillow_heif
import pytest
from photograph_files import gradient, scaled, write_heic
from PIL import Image

from mtl_jax.data import images
from mtl_jax.errors import UserError


def test_8_bits_are_read_as_they_are(tmp_path):
    write_heic(tmp_path / "a.heic", gradient())
    photograph = images.open_photograph(tmp_path / "a.heic")
    # The format stores YCbCr in whole numbers.
    assert np.abs(np.asarray(photograph.picture).astype(int) - gradient()).max() <= 3
    assert photograph.conversion == ""
    grey = images.read_mask(tmp_path / "a.heic").astype(int)
    assert np.abs(grey - Image.fromarray(gradient()).convert("L")).max() <= 3


def test_10_bits_are_scaled_to_8_and_said(tmp_path):
    values = gradient().astype(np.uint16) * 257
    write_heic(tmp_path / "a.heic", values)
    photograph = images.open_photograph(tmp_path / "a.heic")
    found = np.asarray(photograph.picture).astype(int)
    assert np.abs(found - scaled(values, 16)).max() <= 1
    assert images.conversion_sentences({photograph.conversion: 3}) == [
        "3 photographs of 10 bits per channel were reduced to 8 bits."
    ]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA"])
def test_grey_and_transparent_pictures_become_rgb(tmp_path, mode):
    picture = Image.fromarray(gradient()).convert(mode)
    pillow_heif.from_pillow(picture).save(tmp_path / "a", format="HEIF", quality=-1)
    found = images.read_photograph(tmp_path / "a").astype(int)
    assert np.abs(found - np.asarray(picture.convert("RGB"))).max() <= 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = gradient()
    # By the EXIF standard's definitions.
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
    write_heic(tmp_path / "a", np.ascontiguousarray(stored), exif=exif.tobytes())
    found = images.read_photograph(tmp_path / "a")
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).max() <= 3


def check_refused(path, reason):
    with pytest.raises(UserError, match=reason) as caught:
        images.open_photograph(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_pictures_are_refused(tmp_path):
    several = pillow_heif.from_pillow(Image.fromarray(gradient()))
    several.add_from_pillow(Image.fromarray(gradient(64, 64)))
    several.save(tmp_path / "a", format="HEIF")
    check_refused(tmp_path / "a", "2 pictures")


def test_10_bits_may_be_dark(tmp_path):
    """They need not be the 8 bits of another file: the encoder fills the depth."""
    write_heic(tmp_path / "a", gradient().astype(np.uint16) * 60)
    found = images.read_photograph(tmp_path / "a").astype(int)
    assert np.abs(found - scaled(gradient().astype(np.uint16) * 60, 16)).max() <= 1


@pytest.mark.parametrize("share", [0.01, 0.1, 0.6, 0.95])
def test_truncated_files_are_refused(tmp_path, share):
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    write_heic(tmp_path / "whole", values)
    data = (tmp_path / "whole").read_bytes()
    (tmp_path / "a").write_bytes(data[: int(len(data) * share)])
    check_refused(tmp_path / "a", "damaged")


def test_without_pillow_heif_the_extra_is_named(tmp_path, monkeypatch):
    write_heic(tmp_path / "a.heic", gradient())
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    check_refused(
        tmp_path / "a.heic",
        r"pillow_heif is not installed; install mtl_jax\[heic\], or mtl_jax\[all\] for",
    )


def test_a_directory_is_searched_for_heic(tmp_path):
    for name in ("a.heic", "b.HEIF"):
        write_heic(tmp_path / name, gradient())
    found = images.find_photographs(tmp_path)
    assert [path.name for path in found] == ["a.heic", "b.HEIF"]
