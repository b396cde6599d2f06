"""Fields of view of drawn photographs, whose circles are known."""

import io
import pathlib

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter

from mtl_jax.data import field_of_view, geometry, images

REAL = pathlib.Path(__file__).parents[3] / "shared" / "real_fundus"
SIZE, CENTRE, RADIUS = (480, 640), (310.0, 236.0), 205.0


def inside(size, centre, radius):
    y, x = np.mgrid[: size[0], : size[1]]
    return np.hypot(x + 0.5 - centre[0], y + 0.5 - centre[1]) <= radius


def draw(fundus, ground=(0, 0, 0), brightness=1.0, seed=0):
    """A photograph with retina where `fundus` is True, brighter on one side."""
    rng = np.random.default_rng(seed)
    height, width = fundus.shape
    x = np.linspace(0, 1, width)[None, :, None]
    retina = np.array([190, 90, 40]) * (0.6 + 0.4 * x) * brightness
    picture = np.where(fundus[..., None], retina, np.array(ground, float))
    noise = rng.normal(0, 1.5, (height, width, 3))
    return Image.fromarray(np.clip(picture + noise, 0, 255).astype(np.uint8))


def box_of(size, centre, radius):
    """The bounding box of what a photograph has of a circle."""
    (x, y), (height, width) = centre, size
    box = np.array([x - radius, y - radius, x + radius, y + radius])
    return np.clip(box, 0, [width, height, width, height])


def jpeg(photograph, quality):
    file = io.BytesIO()
    photograph.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def assert_found(photograph, box, atol=3.0):
    found = field_of_view.find(photograph)
    assert found.reason == ""
    np.testing.assert_allclose(found.box, box, atol=atol)


def assert_none(photograph, reason):
    found = field_of_view.find(photograph)
    assert reason in found.reason
    assert found.box == (0, 0, *photograph.size)


# Most draws show too little of the circle.
@settings(suppress_health_check=[HealthCheck.filter_too_much])
@given(
    size=st.tuples(st.integers(200, 900), st.integers(200, 900)),
    place=st.tuples(st.floats(0.35, 0.65), st.floats(0.35, 0.65)),
    share=st.floats(0.35, 0.62),
    angle=st.floats(0, np.pi),
    cut=st.floats(0.8, 1.2),
)
def test_circles_of_any_size_and_place_cut_off_at_any_tilt(
    size, place, share, angle, cut
):
    height, width = size
    centre = (place[0] * width, place[1] * height)
    radius = share * max(size)
    fundus = inside(size, centre, radius)
    y, x = np.mgrid[:height, :width]
    across = (x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)
    fundus &= np.abs(across) <= cut * radius
    # Two corners show the ground, and half of the circle its border.
    corner = max(6, max(size) // 40)
    free = [not fundus[i, j] for i in (corner, -corner) for j in (corner, -corner)]
    turn = np.linspace(0, 2 * np.pi, 360)
    edge_x, edge_y = np.array(centre)[:, None] + radius * np.array(
        [np.cos(turn), np.sin(turn)]
    )
    visible = (edge_x > 3) & (edge_x < width - 3) & (edge_y > 3) & (edge_y < height - 3)
    visible &= np.abs(radius * np.cos(turn - angle)) < cut * radius
    assume(sum(free) >= 2 and visible.mean() > 0.5)
    found = field_of_view.find(draw(fundus))
    assert found.reason == ""
    pixel = max(1, max(size) / 400)
    box = box_of(size, centre, radius)
    # The ends of a chord lie near the circle.
    np.testing.assert_allclose(found.box, box, atol=(2 if cut >= 1 else 4) * pixel)


@settings(max_examples=20, deadline=None)
@given(
    x=st.floats(250, 390),
    y=st.floats(150, 330),
    radius=st.floats(180, 240),
    side=st.integers(48, 300),
    away=st.floats(0, 1.5),
    angle=st.floats(0, 2 * np.pi),
)
def test_a_model_image_limits_what_is_found_to_circle_and_photograph(
    x, y, radius, side, away, angle
):
    photograph = draw(inside(SIZE, (x, y), radius))
    frame = field_of_view.frame_of(photograph, "fov")
    image = geometry.photograph_to_model(photograph, frame, (side, side))
    assert field_of_view.limits(image, frame, "stretch") is None
    limits = field_of_view.limits(image, frame, "fov")
    # A point of the photograph, here with its edges at 0.
    at = np.array([x, y]) + away * radius * np.array([np.cos(angle), np.sin(angle)])
    beyond = max(*-at, *(at - SIZE[::-1]), (away - 1) * radius)
    in_model = geometry.xy_to_model(at - 0.5, frame, (side, side))
    pixel = frame.width / side
    # The circle is found to about a pixel of either picture.
    assume(abs(beyond) > 2 + 1.5 * pixel)
    assert limits.contains(in_model) == (beyond < 0)
    assert limits.contains(in_model, margin=beyond / pixel + 2)
    grid = limits.mask((64, 64))
    # The circle's part of its box.
    left, top, right, bottom = box_of(SIZE, (x, y), radius)
    columns = left + (np.arange(64) + 0.5) * (right - left) / 64
    rows = top + (np.arange(64) + 0.5) * (bottom - top) / 64
    expected = np.hypot(columns - x, rows[:, None] - y) <= radius
    assert (grid != expected).mean() < 0.05


def test_without_a_circle_all_of_the_photograph_is_seen():
    photograph = Image.fromarray(np.full((30, 40, 3), 120, np.uint8))
    frame = field_of_view.frame_of(photograph, "fov")
    image = geometry.photograph_to_model(photograph, frame, (40, 40))
    limits = field_of_view.limits(image, frame, "fov")
    assert limits.circle is None
    # The frame is square; five rows above and below are padding.
    assert limits.box == (0, 5, 40, 35)
    assert limits.contains((39, 34))
    assert not limits.contains((39, 36))
    assert limits.mask((3, 4)).all()


def with_text(photograph):
    pen = ImageDraw.Draw(photograph)
    pen.text((6, 440), "OD 2019-03-07  45 deg", fill=(255, 255, 255), font_size=24)
    pen.text((500, 20), "12:30", fill=(230, 230, 90), font_size=40)
    return photograph


def with_tab(photograph):
    """A bright tab at the upper right, and a notch cut out of the left."""
    pen = ImageDraw.Draw(photograph)
    pen.rectangle((445, 60, 490, 105), fill=(170, 80, 40))
    pen.polygon([(100, 216), (135, 236), (100, 256)], fill=(0, 0, 0))
    return photograph


def with_dark_side(photograph):
    """A quarter of the fundus is as dark as the ground."""
    shadow = Image.new("L", photograph.size, 255)
    ImageDraw.Draw(shadow).ellipse((380, 300, 640, 480), fill=0)
    shadow = shadow.filter(ImageFilter.GaussianBlur(15))
    return Image.composite(photograph, Image.new("RGB", photograph.size), shadow)


def with_crescent(photograph):
    """A bright reflection beside the border, beyond it in part."""
    glow = Image.new("L", photograph.size, 0)
    ImageDraw.Draw(glow).ellipse((470, 150, 540, 310), fill=255)
    glow = glow.filter(ImageFilter.GaussianBlur(6))
    return Image.composite(Image.new("RGB", photograph.size, "gold"), photograph, glow)


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (with_text, {}),
        (with_tab, {}),
        (with_dark_side, {}),
        (with_crescent, {}),
        (lambda photograph: with_text(with_tab(photograph)), {"brightness": 0.4}),
        (lambda photograph: jpeg(photograph, 40), {}),
        (lambda photograph: jpeg(with_text(photograph), 40), {"ground": (22, 20, 30)}),
        (lambda photograph: photograph, {"brightness": 0.15}),
        (lambda photograph: photograph, {"ground": (40, 36, 44)}),
        (lambda photograph: photograph, {"ground": (253, 253, 253)}),
        (with_tab, {"ground": (240, 245, 250)}),
    ],
)
def test_what_else_photographs_have(change, options):
    photograph = change(draw(inside(SIZE, CENTRE, RADIUS), **options))
    assert_found(photograph, box_of(SIZE, CENTRE, RADIUS))


