import contextlib
import functools
import importlib
import json
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from denial import denied
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from mtl_jax import machine, tasks
from mtl_jax.data import batching, building, pipeline
from mtl_jax.data.folds import Fold
from mtl_jax.errors import UserError

pytest_plugins = ("training_fixtures",)

N = 13  # images of the training split


@pytest.fixture(scope="module")
def builder(synthetic_data):
    return pipeline.open_dataset(*synthetic_data)


@pytest.fixture(scope="module")
def table(builder):
    return pipeline.open_split(builder, "train")


@pytest.fixture
def undecoded_table(builder, monkeypatch):
    """A split that is told that its images do not fit into memory."""
    monkeypatch.setattr(pipeline, "MEMORY_SHARE", 0.0)
    return pipeline.open_split(builder, "train")


def raw_records(builder, split):
    """The records as TFDS itself decodes them."""
    return list(builder.as_data_source(split))


def index_of(table):
    """Index of each of the table's images by its bytes; they are all different."""
    images = table.take(range(len(table)))["image"]
    found = {image.tobytes(): i for i, image in enumerate(images)}
    assert len(found) == len(table)
    return found


def take_indices(batches, places, count):
    return [
        [places[image.tobytes()] for image in next(batches)["image"]]
        for _ in range(count)
    ]


def assert_same_batch(a, b):
    assert set(a) == set(b)
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_missing_data_directory(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.*none at all.*prepare_data\.py"):
        pipeline.open_dataset(str(tmp_path / "nowhere"), "synthetic_fundus/32px")


def test_empty_data_directory(tmp_path):
    with pytest.raises(UserError, match="none at all"):
        pipeline.open_dataset(str(tmp_path), "synthetic_fundus/32px")


def reordered(record):
    """The same record, its fields in the opposite order."""
    fields = tf_example_pb2.Example.FromString(record).features.feature
    examples = [
        tf_example_pb2.Example(
            features=tf_feature_pb2.Features(feature={key: fields[key]})
        )
        for key in reversed(list(fields))
    ]
    # Messages one after the other are read as one.
    return b"".join(example.SerializeToString() for example in examples)


def of_another_patient(record):
    example = tf_example_pb2.Example.FromString(record)
    example.features.feature["patient"].bytes_list.value[0] = b"another"
    return example.SerializeToString()


@pytest.mark.parametrize(
    ("change", "is_same"), [(reordered, True), (of_another_patient, False)]
)
def test_a_fingerprint_is_that_of_the_records(
    synthetic_data, builder, change, is_same, tmp_path
):
    data_dir, name = synthetic_data
    (version_dir,) = Path(data_dir, name).iterdir()
    other = shutil.copytree(version_dir, tmp_path / name / version_dir.name)
    (shard,) = other.glob("*test.array_record*")
    records = ArrayRecordReader(str(shard)).read_all()
    writer = ArrayRecordWriter(str(shard), "group_size:1")
    for record in records:
        writer.write(change(record))
    writer.close()
    assert ArrayRecordReader(str(shard)).read_all() != records
    found = pipeline.fingerprint(pipeline.open_dataset(str(tmp_path), name))
    assert (found == pipeline.fingerprint(builder)) == is_same


@pytest.mark.parametrize("part", ["", "dataset_info.json", "*train.array_record*"])
def test_what_may_not_be_read_is_not_called_damaged(synthetic_data, part):
    data_dir, name = synthetic_data
    # The folder of `tmp_path` may not be entered by others.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        shutil.copytree(Path(data_dir, name), Path(folder, name))
        (version_dir,) = Path(folder, name).iterdir()
        builder = pipeline.open_dataset(folder, name)
        use = functools.partial(pipeline.fingerprint, builder)
        if part == "dataset_info.json":
            use = functools.partial(pipeline.open_dataset, folder, name)
        path = next(version_dir.glob(part)) if part else version_dir
        with (
            denied(path),
            pytest.raises(UserError, match=r"cannot be read \(Permission") as caught,
        ):
            use()
    assert "delete" not in str(caught.value)


@contextlib.contextmanager
def out_of_descriptors():
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))


@pytest.mark.parametrize("use", [pipeline.fingerprint, pipeline.open_split])
@pytest.mark.parametrize("cause", ["Input/output error", "Too many open files"])
def test_what_the_system_refuses_is_no_damage(synthetic_data, use, cause, tmp_path):
    data_dir, name = synthetic_data
    (version_dir,) = Path(data_dir, name).iterdir()
    shutil.copytree(version_dir, tmp_path / name / version_dir.name)
    builder = pipeline.open_dataset(str(tmp_path), name)
    # Its description is read before, and its records are not.
    assert pipeline.shape(builder)
    arguments = [builder, "train"][: 1 + (use is pipeline.open_split)]
    refused = out_of_descriptors()
    if cause == "Input/output error":
        (shard,) = (tmp_path / name / version_dir.name).glob("*train.array_record*")
        shard.unlink()
        # Its first page is never mapped.
        shard.symlink_to("/proc/self/mem")
        refused = contextlib.nullcontext()
    with pytest.raises(UserError, match="cannot be read") as caught, refused:
        use(*arguments)
    assert cause in str(caught.value)
    assert "delete" not in str(caught.value)


