"""Gradient maps of diagnoses against gradients by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import configuration, workdirs
from mtl_jax.evaluation import saliency
from mtl_jax.training import parallel
from mtl_jax.training.views import View

pytest_plugins = ("training_fixtures",)

SHAPE = (6, 7, 3)


def image(seed=0):
    return np.random.default_rng(seed).integers(0, 256, SHAPE, np.uint8)


def test_of_a_linear_logit_it_is_the_largest_weight_of_a_pixel():
    weights = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    found = saliency.saliency(
        lambda weights, x: (x * weights).sum((1, 2, 3)) + 5, weights, image()
    )
    np.testing.assert_allclose(found, np.abs(weights).max(-1), rtol=1e-5)


def test_it_is_the_mean_gradient_of_noisy_copies():
    """Of the sum of cubes, 3 x^2 whatever the sign of x."""
    found = saliency.saliency(lambda _, x: (x**3).sum((1, 2, 3)), {}, image(), seed=4)
    keys = jax.random.split(jax.random.key(4), saliency.NUM_COPIES)
    noise = np.stack([jax.random.normal(key, SHAPE) for key in keys])
    copies = image() / 255.0 + saliency.NOISE * noise
    expected = (3 * copies**2).mean(0).max(-1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert found.dtype == np.float32


def test_pixels_that_do_not_count_have_none():
    found = saliency.saliency(
        lambda _, x: jnp.tanh(x[:, :3]).sum((1, 2, 3)), {}, image()
    )
    assert (found[:3] > 0).all()
    assert (found[3:] == 0).all()


def test_of_a_run(glaucoma_run, fovea_run, compiled):
    picture = np.random.default_rng(2).integers(0, 256, (32, 32, 3), np.uint8)
    found = saliency.of_run(glaucoma_run.workdir, picture)
    assert found.shape == (32, 32)
    assert np.isfinite(found).all()
    # A step along the gradient changes the logit as much as the map says.
    network = workdirs.load(glaucoma_run.workdir)
    pixel = np.unravel_index(found.argmax(), found.shape)
    changed = picture.copy()
    changed[pixel] = 255 - changed[pixel]
    batch = np.stack([picture, changed] * (network.batch_size // 2))
    before, after = network({"image": batch})[0]["glaucoma"][:2]
    assert before != after
    assert saliency.of_run(fovea_run.workdir, picture) is None


@pytest.mark.slow
def test_of_a_run_that_sees_images_at_another_size(glaucoma_run, compiled, monkeypatch):
    """A view of 32 pixels a side of images of 64."""
    picture = np.random.default_rng(2).integers(0, 256, (64, 64, 3), np.uint8)
    network = workdirs.load(glaucoma_run.workdir)
    model = configuration.build(network.config).model
    ((_, variables),) = network.networks

    def logit(variables, images):
        smaller = jax.image.resize(images, (len(images), 32, 32, 3), "linear")
        return model.apply(variables, smaller)["glaucoma"]

    expected = saliency.saliency(logit, parallel.unreplicate(variables), picture)
    assert expected.shape == (64, 64)
    assert expected.max() > 0
    build, view = configuration.build, View("whole", 32)
    monkeypatch.setattr(
        configuration, "build", lambda c: dataclasses.replace(build(c), view=view)
    )
    found = saliency.of_run(glaucoma_run.workdir, picture)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * expected.max())


@pytest.mark.slow
def test_the_second_of_two_stages_looks_around_the_disc():
    """That of the package, in a square of twice the disc's size."""
    picture = np.random.default_rng(2).integers(0, 256, (512, 512, 3), np.uint8)
    disc = np.zeros((512, 512), np.uint8)
    disc[280:340, 390:450] = 1
    found = saliency.of_run(workdirs.BUILT_IN, picture, disc)
    seen = found[250:370, 360:480]
    assert seen.max() > 0
    np.testing.assert_allclose(seen.sum(), found.sum(), rtol=0.02)
