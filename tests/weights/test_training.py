"""From a public file to a trained network, at the full width such files have."""

import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import weight_files

from mtl_jax import configuration, weights
from mtl_jax.errors import UserError
from mtl_jax.evaluation import trained
from mtl_jax.models import MultiTaskUNet
from mtl_jax.training import loop, parallel

pytest_plugins = ("training_fixtures",)

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folder with a public file, and what the script makes of it in `imported`."""
    place = tmp_path_factory.mktemp("pretrained")
    tensors = weight_files.torchvision("vgg13_bn", classifier=True)
    weight_files.write_safetensors(place / "vgg13_bn.safetensors", tensors)
    finished = subprocess.run(
        [
            sys.executable,
            ROOT / "scripts/import_weights.py",
            f"--source={place / 'vgg13_bn.safetensors'}",
            "--architecture=vgg13_bn",
            f"--output={place / 'imported'}",
        ],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    first, second = finished.stdout.splitlines()
    assert first.endswith("encoder: classifier.0.bias, classifier.0.weight")
    assert f"--config.model.pretrained={place / 'imported'} " in second
    assert second.endswith("--config.model.encoder=vgg13 --config.model.norm=batch")
    return place


def make(make_config, place, fields=None):
    return make_config(
        {
            "model.width": 1.0,
            "model.pretrained": str(place / "imported"),
            "evaluation.score": "loss",
            "optimizer.freeze_encoder_epochs": 1.0,
            **(fields or {}),
        },
        tasks=("glaucoma",),
        num_epochs=1,
        validate_every=1,
    )


def test_training_starts_from_it_and_evaluation_normalises(
    place, make_config, compiled, tmp_path
):
    config = make(make_config, place)
    loop.train(config, tmp_path / "run")
    encoder = weights.load(place / "imported")
    shutil.move(place / "imported", place / "moved")
    try:
        # What the run needs of the weights is in its checkpoint.
        loop.train(config, tmp_path / "run", resume=True)
        network = trained.load(tmp_path / "run")
    finally:
        shutil.move(place / "moved", place / "imported")
    ((_, variables),) = network.networks
    variables = parallel.unreplicate(variables)
    jax.tree.map(
        np.testing.assert_array_equal, variables["params"]["encoder"], encoder.params
    )
    mean = variables["batch_stats"].pop("input")["mean"]
    np.testing.assert_allclose(mean, [0.485, 0.456, 0.406])

    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    logits, _ = network({"image": images})
    plain = MultiTaskUNet(encoder="vgg13", dense_heads=())
    normalised = (images / 255 - mean) / np.array([0.229, 0.224, 0.225])
    wanted = plain.apply(variables, jnp.asarray(normalised, jnp.float32))
    np.testing.assert_allclose(logits["glaucoma"], wanted["glaucoma"], atol=1e-4)


def test_weights_that_do_not_fit_leave_no_trace(place, make_config, tmp_path):
    for fields, said in (
        ({"model.norm": "none"}, "set it to 'batch'"),
        ({"model.encoder": "vgg16"}, "set it to 'vgg13'"),
        ({"model.width": 0.5}, "width is 0.5, but .* set it to 1"),
        ({"model.pretrained": str(place / "none")}, "no imported weights"),
    ):
        with pytest.raises(UserError, match=said):
            loop.train(make(make_config, place, fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("pretrained", "normalize", "wanted"),
    [
        ("", "auto", False),
        ("weights", "auto", True),
        ("weights", "off", False),
        ("", "on", True),
    ],
)
def test_when_images_are_normalised(pretrained, normalize, wanted, make_config):
    config = make_config(
        {
            "model.width": 1.0,
            "model.pretrained": pretrained,
            "model.normalize_input": normalize,
        }
    )
    configuration.check(config)
    assert configuration.create_model(config).normalize_input is wanted