def test_a_torn_file_is_damage(synthetic_data, tmp_path):
    data_dir, name = synthetic_data
    (version_dir,) = Path(data_dir, name).iterdir()
    shutil.copytree(version_dir, tmp_path / name / version_dir.name)
    builder = pipeline.open_dataset(str(tmp_path), name)
    (shard,) = (tmp_path / name / version_dir.name).glob("*train.array_record*")
    shard.write_bytes(shard.read_bytes()[:-99])
    with pytest.raises(UserError, match="is damaged .*; delete this folder"):
        pipeline.open_split(builder, "train")


@pytest.mark.parametrize(
    "name", ["synthetic_fundus/16px", "nothing", "", "../x", "{}/", "./{}"]
)
def test_unknown_data_set_names_those_there(synthetic_data, name):
    data_dir, there = synthetic_data
    name = name.format(there)
    with pytest.raises(UserError) as caught:
        pipeline.open_dataset(data_dir, name)
    assert repr(name) in str(caught.value)
    assert there in str(caught.value)


PLANTED = """
import pathlib
import tensorflow_datasets as tfds
pathlib.Path("ran").touch()
class Feature(tfds.features.Text):
    pass
"""


def plant_a_class(stored):
    stored["featuresDict"]["features"]["eye"]["pythonClassName"] = "planted.Feature"


def plant_a_feature_of_old(stored):
    content = {"eye": {"type": "planted.Feature", "content": {}}}
    stored |= {"jsonFeature": {"json": json.dumps(content)}}
    del stored["featuresDict"]


def plant_an_old_file(stored):
    stored.clear()
    stored |= {"type": "planted.Feature", "content": {}}


@pytest.mark.parametrize(
    ("file", "plant", "named"),
    [
        ("features.json", plant_a_class, "'planted.Feature'"),
        ("features.json", plant_a_feature_of_old, "FeaturesDict'"),
        ("features.json", plant_an_old_file, "cannot be parsed"),
        ("dataset_info.json", plant_a_class, "'planted.Feature'"),
    ],
)
def test_a_data_set_cannot_name_code_to_run(
    file, plant, named, synthetic_data, tmp_path, monkeypatch
):
    data_dir, name = synthetic_data
    shutil.copytree(Path(data_dir) / name, tmp_path / name)
    (folder,) = (tmp_path / name).iterdir()
    features = json.loads((folder / "features.json").read_text())
    plant(features)
    stored = json.loads((folder / file).read_text())
    stored = features if file == "features.json" else stored | {"features": features}
    (folder / file).write_text(json.dumps(stored))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "planted.py").write_text(PLANTED)
    for read in (
        lambda: pipeline.open_dataset(str(tmp_path), name),
        lambda: pipeline.describe(folder),
        lambda: pipeline.tally(folder),
        lambda: building.read_metadata(folder),
    ):
        with pytest.raises(UserError, match=f"{file} .*{named}"):
            read()
    assert not (tmp_path / "ran").exists()


def test_unknown_split_names_those_there(builder):
    with pytest.raises(UserError, match="'trian'; it has .*train.*"):
        pipeline.open_split(builder, "trian")


def test_description_names_counts_and_flags(builder, synthetic_data):
    text = pipeline.describe(Path(builder.data_dir))
    data_dir, name = synthetic_data
    assert "train 13" in text
    assert "validation 6" in text
    assert f"--config.data.data_dir={data_dir} --config.data.dataset={name}" in text


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_contents_are_the_records(builder, split):
    raw = raw_records(builder, split)
    table = pipeline.open_split(builder, split)
    assert len(table) == len(raw) == {"train": N}.get(split, 6)
    batch = table.take(range(len(table)))
    assert set(batch) == set(pipeline.TRAINING_KEYS)
    for i, record in enumerate(raw):
        np.testing.assert_array_equal(batch["image"][i], record["image"])
        for name in ("disc", "cup"):
            np.testing.assert_array_equal(
                batch[f"{name}_mask"][i], record[f"{name}_mask"][..., 0]
            )
            (native,) = table.native(i, [name]).items()
            assert native[0] == f"{name}_mask"
            np.testing.assert_array_equal(
                native[1], record[f"native_{name}_mask"][..., 0]
            )
        for key in ("fovea_xy", "glaucoma", "has_label"):
            np.testing.assert_array_equal(batch[key][i], record[key])
        details = table.details(i)
        assert details["image_id"] == record["image_id"].decode()
        assert details["file_name"] == f"{details['image_id']}.png"
        assert details["source"] == ""
        assert details["native_size"] == tuple(record["native_size"])
        native = table.native(i, ["glaucoma", "fovea"])
        assert list(native) == ["glaucoma", "fovea_xy"]
        assert native["glaucoma"] == record["glaucoma"]
        np.testing.assert_array_equal(native["fovea_xy"], record["native_fovea_xy"])


