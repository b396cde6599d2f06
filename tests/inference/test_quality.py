import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy import ndimage
from sklearn.datasets import load_sample_image

from mtl_jax.data.synthetic import renderer
from mtl_jax.inference import quality

# The machines that run this are shared, so that no example has a time limit.
FAST = settings(deadline=None, max_examples=8)
SEEDS = st.integers(0, 5)


@functools.cache
def draw(seed, side=300):
    """A fundus, cut out of the dark ground or with it, by its camera."""
    camera = (renderer.TRAINING_CAMERA, renderer.EVALUATION_CAMERA)[seed % 2]
    rng = np.random.default_rng(seed)
    return renderer.render(rng, (side, side), camera, bool(seed % 3))


def doubts(photograph):
    return [doubt.name for doubt in quality.doubts(photograph, None)]


def as_bytes(values):
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("side", [64, 300, 700])
def test_drawn_fundi_are_good_at_any_size(side):
    for seed in range(3):
        assert doubts(draw(seed, side).photograph) == []


def test_close_ups_are_fundi():
    for seed in range(3):
        fundus = draw(seed, 700)
        rows, columns = (np.flatnonzero(fundus.disc_mask.any(axis)) for axis in (1, 0))
        far = np.ptp(rows) // 3
        close = fundus.photograph[
            max(rows[0] - far, 0) : rows[-1] + far,
            max(columns[0] - far, 0) : columns[-1] + far,
        ]
        assert quality.NOT_A_FUNDUS not in doubts(close)


def test_measures_hardly_depend_on_the_number_of_pixels():
    photograph = Image.fromarray(draw(0, 700).photograph)
    small = quality.measure(np.asarray(photograph.resize((512, 512))))
    large = quality.measure(np.asarray(photograph.resize((3000, 3000))))
    for name in ("ordered", "redness", "colours", "brightness", "saturated", "texture"):
        first, second = getattr(small, name), getattr(large, name)
        assert first == pytest.approx(second, rel=0.1, abs=0.02), name
    assert small.is_whole == large.is_whole


@FAST
@given(SEEDS, st.lists(st.floats(0.05, 1.0), min_size=2, max_size=4))
def test_the_darker_the_less_bright(seed, factors):
    photograph = draw(seed).photograph
    found = [
        quality.measure(as_bytes(factor * photograph)).brightness
        for factor in sorted(factors)
    ]
    # The field of view is found anew in each; its rim is dark.
    assert (np.diff(found) >= -2).all()


@FAST
@given(SEEDS, st.lists(st.floats(0.5, 6.0), min_size=2, max_size=4))
def test_the_longer_the_exposure_the_more_is_saturated(seed, factors):
    photograph = draw(seed).photograph.astype(float)
    found = [
        quality.measure(as_bytes(factor * photograph)).saturated
        for factor in sorted(factors)
    ]
    assert (np.diff(found) >= -0.01).all()


@FAST
@given(SEEDS, st.lists(st.floats(0.5, 8.0), min_size=2, max_size=4))
def test_the_more_blurred_the_less_sharp(seed, sigmas):
    photograph = draw(seed).photograph.astype(float)
    found = [
        quality.measure(as_bytes(ndimage.gaussian_filter(photograph, (s, s, 0))))
        for s in sorted(sigmas)
    ]
    assert (np.diff([measured.sharpness for measured in found]) <= 0.05).all()


def test_bad_exposure_and_blur_are_told_with_their_numbers():
    good = draw(2).photograph.astype(float)
    for name, bad in (
        ("underexposed", 0.3 * good),
        ("overexposed", 3.5 * good),
        ("blurred", ndimage.gaussian_filter(good, (7, 7, 0))),
    ):
        (doubt,) = quality.doubts(as_bytes(bad), None)
        assert doubt.name == name
        assert str(doubt) == f"{name}: {doubt.reason}"
        assert any(sign.isdigit() for sign in doubt.reason)
        assert "usual" in doubt.reason


