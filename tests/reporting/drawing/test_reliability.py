import numpy as np
from PIL import Image

from mtl_jax.reporting.drawing import reliability, roc


def rgb(code):
    return tuple(bytes.fromhex(code.removeprefix("#")))


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def places(picture, code):
    """Rows and columns of a colour, outside the legend and its line."""
    y, x = np.nonzero((picture == rgb(code)).all(-1))
    above = (x < 0.5 * picture.shape[1]) | (y < 0.5 * picture.shape[0])
    return y[above], x[above]


def test_certain_and_right_lies_at_the_corners(tmp_path):
    labels = np.arange(100) % 2
    panel = {"uncalibrated": (labels * 1.0, labels)}
    reliability.plot_reliability({"MTL-IO": {"average": panel}}, tmp_path / "r")
    assert (tmp_path / "r.pdf").exists()
    picture = pixels(tmp_path / "r.png")
    y, x = places(picture, roc._COLOURS[0])
    # The line between the two bins is the diagonal.
    assert np.ptp(x) > 0.6 * picture.shape[1]
    assert abs(np.corrcoef(x, y)[0, 1]) > 0.95


def test_each_panel_has_its_curves_and_an_absent_one_is_empty(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    scored = rng.uniform(size=60), labels
    both = {"uncalibrated": scored, "calibrated": (scored[0] ** 2, labels)}
    rows = {
        "MTL-IO": {"average": both, "vCDR": both},
        "STL": {"average": {"uncalibrated": scored}},
    }
    reliability.plot_reliability(rows, tmp_path / "r")
    picture = pixels(tmp_path / "r.png")
    height, width = (side // 2 for side in picture.shape[:2])
    quarters = {
        (i, j): picture[i * height : (i + 1) * height, j * width : (j + 1) * width]
        for i in (0, 1)
        for j in (0, 1)
    }
    count = {
        place: [len(places(part, code)[0]) > 50 for code in roc._COLOURS[:2]]
        for place, part in quarters.items()
    }
    assert count == {
        (0, 0): [True, True],
        (0, 1): [True, True],
        (1, 0): [True, False],
        (1, 1): [False, False],
    }
