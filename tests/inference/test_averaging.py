"""Averages over networks and flips, by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_jax import tasks
from mtl_jax.data import geometry
from mtl_jax.inference import averaging, calibration, postprocess
from mtl_jax.inference.prediction import interpret
from mtl_jax.inference.vcdr import VcdrClassifier

FAST = settings(deadline=None, max_examples=30)
CLASSIFIER = VcdrClassifier(coefficient=8.0, intercept=-4.0, prior=0.2)
SIZE = (12, 9)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def drawn(seed, count, size=SIZE, batch=2):
    """Logits of some members."""
    rng = np.random.default_rng(seed)
    return [
        {
            name: rng.normal(0, 3, (batch, *size) if task.is_dense else batch)
            for name, task in tasks.TASKS.items()
        }
        for _ in range(count)
    ]


@FAST
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_means_of_probabilities_and_of_points(seed, count):
    members = drawn(seed, count)
    found = averaging.average(members)
    for name in ("glaucoma", "disc", "cup"):
        expected = np.mean([sigmoid(m[name]) for m in members], 0)
        np.testing.assert_allclose(sigmoid(found[name]), expected, rtol=1e-9)
    for row in range(2):
        points = [postprocess.centre_of_mass(m["fovea"][row]) for m in members]
        point = postprocess.centre_of_mass(found["fovea"][row])
        np.testing.assert_allclose(point, np.mean(points, 0), atol=1e-6)


def test_points_count_alike_however_faint_their_maps():
    """One map is a thousand times fainter than the other."""
    maps = np.full((2, 1, 9, 21), 1e-9)
    maps[0, 0, 2, 3], maps[1, 0, 6, 15] = 0.9, 0.0009
    members = [{"fovea": np.log(p) - np.log1p(-p)} for p in maps]
    found = averaging.average(members)["fovea"]
    assert np.isfinite(found).all()
    point = postprocess.centre_of_mass(found[0])
    assert point == pytest.approx((9, 4), abs=1e-2)


def test_a_member_that_sees_nothing_does_not_move_a_peak():
    ys, xs = np.mgrid[:64, :64]

    def bump(x, y, height, width):
        square = (xs - x) ** 2 + (ys - y) ** 2
        return 1e-4 + height * np.exp(-square / 2 / width**2)

    maps = [bump(48, 32, 0.9, 5), bump(48, 34, 0.9, 5), bump(8, 8, 0.02, 1)]
    members = [{"fovea": (np.log(p) - np.log1p(-p))[None]} for p in maps]
    found = averaging.average(members, "peak")["fovea"]
    np.testing.assert_allclose(sigmoid(found[0]), np.mean(maps, 0), rtol=1e-6)
    point = postprocess.centre_of_mass(found[0], "peak")
    assert point == pytest.approx((48, 33), abs=0.2)


def test_certain_members_stay_finite():
    certain = {"disc": np.full((1, 4, 4), 800.0), "fovea": np.full((1, 4, 4), -800.0)}
    found = averaging.average([certain, certain])
    assert np.isfinite(found["disc"]).all()
    assert (sigmoid(found["disc"]) > 0.999).all()
    assert postprocess.centre_of_mass(found["fovea"][0]) == (1.5, 1.5)


def looking(batch):
    """A network whose maps show where the image is bright, and one number of it."""
    bright = np.asarray(batch["image"], np.float64).mean(-1) / 20 - 6
    logits = {"glaucoma": bright[:, 0, 0], **dict.fromkeys(("disc", "fovea"), bright)}
    return logits, {"disc": np.asarray(batch["image"], np.float64).sum((1, 2, 3))}


@FAST
@given(st.integers(0, 10**6))
def test_flips_are_undone(seed):
    """A network that looks at pixels one by one says the same of every flip."""
    image = np.random.default_rng(seed).integers(0, 256, (3, 6, 6, 3), np.uint8)
    corners = []
    for outputs in averaging.of_flips(looking, {"image": image}, averaging.FLIPS):
        for name in ("disc", "fovea"):
            np.testing.assert_array_equal(
                outputs.logits[name], looking({"image": image})[0][name]
            )
        corners.append(outputs.logits["glaucoma"])
    # What the network sees at its upper left are the four corners of the image.
    bright = looking({"image": image})[0]["disc"]
    ends = [bright[:, y, x] for y in (0, -1) for x in (0, -1)]
    np.testing.assert_array_equal(np.sort(corners, 0), np.sort(ends, 0))
    averaged = averaging.averaged([looking], averaging.FLIPS)
    outputs = averaged({"image": image})
    assert len(outputs.members) == 4
    np.testing.assert_array_equal(outputs.losses["disc"], image.sum((1, 2, 3)))
    # Averaged over its flips, a network says the same of a flipped image.
    turned = averaged({"image": image[:, ::-1]})
    np.testing.assert_allclose(turned.logits["disc"], outputs.logits["disc"][:, ::-1])
    np.testing.assert_allclose(turned.logits["glaucoma"], outputs.logits["glaucoma"])


@FAST
@given(st.integers(0, 10**6), st.integers(2, 5), st.booleans())
def test_spread_by_hand(seed, count, is_calibrated):
    members = drawn(seed, count, batch=1)
    fitted = None
    if is_calibrated:
        rng = np.random.default_rng(seed)
        labels = np.arange(20) % 2
        fitted = calibration.fit(rng.uniform(size=20), rng.uniform(size=20), labels)
    # A network's image of 12 x 9 pixels shows part of a photograph.
    photograph = geometry.Frame(10, 20, 90, 240, (300, 200))
    outputs = averaging.Outputs(averaging.average(members), {}, tuple(members))
    found = averaging.read(outputs, 0, CLASSIFIER, photograph, calibration=fitted)
    alone = [
        calibration.calibrated(
            interpret(
                {name: values[0] for name, values in member.items()},
                CLASSIFIER,
                geometry.whole(SIZE),
            ),
            fitted,
        )
        for member in members
    ]
    assert set(found.spread) == {"probability_spread", "vcdr_spread", "fovea_spread"}
    expected = np.std([each.probability for each in alone])
    assert found.spread["probability_spread"] == pytest.approx(expected)
    ratios = [each.vcdr for each in alone if each.vcdr is not None]
    assert found.spread["vcdr_spread"] == pytest.approx(np.std(ratios))
    # A pixel of the network is 10 wide and 20 high.
    xs, ys = np.array([each.found["fovea"] for each in alone]).T
    expected = math.hypot(10 * np.std(xs), 20 * np.std(ys))
    assert found.spread["fovea_spread"] == pytest.approx(expected)
    # The point itself is the mean, in the photograph.
    x, y = (xs.mean() + 0.5) * 10 + 9.5, (ys.mean() + 0.5) * 20 + 19.5
    assert found.found["fovea"] == pytest.approx((x, y), abs=1e-4)


def test_one_network_has_no_spread():
    (logits,) = drawn(0, 1)
    found = averaging.read(
        averaging.Outputs(logits, {}), 1, CLASSIFIER, geometry.whole(SIZE)
    )
    expected = interpret(
        {name: values[1] for name, values in logits.items()},
        CLASSIFIER,
        geometry.whole(SIZE),
    )
    assert found.spread == {}
    assert found.probability == expected.probability
    np.testing.assert_array_equal(found.found["disc"], expected.found["disc"])


def test_members_that_agree_have_no_spread_and_missing_ones_do_not_count():
    (member,) = drawn(1, 1)
    one = {name: values[0] for name, values in member.items()}
    same = averaging.spread([one] * 3, CLASSIFIER, geometry.whole(SIZE))
    assert same == pytest.approx(dict.fromkeys(same, 0), abs=1e-7)
    empty = {**one, "disc": np.full(SIZE, -9.0), "cup": np.full(SIZE, -9.0)}
    found = averaging.spread([one, empty], CLASSIFIER, geometry.whole(SIZE))
    # Only one of both has a ratio.
    assert found["vcdr_spread"] is None
    assert found["probability_spread"] is not None
    only = [{"glaucoma": member["glaucoma"][i]} for i in (0, 1)]
    found = averaging.spread(only, None, geometry.whole(SIZE))
    expected = abs(np.subtract(*sigmoid([x["glaucoma"] for x in only]))) / 2
    assert found == {
        "probability_spread": pytest.approx(expected),
        "vcdr_spread": None,
        "fovea_spread": None,
    }
