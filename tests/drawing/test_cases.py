"""Figures of one photograph."""

import numpy as np
import pytest
from PIL import Image

from mtl_jax.drawing import cases
from mtl_jax.drawing.outlines import Marks
from mtl_jax.drawing.overlay import CUP_COLOUR

GREY = np.full((40, 40, 3), 120, np.uint8)
TURN = np.linspace(0, 2 * np.pi, 60)
CIRCLE = np.stack([np.cos(TURN), np.sin(TURN)], -1)
TRUTH = Marks([20 + 8 * CIRCLE], [20 + 4 * CIRCLE], np.array([8.0, 30.0]))
NOTHING = Marks([], [], None)


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
    found = {"MTL-IO": (NOTHING, "")}
    cases.plot_case(GREY, "eye", NOTHING, found, tmp_path / "case")
    assert strong(drawn(tmp_path / "case.png"), CUP_COLOUR) == 0


def test_a_saliency_map_beside_its_photograph(tmp_path):
    saliency = np.zeros((40, 40))
    saliency[5:10, 5:10] = 3.0
    cases.plot_saliency(GREY, saliency, "eye", tmp_path / "saliency")
    left, right = panels(drawn(tmp_path / "saliency.png"), 2)
    assert strong(left, (120, 120, 120)) > 10_000
    # Cividis from dark blue to yellow.
    assert strong(right, (0, 34, 78)) > 10_000
    assert strong(right, (254, 232, 56)) > 1_000
    assert (tmp_path / "saliency.pdf").exists()