def test_no_disc():
    photograph = draw(0).photograph
    disc = draw(0).disc_mask
    assert quality.doubts(photograph, disc) == []
    (doubt,) = quality.doubts(photograph, 0 * disc)
    assert str(doubt).startswith("no disc found: ")
    # Beside what is wrong with the photograph; but a cat has no disc to be found.
    dark = quality.doubts(as_bytes(0.3 * photograph), 0 * disc)
    assert [doubt.name for doubt in dark] == ["no disc found", "underexposed"]
    (cat,) = quality.doubts(photograph[..., ::-1], 0 * disc)
    assert cat.name == quality.NOT_A_FUNDUS


def page():
    picture = Image.new("RGB", (600, 800), "white")
    pen = ImageDraw.Draw(picture)
    for line in range(50):
        pen.text((40, 20 + 15 * line), "The patient was seen in May. " * 3, "black")
    return np.array(picture)


def face():
    picture = Image.new("RGB", (500, 500), (120, 150, 180))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((50, 20, 450, 480), fill=(224, 172, 135))
    for x in (150, 350):
        pen.ellipse((x - 30, 180, x + 30, 210), fill="white")
        pen.ellipse((x - 12, 183, x + 12, 207), fill=(60, 40, 20))
    pen.arc((150, 300, 350, 420), 20, 160, fill=(150, 50, 50), width=12)
    return np.array(picture)


def scan():
    """Grey layers under speckle, as in optical coherence tomography."""
    rows = np.arange(400)[:, None]
    layers = 20 + 150 * np.exp(-(((rows - 200) / 10) ** 2))
    speckle = np.random.default_rng(0).gamma(3, 1 / 3, (400, 600))
    return as_bytes((layers * speckle)[..., None].repeat(3, axis=2))


def ramp(*colour):
    return as_bytes(
        np.linspace(0, 1, 600)[:, None, None] * np.full((1, 400, 3), colour)
    )


OTHERS = {
    "white": np.full((300, 400, 3), 255, np.uint8),
    "black": np.zeros((300, 400, 3), np.uint8),
    "grey ramp": ramp(255, 255, 255),
    "orange ramp": ramp(200, 90, 40),
    "noise": np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8),
    "orange noise": as_bytes(
        np.random.default_rng(0).normal((200, 90, 40), 25, (300, 400, 3))
    ),
    "page": page(),
    "face": face(),
    "face, close": face()[60:440, 90:410],
    "scan": scan(),
    "buildings": load_sample_image("china.jpg"),
    "flower": load_sample_image("flower.jpg"),
    "petals": load_sample_image("flower.jpg")[100:300, 250:450],
    "one pixel": np.full((1, 1, 3), 100, np.uint8),
    "grey fundus": draw(0)
    .photograph.mean(-1, keepdims=True)
    .repeat(3, -1)
    .astype("u1"),
    "negative": 255 - draw(0).photograph,
    "blue fundus": draw(0).photograph[..., ::-1],
    "green fundus": draw(0).photograph[..., [1, 0, 2]],
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_things_are_not_fundi(name):
    (doubt,) = quality.doubts(OTHERS[name], None)
    assert doubt.name == quality.NOT_A_FUNDUS
    assert any(sign.isdigit() for sign in doubt.reason)


def test_shadows_are_as_dark_in_red_as_in_green():
    """Of two pale pictures with the same lines, that with blood is a fundus."""
    rng = np.random.default_rng(0)
    lines = ndimage.gaussian_filter(rng.normal(size=(300, 300)), 2.5)[..., None]
    lines *= 0.08 / lines.std()
    pale = np.array([150, 105, 80])
    blood, shadow = ([0.4, 1, 1], [1, 1, 1])
    assert doubts(as_bytes(pale * (1 + lines * blood))) == []
    assert doubts(as_bytes(pale * (1 + lines * shadow))) == [quality.NOT_A_FUNDUS]


