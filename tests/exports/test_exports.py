"""Exported networks say what `predict` says: in onnxruntime, and with jax alone."""

import dataclasses
import json
import pathlib
import re
import shutil
import subprocess
import sys

import export_forms
import jax
import numpy as np
import pytest
from jax import export as jax_export
from PIL import Image

from mtl_jax import exports, workdirs
from mtl_jax.data.synthetic import renderer
from mtl_jax.errors import UserError, missing_extra
from mtl_jax.evaluation import predict
from mtl_jax.exports import file, onnx_graph
from mtl_jax.inference.calibration import Calibration

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

ROOT = pathlib.Path(__file__).parents[2]
SIZE = 32

# A process that has jax alone: it names nothing of this project, nor of Flax.
ALONE = """
import sys
import numpy as np
from jax import export
exported = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
assert exported.platforms == ("cpu", "cuda", "tpu")
for name in sys.argv[2:]:
    found = exported.call(np.load(name))
    np.savez(name + ".npz", **found)
assert not {"mtl_jax", "flax", "optax", "onnx"} & {*sys.modules}
"""


def two_stage():
    fields = {"method.name": "two_stage", "view.size": SIZE, "evaluation.point": "peak"}
    return export_forms.small(**fields, **{"evaluation.cup": "in_disc"})