def test_dark_corners_of_a_close_up_are_ground():
    """The circle reaches beyond the photograph on all sides."""
    size, centre, radius = (400, 400), (200, 200), 250
    assert_found(draw(inside(size, centre, radius)), (0, 0, 400, 400))


def test_a_close_up_on_a_black_canvas():
    fundus = np.zeros((300, 500), bool)
    fundus[40:260, 30:410] = True
    assert_found(draw(fundus), (30, 40, 410, 260))


def test_one_corner_with_ground_is_enough():
    """As where the photograph is the upper left quarter of a larger one."""
    assert_found(draw(inside((400, 400), (350, 330), 300)), (50, 30, 400, 400))


@pytest.mark.parametrize(
    ("photograph", "reason"),
    [
        (draw(np.ones((300, 400), bool)), "no corner"),
        (Image.effect_noise((120, 80), 60).convert("RGB"), "no corner"),
        (Image.new("RGB", (200, 100)), "nothing stands out"),
        (Image.new("RGB", (200, 100), "white"), "nothing stands out"),
        (Image.new("RGB", (1, 1)), "nothing stands out"),
        (draw(inside((300, 400), (200, 150), 20)), "too small"),
        (draw(np.add.outer(np.arange(300), np.arange(400)) % 350 < 150), "in pieces"),
    ],
)
def test_photographs_without_ground_or_field_of_view(photograph, reason):
    assert_none(photograph, reason)


def test_frames():
    photograph = draw(inside(SIZE, CENTRE, RADIUS))
    left, top, width, height, size = field_of_view.frame_of(photograph, "fov")
    assert size == SIZE
    assert width == height
    np.testing.assert_allclose((left, top, width), (105, 31, 410), atol=3)
    stretched = field_of_view.frame_of(photograph, "stretch")
    assert stretched == (0, 0, 640, 480, SIZE)
    close_up = draw(np.ones((300, 400), bool))
    assert field_of_view.frame_of(close_up, "fov") == (0, -50, 400, 400, (300, 400))


def test_the_same_photograph_gives_the_same_field_of_view():
    photograph = with_text(draw(inside(SIZE, CENTRE, RADIUS)))
    assert len({field_of_view.find(photograph) for _ in range(3)}) == 1


@pytest.mark.skipif(not REAL.is_dir(), reason="no real photographs in ../shared")
def test_real_photographs():
    """Of 42 photographs three are close-ups without ground, as one sees."""
    found = {
        path.stem: field_of_view.find(images.open_photograph(path).picture)
        for path in sorted((REAL / "images").iterdir())
    }
    assert {name for name, each in found.items() if each.reason} == {
        "h0020",
        "h0060",
        "h0190",
    }
    # Read off by eye: a wide ground, and text beside a circle cut off above and below.
    np.testing.assert_allclose(found["h0130"].box, (205, 21, 849, 664), atol=6)
    np.testing.assert_allclose(found["h0005"].box, (30, 0, 578, 400), atol=6)