@FAST
@given(st.integers(0, 2**32 - 1))
def test_colours_against_numpy(seed):
    """Of a picture that fills its frame and is measured as it is."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(256, 256, 3)), (4, 4, 0))
    picture = as_bytes(rng.uniform(60, 200, 3) + 300 * smooth)
    red, green, blue = picture.reshape(-1, 3).T.astype(float)
    measured = quality.measure(picture)
    share = red / (red + green + blue + 1)
    low, middle, high = np.percentile(share, [10, 50, 90])
    assert measured.redness == pytest.approx(middle, abs=1e-3)
    assert measured.colours == pytest.approx(high - low, abs=1e-3)
    is_ordered = (red + 4 >= green) & (green + 4 >= blue)
    assert measured.ordered == pytest.approx(is_ordered.mean())
    assert measured.saturated == pytest.approx((green >= 245).mean())
    assert not measured.is_whole


@pytest.mark.parametrize(("size", "radius", "height"), [((60, 642), 1000, 50)])
def test_the_cap_of_a_field_of_view_is_measured(size, radius, height):
    ys, xs = np.mgrid[: size[0], : size[1]]
    inside = (xs - size[1] / 2) ** 2 + (ys - height + radius) ** 2 < radius**2
    photograph = (inside[..., None] * np.uint8([180, 90, 40])).astype(np.uint8)
    assert quality.doubts(photograph, None)


def test_members_that_disagree_are_said():
    photograph = renderer.render(
        np.random.default_rng(0), (256, 256), renderer.EVALUATION_CAMERA, False
    ).photograph
    disc = np.ones(photograph.shape[:2], np.uint8)
    before = quality.doubts(photograph, disc, vcdr_spread=0.1)
    after = quality.doubts(photograph, disc, vcdr_spread=0.2)
    (unsure,) = [x for x in after if x not in before]
    assert unsure.name == "unsure"
    assert "0.20" in unsure.reason


@given(
    angle=st.floats(0, 2 * np.pi),
    radius=st.floats(5, 12),
    diameters=st.one_of(st.floats(0.3, 1.6), st.floats(1.8, 3.4), st.floats(3.6, 4.5)),
)
def test_a_disc_at_an_unusual_distance_from_the_fovea_is_said(angle, radius, diameters):
    photograph = renderer.render(
        np.random.default_rng(0), (256, 256), renderer.EVALUATION_CAMERA, False
    ).photograph
    ys, xs = np.mgrid[:256, :256]
    disc = (xs - 128) ** 2 + (ys - 128) ** 2 <= radius**2
    offset = 2 * radius * diameters * np.array([np.cos(angle), np.sin(angle)])
    names = [d.name for d in quality.doubts(photograph, disc, 128 + offset)]
    assert ("implausible" in names) == (not 1.7 <= diameters <= 3.5)


@pytest.mark.parametrize("side", [256, 2500])
def test_a_disc_of_an_unusual_width_is_said(side):
    """In a field of view that is whole; in a close-up discs are large."""
    ys, xs = np.mgrid[:side, :side]
    from_middle = np.hypot(xs - side / 2, ys - side / 2)
    whole = draw(0, 256).photograph
    assert quality.measure(whole).is_whole
    whole = np.asarray(Image.fromarray(whole).resize((side, side)))
    field = quality.measure(whole).width
    for width in (0.15, 0.25, 0.3, 0.5):
        found = quality.doubts(whole, from_middle < width * field / 2)
        said = [doubt.reason for doubt in found if doubt.name == "implausible"]
        assert bool(said) == (width > 0.28)
        assert all(
            f"the disc is {width:.2f} times as wide" in reason for reason in said
        )
    close = whole[side // 3 : -side // 3, side // 3 : -side // 3]
    assert not quality.measure(close).is_whole
    assert "implausible" not in [
        doubt.name for doubt in quality.doubts(close, np.ones(close.shape[:2]))
    ]