FORMS = {
    "one stage": export_forms.small,
    "two stages": two_stage,
    "single tasks": lambda: export_forms.small(**{"method.name": "single"}),
    "imported": export_forms.authors,
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """JPEGs of several sizes."""
    folder = tmp_path_factory.mktemp("photographs")
    for index, size in enumerate([(64, 64), (72, 90), (51, 37), (151, 200)]):
        rng, camera = np.random.default_rng(index), renderer.EVALUATION_CAMERA
        drawn = renderer.render(rng, size, camera, bool(index % 2)).photograph
        Image.fromarray(drawn).save(folder / f"{index}.jpg", quality=95)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def workdir_of(tmp_path_factory):
    """A function that writes the network of a form; some are calibrated over flips."""
    folder = tmp_path_factory.mktemp("networks")

    def write(form):
        place = folder / form
        if not place.exists():
            export_forms.write(place, FORMS[form](), SIZE)
            if form in ("two stages", "imported"):
                flipped = workdirs.load_averaged([place], tta=True)
                # Nearly those of the network in the package: as steep.
                fitted = Calibration(
                    *(0.18, 0.49, 0.6, 0.99, 0.68), None, 0.85, 0.8, 1.0, 9, 6
                )
                workdirs.write_calibration([place], flipped, fitted)
        return place

    return write


@pytest.fixture(scope="module")
def written(workdir_of, tmp_path_factory):
    """A function that exports a form, once."""
    folder = tmp_path_factory.mktemp("written")

    def write(form, kind):
        path = folder / form / f"network.{kind}"
        network = workdirs.load_calibrated([workdir_of(form)])
        if not path.exists():
            exports.write(network, path, kind)
        return network, path

    return write


@pytest.fixture(scope="module")
def one(written, tmp_path_factory):
    """A function that gives a copy of an export, to write to."""

    def copy(kind, place):
        _, path = written("one stage", kind)
        for each in (path, file.description_of(path)):
            shutil.copy(each, place)
        return place / path.name

    return copy


def seen(network, photographs):
    return np.stack([predict._read(path, network).model_image for path in photographs])


@pytest.mark.parametrize("kind", exports.FORMATS)
@pytest.mark.parametrize("form", FORMS)
def test_it_says_what_predict_says(form, kind, written, photographs):
    network, path = written(form, kind)
    found = exports.compare(exports.read(path), network, photographs)
    assert found.num_images == len(photographs)
    assert found.maps < 1e-4
    assert found.probabilities < 1e-5
    assert found.points < 1e-3
    assert found.vcdr < 1e-6
    assert found.mask_pixels == 0


def test_a_difference_is_seen(written, photographs):
    network, path = written("one stage", "stablehlo")
    exported = exports.read(path)

    def wrong(images):
        found = dict(exported.function(images))
        for name in ("map_cup", "probability", "point_fovea", "vcdr"):
            found[name] = found[name] + np.float32(0.01)
        found["mask_disc"] = 1 - found["mask_disc"]
        return found

    found = exports.compare(exported._replace(function=wrong), network, photographs)
    for value in (found.maps, found.probabilities, found.points, found.vcdr):
        assert value == pytest.approx(0.01, rel=1e-3)
    assert found.mask_pixels == len(photographs) * SIZE**2


@pytest.mark.parametrize(
    "form", ["one stage", pytest.param("two stages", marks=pytest.mark.slow)]
)
def test_a_process_with_jax_alone(form, written, photographs, compiled, tmp_path):
    network, path = written(form, "stablehlo")
    images = seen(network, photographs)
    names = []
    for count in (1, 3):
        np.save(tmp_path / f"{count}.npy", images[:count])
        names.append(str(tmp_path / f"{count}.npy"))
    # Isolated, it sees neither this folder nor PYTHONPATH.
    subprocess.run([sys.executable, "-I", "-c", ALONE, path, *names], check=True)
    ours = exports.read(path).function(images)
    for count, name in zip((1, 3), names, strict=True):
        found = np.load(f"{name}.npz")
        assert {*found} == {*ours}
        for key in found:
            np.testing.assert_allclose(found[key], ours[key][:count], atol=5e-6)


def test_onnx_states_opset_and_shapes(written, photographs):
    network, path = written("two stages", "onnx")
    model = onnx.load(path)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    assert (images.name, images.type) == ("images", "tensor(uint8)")
    assert images.shape == ["batch", SIZE, SIZE, 3]
    outputs = {o.name: o.shape for o in session.get_outputs()}
    described = json.loads(file.description_of(path).read_text())
    assert outputs == {k: v["shape"] for k, v in described["outputs"].items()}
    assert outputs["map_fovea"] == ["batch", SIZE, SIZE]
    assert outputs["point_fovea"] == ["batch", 2]
    # Any number of images, and each by itself.
    batch = seen(network, photographs)
    together = session.run(None, {"images": batch})
    for i in range(len(batch)):
        alone = session.run(None, {"images": batch[i : i + 1]})
        for a, b in zip(alone, together, strict=True):
            np.testing.assert_allclose(a[0], b[i], atol=1e-5)


def test_the_json(written):
    network, path = written("two stages", "onnx")
    found = json.loads(file.description_of(path).read_text())
    assert found["format"] == "onnx"
    assert found["geometry"]["image_size"] == SIZE
    assert found["geometry"]["shape"] == "fov"
    assert found["network"]["stages"] == 2
    assert found["network"]["flips"] is True
    assert found["classifier"] == network.classifier._asdict()
    assert found["threshold"] == network.calibration.threshold
    assert found["calibration"]["temperature"] == network.calibration.temperature
    assert "meaning" in found["outputs"]["vcdr"]
    assert str(ROOT) not in file.description_of(path).read_text()


@pytest.mark.parametrize(
    "fields",
    [
        {"model.encoder": "resnet34", "model.norm": "batch"},
        {"model.norm": "group", "model.normalize_input": "on"},
        {"model.norm": "none", "tasks": ("disc",)},
        {"model.norm": "none", "tasks": ("glaucoma",)},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_other_networks_in_onnx(fields, photographs, tmp_path):
    folder = export_forms.write(tmp_path / "run", export_forms.small(**fields), SIZE)
    network = workdirs.load_calibrated([folder])
    exports.write(network, tmp_path / "n.onnx", "onnx")
    found = exports.compare(exports.read(tmp_path / "n.onnx"), network, photographs)
    assert (found.maps or 0) < 1e-4
    assert (found.probabilities or 0) < 1e-5
    assert found.maps is not None or found.probabilities is not None
    assert found.mask_pixels == 0


def test_the_program_of_the_page(written, photographs, monkeypatch, tmp_path):
    """It brings a photograph in and results out as predict does, without mtl_jax."""
    network, path = written("two stages", "onnx")
    for each in (path, file.description_of(path)):
        shutil.copy(each, tmp_path / each.name.replace("network", "eye"))
    page = (ROOT / "docs/export.md").read_text()
    (program,) = re.findall(r"```python\n(# Photograph.*?)```", page, re.S)
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(program, namespace)
    for photograph in photographs:
        read = predict._read(photograph, network)
        outputs = predict.outputs_of(network, [read])
        wanted = predict.interpret(network, outputs, 0, read)
        found = namespace["diagnose"](photograph, read.frame.box)
        assert found["probability"] == pytest.approx(wanted.probability, abs=1e-5)
        np.testing.assert_allclose(found["fovea"], wanted.point("fovea"), atol=1e-2)
        np.testing.assert_array_equal(found["disc"], wanted.found["disc"])
        np.testing.assert_array_equal(found["cup"], wanted.found["cup"])


@pytest.mark.parametrize("kind", exports.FORMATS)
def test_damage(kind, one, tmp_path):
    path = one(kind, tmp_path)
    beside = file.description_of(path)
    content, text = path.read_bytes(), beside.read_text()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="SHA-256 differs"):
        exports.read(path)
    # Damage that the JSON agrees with.
    half = json.loads(text) | {"sha256": file._digest(path.read_bytes())}
    beside.write_text(json.dumps(half))
    with pytest.raises(UserError, match="export the network again"):
        exports.read(path)
    path.write_bytes(content)
    for damaged in (text[:100], "[]", "{}", '{"format": "x", "sha256": ""}'):
        beside.write_text(damaged)
        with pytest.raises(UserError, match=r"json is missing or damaged"):
            exports.read(path)
    beside.unlink()
    with pytest.raises(UserError, match=r"json is missing or damaged"):
        exports.read(path)
    path.unlink()
    with pytest.raises(UserError, match="There is no export"):
        exports.read(path)


def test_an_older_jax(one, tmp_path, monkeypatch):
    path = one("stablehlo", tmp_path)
    said = r"written by jax 9\.9, and this is jax .*, which cannot open it; install"
    beside = file.description_of(path)
    description = json.loads(beside.read_text())
    assert description["jax"]["version"] == jax.__version__
    description["jax"]["version"] = "9.9"
    beside.write_text(json.dumps(description))
    exports.read(path)
    with monkeypatch.context() as patched:
        least = description["jax"]["calling_convention"] - 1
        name = "maximum_supported_calling_convention_version"
        patched.setattr(jax_export, name, least)
        with pytest.raises(UserError, match=said):
            exports.read(path)
    # Its own words on a format that it does not know differ between versions.
    path.write_bytes(b"a later format")
    description["sha256"] = file._digest(path.read_bytes())
    beside.write_text(json.dumps(description))
    with pytest.raises(UserError, match=said):
        exports.read(path)


def test_only_exports_are_replaced(written, one, tmp_path):
    network, _ = written("one stage", "stablehlo")
    path = one("stablehlo", tmp_path)
    exports.write(network, path, "stablehlo")
    content = path.read_bytes()
    path.write_bytes(content + b"mine")
    with pytest.raises(UserError, match="no unchanged export"):
        exports.write(network, path, "stablehlo")
    assert path.read_bytes() == content + b"mine"
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(UserError, match="no unchanged export"):
        exports.write(network, tmp_path / "notes", "stablehlo")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match="no unchanged export"):
        exports.write(network, tmp_path / "other", "stablehlo")
    with pytest.raises(UserError, match="is a folder"):
        exports.write(network, tmp_path, "stablehlo")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        exports.write(network, tmp_path / "file" / "n.onnx", "stablehlo")


def test_what_cannot_be_exported(workdir_of, tmp_path):
    crop = workdirs.load_calibrated([workdir_of("two stages") / "crop"])
    with pytest.raises(UserError, match="trained on crops around discs"):
        exports.write(crop, tmp_path / "n.onnx", "onnx")
    config = export_forms.small(**{"model.dtype": "bfloat16", "tasks": ("glaucoma",)})
    half = workdirs.load(export_forms.write(tmp_path / "half", config, SIZE))
    with pytest.raises(UserError, match=r"computes in bfloat16.*--format=stablehlo"):
        exports.write(half, tmp_path / "n.onnx", "onnx")
    with pytest.raises(UserError, match=r"operation fft.*--format=stablehlo"):
        onnx_graph.to_onnx(
            lambda images: {"x": jax.numpy.fft.fft(images[..., 0]).real}, 8
        )
    assert [path.name for path in tmp_path.iterdir()] == ["half"]


@pytest.mark.parametrize("kind", exports.FORMATS)
def test_a_file_of_two_gigabytes_is_refused_at_once(kind, written, tmp_path):
    network, _ = written("one stage", kind)
    # Of parameters that are not there.
    large = dataclasses.replace(network, num_parameters=500_000_001, networks=())
    with pytest.raises(
        UserError, match=r"500,000,001 parameters.*--format=safetensors"
    ):
        exports.write(large, tmp_path / "n", kind)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "module"), [("stablehlo", "flatbuffers"), ("onnx", "onnxruntime")]
)
def test_the_extra_of_a_format_is_named(kind, module, one, tmp_path, monkeypatch):
    path = one(kind, tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError) as caught:
        exports.read(path)
    said = f"{module} is not installed; install mtl_jax[export], or mtl_jax[all] "
    assert missing_extra(caught.value).startswith(said)


