"""Exported networks, and the commands without --workdir."""

import csv
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from scipy.special import expit

from mtl_jax import configuration, workdirs
from mtl_jax.data import synthetic
from mtl_jax.data.synthetic import renderer
from mtl_jax.errors import UserError
from mtl_jax.evaluation import evaluate, fovea_map, saliency
from mtl_jax.evaluation.calibrate import calibrate
from mtl_jax.inference import calibration
from mtl_jax.training.checkpoints import Checkpoints
from mtl_jax.workdirs import claim, encoder_of, export, load, write_network

pytest_plugins = ("training_fixtures",)

ROOT = pathlib.Path(__file__).parents[2]
SIZE = 32

# A command of a package whose network is in the folder of the first argument.
COMMAND = """
import pathlib, sys
import small_encoder
from mtl_jax import commands, workdirs
workdirs.BUILT_IN = pathlib.Path(sys.argv.pop(1))
commands.run(sys.argv.pop(1))
"""


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory):
    """An export of `tiny_run`; nobody writes to it."""
    output = tmp_path_factory.mktemp("exported") / "network"
    export(tiny_run.workdir, output)
    return output


@pytest.fixture
def copied(exported, tmp_path):
    """An export to write to."""
    return pathlib.Path(shutil.copytree(exported, tmp_path / "copied"))


def drawn(count, size=SIZE):
    """Fundi of the first seeds."""
    camera = renderer.EVALUATION_CAMERA
    return np.stack(
        [
            renderer.render(
                np.random.default_rng(i), (size, size), camera, bool(i % 2)
            ).photograph
            for i in range(count)
        ]
    )


def paths(tree):
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in flat
    }


