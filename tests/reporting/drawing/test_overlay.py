import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_jax import tasks
from mtl_jax.reporting.drawing import overlay

SIZE = 600
DISC_COLOUR, CUP_COLOUR, FOVEA_COLOUR = (
    tasks.TASKS[name].rgb for name in ("disc", "cup", "fovea")
)
ORANGE = (200, 90, 30)
DISC_XY, DISC_RADIUS, CUP_RADIUS = (180.0, 300.0), 70.0, 35.0
FOVEA_XY = (420.0, 330.0)


def fundus(height=SIZE, width=SIZE):
    return np.full((height, width, 3), ORANGE, np.uint8)


def distance(xy, height=SIZE, width=SIZE):
    y, x = np.mgrid[:height, :width]
    return np.hypot(x - xy[0], y - xy[1])


def circle(radius, xy=DISC_XY):
    return distance(xy) <= radius


def near_colour(picture, colour, tolerance=20):
    return np.abs(picture.astype(int) - colour).max(axis=-1) <= tolerance


def draw(photograph, caption=None, **marks):
    """Those whose name begins with `true_` are annotated, the others are found."""
    truth = {k[5:]: v for k, v in marks.items() if k.startswith("true_")}
    found = {k: v for k, v in marks.items() if not k.startswith("true_")}
    return overlay.draw(photograph, found, truth, caption)


def photograph_part(picture):
    return picture[:SIZE]


@pytest.mark.parametrize(
    ("argument", "colour", "radius"),
    [("disc", DISC_COLOUR, 70.0), ("cup", CUP_COLOUR, 35.0)],
)
def test_a_predicted_contour_is_a_closed_line_on_the_boundary(argument, colour, radius):
    picture = draw(fundus(), **{argument: circle(radius)})
    ring = near_colour(photograph_part(picture), colour)
    from_boundary = np.abs(distance(DISC_XY) - radius)
    assert ring.any()
    assert from_boundary[ring].max() < 3
    y, x = np.nonzero(ring)
    turns = np.arctan2(y - DISC_XY[1], x - DISC_XY[0])
    assert len(np.unique(np.round(np.degrees(turns) / 10))) >= 36
    # No fill, no stray line: photograph elsewhere as it was.
    elsewhere = photograph_part(picture)[from_boundary > 6]
    assert (elsewhere == ORANGE).all()


def test_a_true_contour_is_dashed_and_white():
    picture = draw(fundus(), true_disc=circle(DISC_RADIUS))
    ring = near_colour(photograph_part(picture), overlay.TRUTH_COLOUR, 40)
    from_boundary = np.abs(distance(DISC_XY) - DISC_RADIUS)
    assert from_boundary[ring].max() < 3
    y, x = np.nonzero(ring)
    degrees = np.round(np.degrees(np.arctan2(y - DISC_XY[1], x - DISC_XY[0])))
    share = len(np.unique(degrees)) / 360
    assert 0.35 < share < 0.85
    assert (photograph_part(picture)[from_boundary > 6] == ORANGE).all()


def test_lines_have_a_dark_halo():
    picture = draw(fundus(), disc=circle(DISC_RADIUS))
    from_boundary = np.abs(distance(DISC_XY) - DISC_RADIUS)
    band = photograph_part(picture)[from_boundary < 6].astype(int).sum(axis=-1)
    assert band.min() < 0.6 * sum(ORANGE)


def test_fovea_marks_are_centred():
    picture = draw(fundus(), fovea=FOVEA_XY)
    y, x = np.nonzero(near_colour(photograph_part(picture), FOVEA_COLOUR))
    assert (x.min() + x.max()) / 2 == pytest.approx(FOVEA_XY[0], abs=1)
    assert (y.min() + y.max()) / 2 == pytest.approx(FOVEA_XY[1], abs=1)
    picture = draw(fundus(), true_fovea=FOVEA_XY)
    y, x = np.nonzero(near_colour(photograph_part(picture), overlay.TRUTH_COLOUR))
    assert (np.mean(x), np.mean(y)) == pytest.approx(FOVEA_XY, abs=1)
    # A ring leaves the spot itself in view.
    centre = photograph_part(picture)[int(FOVEA_XY[1]), int(FOVEA_XY[0])]
    assert tuple(centre) == ORANGE


def test_nothing_to_draw_gives_the_photograph_and_leaves_it_alone():
    photograph = np.random.default_rng(0).integers(0, 256, (SIZE, 520, 3), np.uint8)
    before = photograph.copy()
    np.testing.assert_array_equal(draw(photograph), photograph)
    draw(photograph, fovea=(100, 100), caption="x")
    np.testing.assert_array_equal(photograph, before)


