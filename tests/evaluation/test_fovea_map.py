"""Fovea maps of runs, against a Gaussian by SciPy and the network by hand."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import multivariate_normal

from mtl_jax import configuration, workdirs
from mtl_jax.data import pipeline
from mtl_jax.evaluation import fovea_map
from mtl_jax.training import parallel
from mtl_jax.training.views import View

pytest_plugins = ("training_fixtures",)

FOVEA = np.array([12.25, 20.5])


def picture(size=32):
    return np.random.default_rng(2).integers(0, 256, (size, size, 3), np.uint8)


def logits_by_hand(run, images):
    """The fovea's logits from float images [B, H, W, 3], without any batch."""
    network = workdirs.load(run.workdir)
    model = configuration.build(network.config).model
    ((_, variables),) = network.networks
    return jax.jit(model.apply)(parallel.unreplicate(variables), images)["fovea"]


def test_the_target_is_what_the_loss_compares_with(fovea_run, synthetic_data):
    """The loss of an image in training is the mean distance of its two maps."""
    table = pipeline.open_split(pipeline.open_dataset(*synthetic_data), "test")
    network = workdirs.load(fovea_run.workdir)
    batch = table.take(range(network.batch_size))
    _, losses = network(batch)
    image, fovea_xy = batch["image"][1], batch["fovea_xy"][1]
    found = fovea_map.of_run(fovea_run.workdir, image, {"fovea": fovea_xy})
    distance = np.abs(found.predicted - found.target).mean()
    assert distance == pytest.approx(losses["fovea"][1], rel=1e-4)


def test_the_target_is_a_gaussian_of_the_run_s_width(fovea_run):
    found = fovea_map.of_run(fovea_run.workdir, picture(), {"fovea": FOVEA})
    sigma = 32 * fovea_run.config.loss.fovea_sigma
    gaussian = multivariate_normal(FOVEA, sigma**2)
    pixels = np.stack(np.meshgrid(range(32), range(32)), -1)
    expected = gaussian.pdf(pixels) / gaussian.pdf(FOVEA)
    np.testing.assert_allclose(found.target, expected, atol=1e-5)


def test_without_an_annotation_there_is_no_target(fovea_run):
    found = fovea_map.of_run(fovea_run.workdir, picture(), {})
    assert found.target is None
    expected = expit(logits_by_hand(fovea_run, picture()[None] / 255.0)[0])
    np.testing.assert_allclose(found.predicted, expected, atol=1e-5)


def test_of_a_run_of_several_networks(glaucoma_run, fovea_run, tmp_path):
    assert fovea_map.of_run(glaucoma_run.workdir, picture(), {"fovea": FOVEA}) is None
    for name, run in (("glaucoma", glaucoma_run), ("fovea", fovea_run)):
        shutil.copytree(run.workdir, tmp_path / name)
    found, alone = (
        fovea_map.of_run(place, picture(), {"fovea": FOVEA})
        for place in (tmp_path, fovea_run.workdir)
    )
    np.testing.assert_array_equal(found.target, alone.target)
    np.testing.assert_array_equal(found.predicted, alone.predicted)


@pytest.mark.slow
def test_of_a_run_that_sees_images_at_another_size(fovea_run, monkeypatch):
    """Maps of 64 pixels a side from a view of 32."""
    smaller = jax.image.resize(picture(64) / 255.0, (32, 32, 3), "linear")
    seen = logits_by_hand(fovea_run, smaller[None])[0]
    expected = expit(jax.image.resize(seen, (64, 64), "linear"))
    build, view = configuration.build, View("whole", 32)
    monkeypatch.setattr(
        configuration, "build", lambda c: dataclasses.replace(build(c), view=view)
    )
    found = fovea_map.of_run(fovea_run.workdir, picture(64), {"fovea": 2 * FOVEA + 0.5})
    np.testing.assert_allclose(found.predicted, expected, atol=1e-4)
    # What it learns from, in between whose pixels those of the image lie.
    learnt = fovea_map.of_run(fovea_run.workdir, picture(), {"fovea": FOVEA}).target
    assert found.target.shape == (64, 64)
    between = found.target.reshape(32, 2, 32, 2).mean((1, 3))
    np.testing.assert_allclose(between, learnt, atol=0.15)
    assert between.argmax() == learnt.argmax()
