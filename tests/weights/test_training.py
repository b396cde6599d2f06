"""From weights to a trained network."""

import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import weight_files

from mtl_jax import configuration, weights, workdirs
from mtl_jax.errors import UserError
from mtl_jax.models import MultiTaskUNet
from mtl_jax.training import parallel

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


def make(make_config, pretrained, fields=None):
    return make_config(
        {
            "model.encoder": "vgg13",
            "model.pretrained": str(pretrained),
            "evaluation.score": "loss",
            "optimizer.freeze_encoder_epochs": 1.0,
            **(fields or {}),
        },
        tasks=("glaucoma",),
        num_epochs=1,
        validate_every=1,
    )


@pytest.mark.slow
def test_training_starts_from_it_and_evaluation_normalises(
    tiny_run, make_config, tmp_path
):
    """By an encoder of a run here: public files have 256 times its parameters."""
    encoder = workdirs.encoder_of(workdirs.load(tiny_run.workdir))
    weights.save(encoder, tmp_path / "own")
    config = make(make_config, tmp_path / "own")
    workdirs.train(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "own")
    # What the run needs of the weights is in its checkpoint.
    workdirs.train(config, tmp_path / "run", resume=True)
    network = workdirs.load(tmp_path / "run")
    ((_, variables),) = network.networks
    variables = parallel.unreplicate(variables)
    jax.tree.map(
        np.testing.assert_array_equal, variables["params"]["encoder"], encoder.params
    )
    mean = variables["batch_stats"].pop("input")["mean"]
    np.testing.assert_allclose(mean, [0.485, 0.456, 0.406])

    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    logits, _ = network({"image": images})
    plain = MultiTaskUNet(encoder="vgg13", width=1 / 16, dense_heads=())
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
        fields = {"model.width": 1.0, **fields}
        config = make(make_config, place / "imported", fields)
        with pytest.raises(UserError, match=said):
            workdirs.train(config, tmp_path / "run")
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
    assert configuration.build(config).model.normalize_input is wanted


def test_an_encoder_of_a_run_of_this_project(tiny_run, random_variables, tmp_path):
    network = workdirs.load(tiny_run.workdir)
    weights.save(workdirs.encoder_of(network), tmp_path / "own")
    encoder = weights.load(tmp_path / "own")
    assert (encoder.encoder, encoder.norm, encoder.width) == ("vgg13", "batch", 1 / 16)
    with pytest.raises(UserError, match="width is 0.5, but .* set it to 0.0625"):
        weights.check_suitable(encoder, "vgg13", "batch", 0.5)
    weights.check_suitable(encoder, "vgg13", "batch", 1 / 16)
    model = MultiTaskUNet(encoder="vgg13", width=1 / 16, dense_heads=())
    fresh = random_variables(model)
    params, batch_stats = weights.start_from(
        encoder, fresh["params"], fresh["batch_stats"]
    )
    ((_, variables),) = network.networks
    variables = parallel.unreplicate(variables)
    for ours, theirs in (
        (params, variables["params"]),
        (batch_stats, variables["batch_stats"]),
    ):
        jax.tree.map(np.testing.assert_array_equal, ours["encoder"], theirs["encoder"])
    np.testing.assert_array_equal(
        params["head_glaucoma"]["kernel"], fresh["params"]["head_glaucoma"]["kernel"]
    )