def snapshot(folder):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_it_is_read_like_the_workdir(tiny_run, exported):
    ours, theirs = load(tiny_run.workdir), load(exported)
    batch = {"image": drawn(ours.batch_size)}
    for one, other in zip(ours(batch), theirs(batch), strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    for name in ("checkpoint", "image_size", "shape", "batch_size", "num_parameters"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.classifier is not None
    assert ours.classifier == theirs.classifier
    assert ours.post == theirs.post
    image = batch["image"][0]
    np.testing.assert_array_equal(
        saliency.of_run(tiny_run.workdir, image), saliency.of_run(exported, image)
    )
    one, other = (
        fovea_map.of_run(folder, image, {}) for folder in (tiny_run.workdir, exported)
    )
    np.testing.assert_array_equal(one.predicted, other.predicted)
    one, other = encoder_of(ours), encoder_of(theirs)
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    assert one.source == other.source


def test_the_files_hold_the_checkpoint(tiny_run, exported):
    assert sorted(path.name for path in exported.glob("[!.]*")) == [
        "network.json",
        "network.safetensors",
    ]
    checkpoints = Checkpoints(tiny_run.workdir, read_only=True)
    network = load(tiny_run.workdir)
    saved = checkpoints.restore_model(
        checkpoints.best(), network.experiment.variable_shapes()
    )
    saved, found = paths(saved), load_file(exported / "network.safetensors")
    assert saved.keys() == found.keys()
    for name in saved:
        np.testing.assert_array_equal(saved[name], found[name])
    record = json.loads((exported / "network.json").read_text())
    entry = record["networks"]["network"]
    content = (exported / "network.safetensors").read_bytes()
    assert entry["bytes"] == len(content)
    assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    assert entry["step"] == checkpoints.best()
    assert entry["config"]["tasks"] == ["glaucoma", "disc", "cup", "fovea"]
    # Nothing of the machine that it was trained on.
    assert str(pathlib.Path(tiny_run.config.data.data_dir).parent) not in json.dumps(
        record
    )


def test_half_precision(tiny_run, exported, tmp_path):
    said = export(tiny_run.workdir, tmp_path / "half", dtype="float16")
    sizes = [
        (folder / "network.safetensors").stat().st_size
        for folder in (tmp_path / "half", exported)
    ]
    assert 0.49 < sizes[0] / sizes[1] < 0.62
    exact = load_file(exported / "network.safetensors")
    half = load_file(tmp_path / "half" / "network.safetensors")
    for name, values in exact.items():
        assert half[name].dtype == np.float16
        # Half a unit in the last of 11 places, or of the smallest number.
        np.testing.assert_allclose(half[name], values, rtol=2**-11, atol=2**-25)
    ours, theirs = load(tiny_run.workdir), load(tmp_path / "half")
    batch = {"image": drawn(ours.batch_size)}
    (one, _), (other, _) = ours(batch), theirs(batch)
    largest = max(abs(expit(one[t]) - expit(other[t])).max() for t in one)
    assert said.difference == pytest.approx(largest, rel=1e-5)
    assert 0 < largest < 0.01
    assert said.num_bytes == sum(
        path.stat().st_size for path in (tmp_path / "half").iterdir()
    )


def test_an_export_is_exported_again(exported, tmp_path):
    assert export(exported, tmp_path / "again").difference == 0
    for path in exported.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_numbers_that_half_precision_cannot_hold(make_config, tmp_path):
    config = make_config(tasks=("fovea",))
    shapes = configuration.build(config).variable_shapes()
    params = jax.tree.map(lambda x: np.full(x.shape, 7e4, x.dtype), shapes["params"])
    write_network(
        tmp_path / "run",
        config,
        params,
        image_size=SIZE,
        shape="stretch",
        batch_stats=jax.tree.map(
            lambda x: np.ones(x.shape, x.dtype), shapes["batch_stats"]
        ),
        origin={},
    )
    with pytest.raises(UserError, match=r"params/.* float16 cannot hold.*float32"):
        export(tmp_path / "run", tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


def test_a_calibration_goes_along(tiny_run, tmp_path):
    workdir = tiny_run.copy(tmp_path / "run")
    fitted = calibration.fit([0.2, 0.6, 0.4], [0.3, 0.4, 0.7], [0, 1, 1])
    workdirs.write_calibration([workdir], load(workdir), fitted)
    export(workdir, tmp_path / "half", dtype="float16")
    export(workdir, tmp_path / "out")
    # Rounding makes no other network of it.
    for name in ("half", "out"):
        assert workdirs.load_calibrated([tmp_path / name]).calibration == fitted
    assert workdirs.load_calibrated([tmp_path / "out"], tta=True).note
    with pytest.raises(UserError, match="without a validation split; calibrate the"):
        calibrate([tmp_path / "out"])


def edit(change):
    def damage(folder):
        path = folder / "network.json"
        record = json.loads(path.read_text())
        change(record, record["networks"]["network"])
        path.write_text(json.dumps(record))

    return damage


def set_norm(entry, norm):
    entry["config"]["model"]["norm"] = norm


def tear(folder):
    path = folder / "network.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def flip(folder):
    path = folder / "network.safetensors"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


def test_any_number_of_images_is_computed_batch_by_batch(exported):
    network = load(exported)
    size = network.batch_size
    images = drawn(size + 2)
    found, _ = network({"image": images})
    first, _ = network({"image": images[:size]})
    last, _ = network({"image": images[size:]})
    for name, values in found.items():
        assert len(values) == size + 2
        expected = np.concatenate([first[name], last[name]])
        np.testing.assert_array_equal(values, expected)
        assert (np.diff(values.reshape(size + 2, -1), axis=0) != 0).any(1).all()
        # What fills a batch changes nothing but the order of sums.
        moved, _ = network({"image": images[2:]})
        np.testing.assert_allclose(moved[name][-2:], last[name], atol=1e-5)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (tear, r"network\.safetensors is damaged, incomplete"),
        (flip, r"network\.safetensors is not the file .* SHA-256"),
        (
            lambda folder: (folder / "network.safetensors").unlink(),
            r"no file .*network\.safetensors",
        ),
        (
            lambda folder: (folder / "network.json").write_text('{"format": 1,'),
            r"network\.json is damaged; export",
        ),
        (
            lambda folder: (folder / "network.json").write_text("[]"),
            r"network\.json is damaged; export",
        ),
        (edit(lambda record, entry: record.pop("networks")), "damaged.*networks"),
        (edit(lambda record, entry: record["networks"].clear()), "lists no network"),
        (edit(lambda record, entry: entry.pop("image_size")), "damaged.*image_size"),
        (
            edit(lambda record, entry: record.update(format=2, mtl_jax="9.0")),
            r"format 2 of mtl_jax 9\.0, and this version reads the format 1",
        ),
        (
            edit(lambda record, entry: entry["config"].update(novelty=1)),
            r"another version of mtl_jax.*config\.novelty is unknown",
        ),
        (
            edit(lambda record, entry: entry["config"]["model"].update(width=0.125)),
            r"tensors of .*network\.safetensors do not fit its config",
        ),
        *[
            (
                edit(lambda record, entry, norm=norm: set_norm(entry, norm)),
                r"do not fit its config \(it has no batch_stats/decoder/.*/norm/mean\)",
            )
            for norm in ("group", "batch_no_average", "none")
        ],
        (
            edit(lambda record, entry: entry["config"].update(tasks=["disc", "cup"])),
            r"do not fit its config \(it has no params/head_fovea/bias\)",
        ),
        (
            edit(lambda record, entry: entry.update(image_size=40)),
            r"do not fit its config \(sides of .* must be divisible by 16\)",
        ),
    ],
)
def test_damage_gets_a_sentence(damage, said, copied):
    damage(copied)
    with pytest.raises(UserError, match=said):
        load(copied)


def test_a_run_of_a_deeper_network_than_its_config_says(make_config, tmp_path):
    config = make_config(tasks=("disc",))
    config.model.encoder = "vgg16"
    shapes = configuration.build(config).variable_shapes()
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    config.model.encoder = "vgg13"
    write_network(
        tmp_path / "run",
        config,
        zeros["params"],
        image_size=SIZE,
        shape="stretch",
        batch_stats=zeros["batch_stats"],
        origin={},
    )
    said = r"the checkpoint .* \(it has no batch_stats/encoder/block3_conv3/norm/mean\)"
    with pytest.raises(UserError, match=said):
        load(tmp_path / "run")


@pytest.mark.parametrize("tta", [False, True])
def test_no_images_have_no_outputs(tta, exported):
    network = workdirs.load_averaged([exported], tta=tta)
    nothing = network.outputs({"image": drawn(1)[:0]})
    some = network.outputs({"image": drawn(1)})
    for name, values in some.logits.items():
        assert nothing.logits[name].shape == (0, *values.shape[1:])


def test_only_its_own_checkpoint(tiny_run, exported):
    step = load(tiny_run.workdir).checkpoint
    for name in ("best", "latest", step):
        assert load(exported, name).checkpoint == step
    with pytest.raises(UserError, match=f"no checkpoint '7', only {step}; leave out"):
        load(exported, "7")


def test_no_training_goes_on_in_it(tiny_run, exported):
    before = snapshot(exported)
    with pytest.raises(UserError, match="exported network, which is not trained"):
        claim(exported, tiny_run.config, resume=True)
    assert snapshot(exported) == before


def rows_of(folder):
    with (folder / "per_image.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_evaluated_like_the_workdir(tiny_run, exported, synthetic_data, tmp_path):
    data_dir, dataset = synthetic_data
    before = snapshot(exported)
    given = {"data_dir": data_dir, "dataset": dataset, "output": tmp_path / "ours"}
    output, found = evaluate.evaluate(exported, **given)
    assert output == tmp_path / "ours"
    _, expected = evaluate.evaluate(tiny_run.workdir, output=tmp_path / "theirs")
    assert found == expected
    assert json.loads((output / "metrics.json").read_text()) == json.loads(
        (tmp_path / "theirs" / "metrics.json").read_text()
    )
    assert rows_of(output) == rows_of(tmp_path / "theirs")
    assert snapshot(exported) == before
    for name in given:
        rest = {key: value for key, value in given.items() if key != name}
        with pytest.raises(UserError, match=f"--{name} is missing; an exported"):
            evaluate.evaluate(exported, **rest)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("kept")
    with pytest.raises(UserError, match="letter.txt"):
        evaluate.evaluate(exported, **{**given, "output": tmp_path / "mine"})


def test_data_of_another_size_or_shape(exported, synthetic_data, copied, tmp_path):
    version_dir = synthetic.build(
        tmp_path / "data", image_size=48, num_images=(4, 2, 2), glaucoma_fraction=0.5
    )
    given = {"data_dir": str(tmp_path / "data"), "output": tmp_path / "out"}
    given["dataset"] = f"synthetic_fundus/{version_dir.parent.name}"
    with pytest.raises(UserError, match="trained on 32; build .* --image_size=32"):
        evaluate.evaluate(exported, **given)
    edit(lambda record, entry: entry.update(shape="fov"))(copied)
    given["data_dir"], given["dataset"] = synthetic_data
    with pytest.raises(UserError, match="trained on 'fov'; build .* --shape=fov"):
        evaluate.evaluate(copied, **given)
    assert not (tmp_path / "out").exists()


def command(built_in, verb, *flags, env):
    return subprocess.run(
        [sys.executable, "-c", COMMAND, str(built_in), verb, *map(str, flags)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        check=False,
        text=True,
    )


def test_the_commands_use_the_network_in_the_package(
    exported, tiny_run, synthetic_data, tmp_path, compiled
):
    before = snapshot(exported)
    (tmp_path / "in").mkdir()
    for i, pixels in enumerate(drawn(2, 64)):
        Image.fromarray(pixels).save(tmp_path / "in" / f"{i}.png")
    tables = []
    for number, workdir in enumerate(([], [f"--workdir={tiny_run.workdir}"])):
        output = tmp_path / f"out{number}"
        finished = command(
            exported,
            "predict",
            *workdir,
            f"--images={tmp_path / 'in'}",
            f"--output={output}",
            env=compiled,
        )
        assert finished.returncode == 0, finished.stderr
        tables.append((output / "predictions.csv").read_text())
    assert tables[0] == tables[1]
    assert len(tables[0].splitlines()) == 3
    data_dir, dataset = synthetic_data
    finished = command(
        exported,
        "evaluate",
        f"--data_dir={data_dir}",
        f"--dataset={dataset}",
        f"--output={tmp_path / 'scores'}",
        env=compiled,
    )
    assert finished.returncode == 0, finished.stderr
    assert str(tmp_path / "scores" / "metrics.json") in finished.stdout
    assert (tmp_path / "scores" / "overlays").is_dir()
    assert snapshot(exported) == before


def test_export_prints_what_it_wrote(tiny_run, tmp_path, compiled):
    output = tmp_path / "half"
    flags = [f"--workdir={tiny_run.workdir}", f"--output={output}", "--dtype=float16"]
    finished = command("nowhere", "export", *flags, env=compiled)
    assert finished.returncode == 0, finished.stderr
    *listed, size, rounding, advice = finished.stdout.splitlines()
    assert listed == [str(path) for path in sorted(output.glob("[!.]*"))]
    assert size.endswith(" MB")
    assert rounding.startswith("float16 changes probabilities")
    assert advice == f"{output}: now scripts/predict.py --workdir={output}"


@pytest.mark.parametrize("verb", ["predict", "evaluate"])
def test_a_package_without_network(verb, tmp_path, compiled):
    flags = ["--images=in", "--output=out"] if verb == "predict" else []
    finished = command(tmp_path / "nowhere", verb, *flags, env=compiled)
    assert (finished.returncode, finished.stdout) == (1, "")
    (line,) = finished.stderr.splitlines()
    assert line == (
        "error: --workdir is missing, and this installation of mtl_jax has no trained "
        "network of its own; name the workdir of a run."
    )


def test_the_network_in_the_package():
    """Whoever adds a config field adds it to its network.json, too."""
    network = load(workdirs.BUILT_IN)
    assert network.config.tasks == ["glaucoma", "disc", "cup", "fovea"]
    size = sum(path.stat().st_size for path in workdirs.BUILT_IN.iterdir())
    assert size <= 8e6


@pytest.mark.slow
def test_two_stages(trained, make_config, shared_dir, tmp_path):
    version_dir = synthetic.build(
        shared_dir / "data", image_size=64, num_images=(12, 4, 4)
    )
    config = make_config(
        {
            "data.dataset": f"synthetic_fundus/{version_dir.parent.name}",
            "method.name": "two_stage",
            "model.norm": "none",
            "view.size": 32,
        },
        tasks=("disc", "cup"),
        num_epochs=1,
        validate_every=1,
    )
    run = trained("exported_two_stage_run", config)
    output = tmp_path / "out"
    export(run.workdir, output)
    assert {path.name for path in output.glob("[!.]*")} == {
        "network.json",
        "whole.safetensors",
        "crop.safetensors",
    }
    ours, theirs = load(run.workdir), load(output)
    batch = {"image": drawn(ours.batch_size, 64)}
    (one, _), (other, _) = ours(batch), theirs(batch)
    assert one.keys() == other.keys() == {"disc", "cup"}
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    assert ours.checkpoint == theirs.checkpoint
    assert ours.num_parameters == theirs.num_parameters
    half = export(run.workdir, tmp_path / "half", dtype="float16")
    assert half.difference > 0
    # One stage alone is exported too, and says as before that it does not work alone.
    alone = export(run.workdir / "crop", tmp_path / "crop", dtype="float16")
    assert alone.difference is None
    with pytest.raises(UserError, match="trained on crops around discs"):
        load(tmp_path / "crop")(batch)