def test_caption_and_legend_stay_off_the_photograph():
    plain = fundus()
    short = draw(plain, caption="image 7: vCDR 0.61 ± 0.02")
    long = draw(plain, caption="glaucoma " * 40 + "\nsecond paragraph")
    assert short.shape[0] < long.shape[0]
    for picture in (short, long):
        assert picture.shape[1] == SIZE
        np.testing.assert_array_equal(photograph_part(picture), plain)
        assert near_colour(picture[SIZE:], (255, 255, 255)).any()


def test_legend_names_only_what_is_drawn():
    picture = draw(fundus(), disc=circle(DISC_RADIUS))
    assert near_colour(picture[SIZE:], DISC_COLOUR).any()
    assert not near_colour(picture[SIZE:], CUP_COLOUR).any()
    assert not near_colour(picture[SIZE:], FOVEA_COLOUR).any()


def test_an_empty_prediction_leaves_the_photograph_and_is_in_the_legend():
    picture = draw(fundus(), disc=np.zeros((SIZE, SIZE), np.uint8))
    np.testing.assert_array_equal(photograph_part(picture), fundus())
    assert near_colour(picture[SIZE:], DISC_COLOUR).any()


@pytest.mark.parametrize(
    ("native", "expected"),
    [
        ((64, 64), (512, 512)),
        ((256, 256), (512, 512)),
        ((200, 300), (400, 600)),
        ((512, 400), (512, 400)),
        ((1024, 700), (1024, 700)),
        ((1634, 1634), (1024, 1024)),
        ((2056, 2124), (991, 1024)),
    ],
)
def test_picture_sizes(native, expected):
    assert draw(fundus(*native)).shape == (*expected, 3)


@pytest.mark.parametrize("native", [64, 128, 1200])
def test_contours_scale_with_the_picture(native):
    xy, radius = (0.3 * native, 0.55 * native), 0.2 * native
    mask = distance(xy, native, native) <= radius
    picture = draw(fundus(native, native), disc=mask, fovea=xy)
    side = picture.shape[1]
    scale = side / native
    ring = near_colour(picture[:side], DISC_COLOUR)
    centre = [(value + 0.5) * scale - 0.5 for value in xy]
    off = np.abs(distance(centre, side, side) - radius * scale)[ring]
    assert off.max() < 0.8 * max(scale, 1) + 0.01 * side
    assert np.mean(off) < 0.5 * max(scale, 1) + 0.004 * side


def test_masks_at_the_border_and_points_beyond_it():
    full = np.ones((SIZE, SIZE), bool)
    picture = draw(
        fundus(), disc=full, cup=full, true_disc=full, true_fovea=(5000, -80)
    )
    # Where the dashes of the annotation leave the last line drawn in view.
    assert near_colour(picture[:SIZE, 0], CUP_COLOUR, 60).any()
    inner = picture[10 : SIZE - 10, 10 : SIZE - 10]
    assert (inner == ORANGE).all()
    alone = draw(fundus(), fovea=(SIZE + 300, SIZE + 300))
    np.testing.assert_array_equal(photograph_part(alone), fundus())


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6))
def test_any_mask_can_be_drawn(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((17, 23)) < rng.random()
    picture = draw(fundus(17, 23), disc=mask, true_cup=mask)
    assert picture.dtype == np.uint8
    assert picture.shape[1] == 23 * 23


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="mask is"):
        draw(fundus(), disc=np.zeros((SIZE, SIZE - 1)))
    with pytest.raises(ValueError, match="not RGB"):
        draw(fundus().astype(np.float32))
    with pytest.raises(ValueError, match="not RGB"):
        draw(fundus()[..., 0])


def test_contact_sheet_holds_every_picture_in_reading_order():
    pictures = [
        np.full((20 + 3 * i, 40 - 2 * i, 3), 50 + 20 * i, np.uint8) for i in range(5)
    ]
    sheet = overlay.contact_sheet(pictures, columns=2)
    places = []
    for picture in pictures:
        y, x = np.nonzero((sheet == picture[0, 0]).all(axis=-1))
        height, width = picture.shape[:2]
        assert (np.ptp(y) + 1, np.ptp(x) + 1) == (height, width)
        assert len(y) == height * width
        places.append((y.min() // (sheet.shape[0] // 3), x.min() // 40))
    assert [place[1] for place in places] == [0, 1, 0, 1, 0]
    assert [place[0] for place in places] == [0, 0, 1, 1, 2]


def test_contact_sheet_of_fewer_pictures_than_columns_has_no_empty_columns():
    assert overlay.contact_sheet([np.zeros((10, 10, 3), np.uint8)], 4).shape[1] < 40


@pytest.mark.parametrize(("count", "columns"), [(0, 2), (1, 0)])
def test_contact_sheet_refuses_nothing(count, columns):
    with pytest.raises(ValueError, match="cannot lay"):
        overlay.contact_sheet([np.zeros((4, 4, 3), np.uint8)] * count, columns)