def test_types_are_those_of_the_batch(table):
    batch = table.take([0, 5])
    found = {key: (value.dtype.name, value.shape) for key, value in batch.items()}
    assert found == {
        "image": ("uint8", (2, 32, 32, 3)),
        "disc_mask": ("uint8", (2, 32, 32)),
        "cup_mask": ("uint8", (2, 32, 32)),
        "fovea_xy": ("float32", (2, 2)),
        "glaucoma": ("float32", (2,)),
        "has_label": ("bool", (2, 4)),
    }


@pytest.mark.parametrize("batch_size", [3, 4, 13])
def test_each_epoch_has_each_image_at_most_once(table, batch_size):
    places = index_of(table)
    steps = N // batch_size
    assert batching.steps_per_epoch(table, batch_size) == steps
    batches = batching.training_batches(table, batch_size, seed=0)
    epochs = [np.concatenate(take_indices(batches, places, steps)) for _ in range(4)]
    for epoch in epochs:
        assert len(set(epoch)) == steps * batch_size
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_every_image_comes_in_some_epoch(table):
    places = index_of(table)
    batches = batching.training_batches(table, 4, seed=0)
    assert set(np.ravel(take_indices(batches, places, 3 * 12))) == set(range(N))


def test_order_depends_on_the_seed_alone(table, undecoded_table):
    places = index_of(table)

    def order(table, seed):
        return take_indices(batching.training_batches(table, 4, seed), places, 7)

    assert order(table, 3) == order(table, 3) == order(undecoded_table, 3)
    assert order(table, 3) != order(table, 4)


def test_batches_of_places_alone(table):
    """Those of the same records in a split that is a part of another, too."""
    part = table.subset([7, 2, 11, 5, 3, 0], "a part")
    for split, make in (
        (table, lambda *args: batching.training_batches(table, 4, 3, *args)),
        (part, lambda *args: batching.training_batches(part, 4, 3, *args)),
        (
            part,
            lambda *args: batching.per_task_batches(part, tasks.build(), 4, 3, *args),
        ),
    ):
        records = split.take(range(len(split)))
        for whole, places, _ in zip(make(), make(True), range(5), strict=False):
            assert places.keys() == {"index"}
            assert places["index"].dtype == np.int32
            for key, values in whole.items():
                np.testing.assert_array_equal(records[key][places["index"]], values)


def test_what_is_not_installed_is_no_damage(builder, monkeypatch):
    def read(split, decoders):
        importlib.import_module("absent")

    monkeypatch.setattr(builder, "as_data_source", read)
    with pytest.raises(ModuleNotFoundError, match="absent"):
        pipeline.open_split(builder, "train")


# In a container, in a step of a scheduler's job, and under version 1.
PLACES = [("0::/", "memory.max"), ("0::/a/b", "a/b/memory.max")]
PLACES += [("0::/a/b", "a/memory.max"), ("4:memory:/a", "memory/memory.limit_in_bytes")]


