import json
import pathlib
import tempfile

import jax
import numpy as np
import pytest
import weight_files
from denial import denied

from mtl_jax import weights
from mtl_jax.errors import UserError
from mtl_jax.models import MultiTaskUNet


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A function that gives the imported folder of an architecture."""
    place = tmp_path_factory.mktemp("imported")

    def make(architecture):
        if not (place / architecture).exists():
            path = weight_files.write_safetensors(
                place / f"{architecture}.safetensors",
                weight_files.torchvision(architecture),
            )
            weights.save(
                weights.import_encoder(path, architecture), place / architecture
            )
        return place / architecture

    return make


def paths(tree):
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in flat
    }


@pytest.mark.parametrize("norm", ["batch", "batch_no_average", "none"])
def test_what_differs_from_scratch(norm, imported, random_variables):
    architecture = "vgg13" if norm == "none" else "vgg13_bn"
    encoder = weights.load(imported(architecture))
    weights.check_suitable(encoder, "vgg13", norm)
    model = MultiTaskUNet(encoder="vgg13", norm=norm, normalize_input=True)
    fresh = {"batch_stats": {}, **random_variables(model)}
    params, batch_stats = weights.start_from(
        encoder, fresh["params"], fresh["batch_stats"]
    )
    started = {"params": params, "batch_stats": batch_stats}
    before, after = paths(fresh), paths(started)
    assert before.keys() == after.keys()
    differ = {name for name in before if not np.array_equal(before[name], after[name])}
    layers = [f"block{i}_conv{j}" for i in range(1, 6) for j in (1, 2)]
    leaves = ["conv/kernel", "conv/bias"]
    leaves += [] if norm == "none" else ["norm/scale", "norm/bias"]
    wanted = {f"params/encoder/{layer}/{leaf}" for layer in layers for leaf in leaves}
    if norm == "batch":
        wanted |= {
            f"batch_stats/encoder/{layer}/norm/{leaf}"
            for layer in layers
            for leaf in ("mean", "var")
        }
    assert differ == wanted | {"batch_stats/input/mean"}
    np.testing.assert_allclose(after["batch_stats/input/mean"], [0.485, 0.456, 0.406])


def test_keras_brings_its_mean(tmp_path):
    path = weight_files.write_keras(tmp_path / "a.h5", weight_files.keras_vgg16())
    weights.save(weights.import_encoder(path, "vgg16"), tmp_path / "k")
    record = json.loads((tmp_path / "k" / "weights.json").read_text())
    assert record["architecture"] == "vgg16"
    assert record["norm"] == "none"
    assert record["source"] == "a.h5"
    assert record["input_std"] == [0.229, 0.224, 0.225]
    found = weights.load(tmp_path / "k").input_mean * 255
    np.testing.assert_allclose(found, [123.68, 116.779, 103.939], rtol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "encoder", "norm", "said"),
    [
        ("vgg13", "vgg16", "none", "encoder is 'vgg16'; set it to 'vgg13'"),
        (
            "vgg13",
            "vgg13",
            "batch",
            "norm is 'batch'; set it to 'none', or import",
        ),
        ("vgg13_bn", "vgg13", "none", "norm is 'none'; set it to 'batch' or"),
        ("vgg13_bn", "vgg13", "group", "norm is 'group'; set it to 'batch' or"),
    ],
)
def test_a_network_that_they_do_not_fit(architecture, encoder, norm, said, imported):
    with pytest.raises(UserError, match=rf"config\.model\.{said}"):
        weights.check_suitable(weights.load(imported(architecture)), encoder, norm)


def test_no_folder_and_damage(tmp_path, imported):
    with pytest.raises(UserError, match=r"where there are no imported weights; make"):
        weights.load(tmp_path / "absent")
    encoder = weights.load(imported("vgg13"))
    for name in ("encoder.safetensors", "weights.json"):
        torn = tmp_path / name / "torn"
        weights.save(encoder, torn)
        weights.save(encoder, torn)  # Replaces what it wrote before.
        file = torn / name
        # By the umask, as of any file.
        assert file.stat().st_mode == (torn / "weights.json").stat().st_mode
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        with pytest.raises(UserError, match=r"torn is damaged; make it again"):
            weights.load(torn)
        # A bit of the last number, or of what follows the record.
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(UserError, match=r"torn is damaged; make it again"):
            weights.load(torn)


def test_what_may_not_be_read_is_not_called_damaged(imported):
    # The folder of `tmp_path` may not be entered by others.
    with tempfile.TemporaryDirectory() as top:
        pathlib.Path(top).chmod(0o755)
        folder = pathlib.Path(top, "encoder")
        weights.save(weights.load(imported("vgg13")), folder)
        for name in ("encoder.safetensors", "weights.json"):
            with (
                denied(folder / name),
                pytest.raises(UserError, match=r"cannot be read \(Permission") as e,
            ):
                weights.load(folder)
            assert "damaged" not in str(e.value)


def test_somebody_elses_folder_is_left(tmp_path, imported):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        weights.save(weights.load(imported("vgg13")), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