def test_without_flatbuffers_nothing_is_written(written, tmp_path, monkeypatch):
    network, _ = written("one stage", "stablehlo")
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        exports.write(network, tmp_path / "n.stablehlo", "stablehlo")
    assert missing_extra(caught.value).startswith("flatbuffers is not installed; ")
    assert list(tmp_path.iterdir()) == []


def test_the_command(workdir_of, photographs, compiled, tmp_path):
    def run(*flags):
        program = [sys.executable, "tests/small_encoder.py", "scripts/export.py"]
        return subprocess.run(
            [*program, *flags], cwd=ROOT, env=compiled, capture_output=True, text=True
        )

    workdir, output = workdir_of("one stage"), tmp_path / "out/eye.onnx"
    finished = run(
        f"--workdir={workdir}",
        f"--output={output}",
        "--format=onnx",
        f"--check={photographs[0].parent}",
    )
    assert finished.returncode == 0, finished.stderr
    file_line, json_line, size, heading, *rows = finished.stdout.splitlines()
    assert (file_line, json_line) == (str(output), f"{output}.json")
    assert size.endswith(" MB")
    assert heading.endswith("on 4 photographs:")
    found = dict(row.strip().split(": ") for row in rows)
    assert float(found["maps"]) < 1e-4
    assert float(found["probabilities"]) < 1e-5
    assert found["pixels of masks that differ"] == "0"
    for flags, said in (
        (["--format=onnx", "--dtype=float16"], "--dtype is for --format=safetensors"),
        (["--check=x"], "--check are for a file"),
    ):
        failed = run(f"--workdir={workdir}", f"--output={tmp_path / 'no'}", *flags)
        assert failed.returncode == 1
        assert said in failed.stderr
        assert not (tmp_path / "no").exists()