@pytest.mark.parametrize(("group", "file"), PLACES)
@pytest.mark.parametrize(
    ("limit", "used", "decodes"),
    [
        ("max", 5 << 20, True),
        (1 << 40, 5 << 20, True),
        (5 << 20, 5 << 20, False),
        # A kernel that does not say how much is in use.
        (5 << 20, None, True),
    ],
)
def test_a_limit_decides_whether_images_are_kept(
    group, file, limit, used, decodes, builder, tmp_path, monkeypatch
):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{limit}\n")
    said = "" if used is None else f"anon {used}\ntotal_rss {used}\n"
    path.with_name("memory.stat").write_text(f"{said}file 123\n")
    (tmp_path / "groups").write_text(f"7:cpu,cpuacct:/c\n{group}\n")
    monkeypatch.setattr(machine, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert (pipeline.open_split(builder, "train")._decoded is not None) == decodes


def test_decoding_on_the_fly_gives_the_same_batches(table, undecoded_table):
    assert undecoded_table._decoded is None
    assert table._decoded is not None
    a, b = (batching.training_batches(t, 4, 1) for t in (table, undecoded_table))
    for _ in range(4):
        assert_same_batch(next(a), next(b))


@pytest.mark.parametrize("taken", [0, 1, 4, 6])
def test_position_can_be_saved_and_restored(table, taken):
    """In the middle of an epoch, at its end, and before the first batch."""
    batches = batching.training_batches(table, 4, seed=2)
    for _ in range(taken):
        next(batches)
    state = batches.get_state()
    expected = [next(batches) for _ in range(5)]
    other = batching.training_batches(table, 4, seed=2)
    next(other)
    other.set_state(state)
    for batch in expected:
        assert_same_batch(next(other), batch)


def test_a_split_smaller_than_a_batch_is_refused(table):
    with pytest.raises(
        UserError, match=r"train has 13 images.*batch of 14.*batch_size"
    ):
        batching.steps_per_epoch(table, 14)


@pytest.mark.parametrize("batch_size", [1, 4, 5, 13, 20])
def test_evaluation_has_every_image_once(table, batch_size):
    whole = table.take(range(N))
    seen = []
    for indices, batch in batching.evaluation_batches(table, batch_size):
        count = len(indices)
        assert all(len(values) == batch_size for values in batch.values())
        assert batch["weight"].dtype == np.float32
        assert batch["weight"].tolist() == [1.0] * count + [0.0] * (batch_size - count)
        assert not batch["has_label"][count:].any()
        for key in pipeline.TRAINING_KEYS:
            np.testing.assert_array_equal(batch[key][:count], whole[key][indices])
        seen += indices
    assert seen == list(range(N))


def test_evaluation_leaves_the_decoded_images_as_they_are(table):
    before = {key: value.copy() for key, value in table.take(range(N)).items()}
    list(batching.evaluation_batches(table, 5))
    assert_same_batch(table.take(range(N)), before)


READ = """
import json, sys
from mtl_jax.data import batching, building, pipeline
from mtl_jax.data.folds import Fold
table = pipeline.open_split(pipeline.open_dataset(*sys.argv[1:]), "train")
next(batching.training_batches(table, 4, 0))
table.native(0, ["disc", "fovea"])
print(json.dumps([name for name in sys.modules if name.startswith("tensorflow")]))
"""


def test_tensorflow_is_not_needed(synthetic_data):
    finished = subprocess.run(
        [sys.executable, "-c", READ, *synthetic_data],
        capture_output=True,
        check=True,
        text=True,
    )
    modules = json.loads(finished.stdout.splitlines()[-1])
    assert tfds.__name__ in modules
    assert "tensorflow" not in modules


@pytest.mark.parametrize("in_memory", [True, False])
def test_foveas_by_the_convention_of_the_authors(folder_data, in_memory, monkeypatch):
    """Of photographs of several sizes, annotated at (20 + i + 1/4, 30.5)."""
    if not in_memory:
        monkeypatch.setattr(pipeline, "MEMORY_SHARE", 0.0)
    builder = pipeline.open_dataset(*folder_data)
    table = pipeline.open_split(builder, "test", None, "corner")
    ours = pipeline.open_split(builder, "test")
    found = table.take(range(len(table)))
    for index, xy in enumerate(found["fovea_xy"]):
        details = table.details(index)
        height, width = details["native_size"]
        i = int(details["image_id"].removeprefix("eye"))
        assert details["extra"] == {"age": f"{50 + i} years"}
        expected = [0, 0] if i == 7 else [(20.25 + i) * 32 / width, 30.5 * 32 / height]
        np.testing.assert_allclose(xy, expected, rtol=1e-6)
        assert xy.dtype == np.float32
    same = ours.take(range(len(table)))
    assert np.abs(same.pop("fovea_xy") - found.pop("fovea_xy")).max() > 0.2
    assert_same_batch(found, same)


@pytest.mark.parametrize("fold", [None, Fold(1, 2, 0)])
def test_every_way_to_open_a_split_takes_the_convention(complete_data, fold):
    builder = pipeline.open_dataset(*complete_data)
    pair = pipeline.open_training_splits(builder, fold, "corner")
    for split, table in zip(pipeline.TRAINING_SPLITS, pair, strict=True):
        other = pipeline.open_split(builder, split, fold, "corner")
        batch = table.take(range(len(table)))
        assert_same_batch(batch, other.take(range(len(other))))
        for index, xy in enumerate(batch["fovea_xy"]):
            details = table.details(index)
            scale = 32 / np.array(details["native_size"][::-1])
            np.testing.assert_allclose(
                xy, table.native(index, ["fovea"])["fovea_xy"] * scale, rtol=1e-6
            )
