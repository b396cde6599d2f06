"""Figures of one photograph."""

import numpy as np
import pytest
from PIL import Image

from mtl_jax import tasks
from mtl_jax.reporting.drawing import cases

GREY = np.full((40, 40, 3), 120, np.uint8)
TURN = np.linspace(0, 2 * np.pi, 60)
CIRCLE = np.stack([np.cos(TURN), np.sin(TURN)], -1)
TRUTH = {
    "disc": [20 + 8 * CIRCLE],
    "cup": [20 + 4 * CIRCLE],
    "fovea": np.array([8.0, 30.0]),
}
NOTHING = {"disc": [], "cup": []}
CUP_COLOUR = tasks.TASKS["cup"].rgb


def drawn(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def strong(pixels, colour):
    """How many pixels are about of a colour."""
    return (np.abs(pixels - colour).max(-1) < 25).sum()


def panels(pixels, count):
    return np.array_split(pixels, count, axis=1)


def test_each_method_has_its_own_masks(tmp_path):
    found = {"STL": (TRUTH, "disc 1.00"), "MTL-IO": (NOTHING, "")}
    cases.plot_case(GREY, "eye (glaucoma)", TRUTH, found, tmp_path / "case")
    first, truth, single, independent = panels(drawn(tmp_path / "case.png"), 4)
    assert strong(truth, CUP_COLOUR) > 100
    assert strong(single, CUP_COLOUR) == pytest.approx(
        strong(truth, CUP_COLOUR), rel=0.1
    )
    assert strong(independent, CUP_COLOUR) == 0
    # STL's sign for the fovea.
    assert strong(first, (240, 228, 66)) > 10
    assert (tmp_path / "case.pdf").read_bytes().startswith(b"%PDF")


def test_nothing_annotated_and_nothing_found(tmp_path):
    # Formulas in the names could not be parsed.
    found = {"MTL $_{$": (NOTHING, "")}
    cases.plot_case(GREY, "$e^$ye_{", NOTHING, found, tmp_path / "case")
    assert strong(drawn(tmp_path / "case.png"), CUP_COLOUR) == 0


def test_maps_of_a_fovea_beside_its_photograph(tmp_path):
    target, predicted = np.zeros((2, 40, 40))
    target[5:10, 5:10] = 1.0
    predicted[20:30, 20:30] = 0.5
    maps = {"target map": target, "predicted by MTL-IO": predicted}
    cases.plot_fovea_maps(
        GREY, "eye", {"fovea": np.array([7.0, 7.0])}, maps, tmp_path / "fovea"
    )
    pixels = drawn(tmp_path / "fovea.png")
    # Beside the last panel is the scale.
    first, second, third = panels(pixels[:, : int(0.925 * pixels.shape[1])], 3)
    assert strong(first, (120, 120, 120)) > 10_000
    # Cividis from dark blue over grey to yellow: a half is not drawn as the whole.
    dark, half, yellow = (0, 34, 78), (125, 124, 120), (254, 232, 56)
    assert strong(second, dark) > 10_000
    assert strong(third, dark) > 10_000
    assert strong(second, yellow) > 1_000
    assert strong(third, yellow) == 0
    assert strong(third, half) > 10_000
    assert (tmp_path / "fovea.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("truth", [{"fovea": np.array([7.0, 30.0])}, {}])
def test_an_annotated_fovea_is_marked_in_every_panel(truth, monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(cases, "save", lambda figure, _: figures.append(figure))
    maps = {"target map": np.ones((40, 40)), "predicted": np.zeros((40, 40))}
    cases.plot_fovea_maps(GREY, "eye", truth, maps, tmp_path / "fovea")
    *axes, scale = figures[0].axes
    assert [one.get_title() for one in axes] == ["eye", "target map", "predicted"]
    marked = [tuple(line.get_xydata()[0]) for one in axes for line in one.lines]
    assert marked == ([(7, 30)] * 3 if truth else [])
    for one, values in zip(axes[1:], maps.values(), strict=True):
        (image,) = one.images
        np.testing.assert_array_equal(image.get_array(), values)
        assert image.get_clim() == scale.get_ylim() == (0, 1)


def test_a_gradient_map_beside_its_photograph(tmp_path):
    saliency = np.zeros((40, 40))
    saliency[5:10, 5:10] = 3.0
    cases.plot_saliency(GREY, saliency, "eye", tmp_path / "saliency")
    left, right = panels(drawn(tmp_path / "saliency.png"), 2)
    assert strong(left, (120, 120, 120)) > 10_000
    # Cividis from dark blue to yellow.
    assert strong(right, (0, 34, 78)) > 10_000
    assert strong(right, (254, 232, 56)) > 1_000
    assert (tmp_path / "saliency.pdf").exists()
