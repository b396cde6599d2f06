import csv
import itertools
import json
import math
from types import SimpleNamespace

import forked_commands
import numpy as np
import pytest
import scipy.ndimage
import tensorflow_datasets as tfds
from matplotlib.path import Path
from PIL import Image
from sklearn.linear_model import LogisticRegression

from mtl_jax import workdirs
from mtl_jax.data import folder, pipeline, synthetic
from mtl_jax.errors import UserError
from mtl_jax.evaluation import evaluate
from mtl_jax.reporting import evaluation
from mtl_jax.reporting.terminal import metrics_text

pytest_plugins = ("training_fixtures",)

METRICS = (
    "auc",
    "auc_fc",
    "auc_vcdr",
    "sensitivity_at_85_specificity",
    "dice_disc",
    "dice_cup",
    "vcdr_mae",
    "fovea_error",
    "fovea_error_native",
)


def evaluated(workdir, **options):
    output, metrics = evaluation.write(workdir, **options)
    assert json.loads((output / "metrics.json").read_text()) == metrics
    with (output / "per_image.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return SimpleNamespace(output=output, metrics=metrics, rows=rows, **options)


@pytest.fixture(scope="module")
def workdir(tiny_run, tmp_path_factory):
    return tiny_run.copy(tmp_path_factory.mktemp("evaluated") / "run")


@pytest.fixture(scope="module")
def on_model(workdir):
    return evaluated(workdir, split="test", resolution="model")


@pytest.fixture(scope="module")
def on_native(workdir, folder_data):
    """Another data set: photographs of other sizes, annotated in part."""
    data_dir, dataset = folder_data
    return evaluated(
        workdir,
        split="test",
        resolution="native",
        data_dir=data_dir,
        dataset=dataset,
        checkpoint="latest",
    )


@pytest.fixture(scope="module")
def on_discs(workdir, folder_data):
    """Images with disc masks alone."""
    return evaluated(workdir, split="train", dataset=folder_data[1])


@pytest.fixture(scope="module")
def on_sources(tiny_run, folder_data, shared_dir, tmp_path_factory):
    """The photographs of `on_native`, every second from another source."""
    photographs, tmp_path = shared_dir / "photographs", tmp_path_factory.mktemp("two")
    head, *lines = (photographs / "manifest.csv").read_text().splitlines()
    named = [f"{line},{('south', 'north')[i % 2]}" for i, line in enumerate(lines)]
    (tmp_path / "two.csv").write_text("\n".join([f"{head},source", *named]))
    version_dir = folder.build(
        tmp_path / "data",
        photographs,
        manifest=tmp_path / "two.csv",
        image_size=32,
        shape="stretch",
    )
    return evaluated(
        tiny_run.copy(tmp_path / "run"),
        split="test",
        resolution="native",
        data_dir=str(tmp_path / "data"),
        dataset=f"fundus_folder/{version_dir.parent.name}",
        checkpoint="latest",
    )


# The metrics anew: from the network's logits, by the definitions.


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def raw_records(data, split):
    data_dir, dataset = data
    (version_dir,) = tfds.core.Path(data_dir, dataset).iterdir()
    return list(tfds.builder_from_directory(version_dir).as_data_source(split))


def raw_logits(network, records):
    found = []
    for start in range(0, len(records), network.batch_size):
        chunk = [record["image"] for record in records[start:][: network.batch_size]]
        images = np.zeros((network.batch_size, 32, 32, 3), np.uint8)
        images[: len(chunk)] = chunk
        logits, losses = network({"image": images})
        assert losses == {}
        found += [
            {name: values[i] for name, values in logits.items()}
            for i in range(len(chunk))
        ]
    return found


def component(mask):
    labels, count = scipy.ndimage.label(mask, np.ones((3, 3)))
    if not count:
        return np.zeros_like(mask)
    areas = scipy.ndimage.sum(mask, labels, range(1, count + 1))
    return labels == 1 + int(np.argmax(areas))


def height(mask):
    return int(mask.sum(0).max())


def ratio(disc, cup):
    return height(cup) / (height(disc | cup) + 1e-7)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum()) if a.any() or b.any() else 1.0


def area_under_curve(scores, labels):
    pairs = itertools.product(
        [s for s, y in zip(scores, labels, strict=True) if y],
        [s for s, y in zip(scores, labels, strict=True) if not y],
    )
    return np.mean([1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs])


def sensitivity(scores, labels, specificity=0.85):
    scores, labels = np.array(scores), np.array(labels) > 0
    best = {}
    for threshold in [np.inf, *scores]:
        positive = scores >= threshold
        rate = positive[~labels].mean()
        best[rate] = max(best.get(rate, 0), positive[labels].mean())
    return np.interp(1 - specificity, sorted(best), [best[r] for r in sorted(best)])


def true_classifier(data):
    ratios, labels = [], []
    for record in raw_records(data, "train"):
        disc, cup = (record[f"{n}_mask"][..., 0] > 0 for n in ("disc", "cup"))
        ratios.append([height(cup) / height(disc)])
        labels.append(record["glaucoma"])
    return LogisticRegression(C=1.0).fit(ratios, labels)


def recompute(network, data, split, resolution, classifier, glaucomas):
    """`glaucomas`: their share of the images that the classifier was fitted on."""
    records = raw_records(data, split)
    per_image = []
    for record, logits in zip(records, raw_logits(network, records), strict=True):
        has = dict(
            zip(("glaucoma", "disc", "cup", "fovea"), record["has_label"], strict=True)
        )
        native_height, native_width = record["native_size"]
        prefix = "native_" if resolution == "native" else ""
        masks = {}
        for name in ("disc", "cup"):
            probability = sigmoid(logits[name]).astype(np.float32)
            if resolution == "native":
                size = (int(native_width), int(native_height))
                probability = np.asarray(
                    Image.fromarray(probability).resize(size, Image.BILINEAR)
                )
            masks[name] = component(probability >= 0.5)
            masks[f"true_{name}"] = record[f"{prefix}{name}_mask"][..., 0] > 0
        weight = sigmoid(logits["fovea"])
        ys, xs = np.mgrid[:32, :32]
        x, y = np.average(xs, weights=weight), np.average(ys, weights=weight)
        native_x = (x + 0.5) * native_width / 32 - 0.5
        native_y = (y + 0.5) * native_height / 32 - 0.5
        fc = sigmoid(logits["glaucoma"])
        row = {
            "image_id": record["image_id"].decode(),
            "probability_fc": fc,
            "fovea_x": native_x,
            "fovea_y": native_y,
        }
        row["vcdr"] = vcdr = ratio(masks["disc"], masks["cup"])
        if resolution == "native":
            masks["disc"] |= masks["cup"]
            masks["true_disc"] |= masks["true_cup"] & bool(has["cup"])
        if masks["disc"].any() or masks["cup"].any():
            row["probability_vcdr"] = classifier.predict_proba([[vcdr]])[0, 1]
        else:
            row["probability_vcdr"] = glaucomas
        row["probability"] = (fc + row["probability_vcdr"]) / 2
        if has["glaucoma"]:
            row["glaucoma"] = record["glaucoma"]
        for name in ("disc", "cup"):
            if has[name]:
                row[f"dice_{name}"] = dice(masks[name], masks[f"true_{name}"])
        if has["disc"] and has["cup"]:
            row["vcdr_true"] = ratio(masks["true_disc"], masks["true_cup"])
            row["vcdr_mae"] = abs(row["vcdr"] - row["vcdr_true"])
        if has["fovea"]:
            true_x, true_y = record["fovea_xy"]
            row["fovea_error"] = math.hypot(x - true_x, y - true_y)
            true_x, true_y = record["native_fovea_xy"]
            row["fovea_error_native"] = math.hypot(native_x - true_x, native_y - true_y)
        per_image.append(row)
    metrics, counts = {}, {}
    for name, key, figure in (
        ("auc", "probability", area_under_curve),
        ("auc_fc", "probability_fc", area_under_curve),
        ("auc_vcdr", "probability_vcdr", area_under_curve),
        ("sensitivity_at_85_specificity", "probability", sensitivity),
    ):
        pairs = [
            (r[key], r["glaucoma"]) for r in per_image if {key, "glaucoma"} <= {*r}
        ]
        both = len({label for _, label in pairs}) == 2
        metrics[name] = figure(*zip(*pairs, strict=True)) if both else None
        counts[name] = len(pairs)
    for name in METRICS[4:]:
        values = [row[name] for row in per_image if name in row]
        metrics[name], counts[name] = np.mean(values), len(values)
    return per_image, metrics, counts


@pytest.fixture(params=["model", "native"])
def case(request, workdir, synthetic_data, folder_data):
    """An evaluation, and the same computed here."""
    if request.param == "model":
        found, data = request.getfixturevalue("on_model"), synthetic_data
        network = workdirs.load(workdir, "best")
    else:
        found, data = request.getfixturevalue("on_native"), folder_data
        network = workdirs.load(workdir, "latest")
    classifier = true_classifier(synthetic_data)
    glaucomas = np.mean([r["glaucoma"] for r in raw_records(synthetic_data, "train")])
    return found, recompute(network, data, "test", request.param, classifier, glaucomas)


def test_metrics_against_the_definitions(case):
    found, (_, metrics, counts) = case
    for name in METRICS:
        assert found.metrics[name] == pytest.approx(metrics[name], abs=2e-5), name
        assert found.metrics["num_images"][name] == counts[name], name


def test_rows_against_the_definitions(case):
    found, (per_image, _, _) = case
    assert [row["image_id"] for row in found.rows] == [
        row["image_id"] for row in per_image
    ]
    for row, reference in zip(found.rows, per_image, strict=True):
        for name in set(row) & {*METRICS, "glaucoma", "vcdr_true", *reference}:
            if name == "image_id":
                continue
            if name in reference:
                assert float(row[name]) == pytest.approx(reference[name], abs=2e-4)
            else:
                assert row[name] == "", name


def test_metrics_by_source(on_sources, on_native):
    assert "by_source" not in on_native.metrics
    assert "source" not in on_native.rows[0]
    for row in on_native.rows:  # The column of the manifest that is none of ours.
        number = int(row["image_id"].removeprefix("eye"))
        assert row["manifest_age"] == f"{50 + number} years"
    for name in METRICS:
        assert on_sources.metrics[name] == on_native.metrics[name]
    assert list(on_sources.rows[0])[:2] == ["image_id", "source"]
    by_source = on_sources.metrics["by_source"]
    assert list(by_source) == ["north", "south"]
    for source, metrics in by_source.items():
        rows = [row for row in on_sources.rows if row["source"] == source]
        assert {int(row["image_id"].removeprefix("eye")) % 2 for row in rows} == {
            int(source == "north")
        }
        for name in ("dice_disc", "dice_cup", "fovea_error", "fovea_error_native"):
            values = [float(row[name]) for row in rows if row[name]]
            assert metrics["num_images"][name] == len(values)
            assert metrics[name] == pytest.approx(np.mean(values), abs=1e-9)
    text = metrics_text(on_sources.metrics)
    assert metrics_text(on_native.metrics).split("\n")[2:] == text.split("\n")[2:14]
    _, head, *table = text.split("\n")[14:]
    assert head.split() == ["by", "source", "north", "south"]
    (disc,) = (line.split()[-2:] for line in table if "disc Dice" in line)
    assert disc == [f"{by_source[s]['dice_disc']:.3f}" for s in ("north", "south")]
    for source in by_source.values():
        ends = source["intervals"]["dice_disc"]
        assert any(f"{ends[0]:.3f} to {ends[1]:.3f}" in line for line in table)
    ends = on_sources.metrics["intervals"]["auc"]
    (auc,) = (line for line in text.split("\n") if line.startswith("AUC, averaged"))
    assert auc.endswith(f"n = 5    95 %: {ends[0]:.3f} to {ends[1]:.3f}")
    # All glaucomas are of one source.
    assert not any(line.startswith("AUC") for line in table)


def test_a_network_worth_testing(on_model, on_native):
    """Some masks overlap the truth and some do not, so that Dice is not all zeros."""
    values = [
        float(r["dice_disc"]) for r in on_model.rows + on_native.rows if r["dice_disc"]
    ]
    assert 0 < np.mean(values) < 1
    assert len(set(values)) > 2


def test_losses_are_means_over_the_labelled(on_native):
    for name, count in (("disc", 5), ("cup", 5), ("fovea", 5), ("glaucoma", 5)):
        values = [float(r[f"loss_{name}"]) for r in on_native.rows if r[f"loss_{name}"]]
        assert len(values) == count
        assert on_native.metrics[f"loss_{name}"] == pytest.approx(np.mean(values))


def test_missing_labels_are_null(on_discs):
    metrics = on_discs.metrics
    for name in METRICS:
        assert (metrics[name] is None) == (name != "dice_disc"), name
        assert metrics["num_images"][name] == (5 if name == "dice_disc" else 0)
    text = (on_discs.output / "metrics.json").read_text()
    assert '"auc": null' in text
    assert '"dice_cup": null' in text
    assert "loss_cup" not in metrics
    assert not (on_discs.output / "roc.png").exists()
    (line,) = (x for x in metrics_text(metrics).splitlines() if "cup" in x)
    assert line.split()[3:] == ["-", "n", "=", "0"]


def test_folders_and_what_they_hold(
    workdir, on_model, on_native, on_discs, folder_data
):
    place = workdir / "evaluation"
    other = folder_data[1].replace("/", "-")
    assert {path.name for path in place.iterdir()} == {
        "test-model",
        f"{other}-test-native-checkpoint48",
        f"{other}-train-model",
    }
    assert on_model.output == place / "test-model"
    assert {path.name for path in on_model.output.glob("[!.]*")} == {
        "metrics.json",
        "per_image.csv",
        "roc.png",
        "outlines.json",
        "overlays",
    }
    with Image.open(on_model.output / "roc.png") as image:
        assert image.format == "PNG"


def test_outlines_are_of_the_masks_that_were_scored(on_model, tiny_run):
    """Filled again, they have the Dice of the table."""
    traced = json.loads((on_model.output / "outlines.json").read_text())
    data = tiny_run.config.data
    table = pipeline.open_split(
        pipeline.open_dataset(data.data_dir, data.dataset), "test"
    )
    assert [row["image_id"] for row in on_model.rows] == [*traced] == table.image_ids()
    ys, xs = np.mgrid[:32, :32]
    points = np.stack([xs.ravel(), ys.ravel()], -1)
    for index, row in enumerate(on_model.rows):
        for name in ("disc", "cup"):
            inside = np.zeros(32 * 32, int)
            for line in traced[row["image_id"]][name]:
                inside += Path(line).contains_points(points)
            found = (inside % 2).reshape(32, 32)
            true = table.take([index])[f"{name}_mask"][0]
            dice = 2 * (found * true).sum() / (found.sum() + true.sum())
            assert dice == pytest.approx(float(row[f"dice_{name}"]), abs=1e-5)


def test_what_was_evaluated_is_said(on_model, on_native, tiny_run, folder_data):
    metrics = on_model.metrics
    assert tiny_run.config.data.dataset in metrics["dataset"]
    assert (metrics["split"], metrics["resolution"]) == ("test", "model")
    assert metrics["num_parameters"] == 68376
    assert metrics["seconds_per_step"] > 0
    assert folder_data[1] in on_native.metrics["dataset"]
    assert on_native.metrics["checkpoint"] == "48"
    table = metrics_text(metrics)
    assert f"{metrics['fovea_error']:.2f}" in table
    assert "68,376" in table


@pytest.mark.parametrize("name", ["on_model", "on_native", "on_discs"])
def test_overlays(request, name):
    found = request.getfixturevalue(name)
    pictures = {path.name for path in (found.output / "overlays").iterdir()}
    ranks = range(1, len(found.rows) // 3 + 1)
    assert pictures == {"cases.png"} | {
        f"{kind}_{rank}.png" for kind in ("best", "median", "worst") for rank in ranks
    }
    for picture in pictures:
        with Image.open(found.output / "overlays" / picture) as image:
            assert max(image.size) >= 512


def test_a_second_evaluation_replaces_the_first(workdir, on_model):
    (on_model.output / "overlays" / "worst_1.png").unlink()
    again = evaluated(workdir, split="test", resolution="model")
    assert again.metrics == on_model.metrics
    assert again.rows == on_model.rows
    assert (on_model.output / "overlays" / "worst_1.png").exists()
    assert not [p for p in (workdir / "evaluation").iterdir() if p.name[0] == "."]


def test_somebody_elses_folder_is_left_alone(workdir):
    place = workdir / "evaluation" / "validation-model"
    place.mkdir(parents=True)
    (place / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="something else"):
        evaluation.write(workdir, split="validation")
    assert [path.name for path in place.iterdir()] == ["notes.txt"]
    (place / "notes.txt").unlink()
    place.rmdir()


def test_what_cannot_be_evaluated(workdir, tmp_path, synthetic_data):
    before = {path.name for path in (workdir / "evaluation").glob("*")}
    with pytest.raises(UserError, match="no split 'tset'; it has train"):
        evaluation.write(workdir, split="tset")
    with pytest.raises(UserError, match="There is no data set"):
        evaluation.write(workdir, data_dir=str(tmp_path))
    with pytest.raises(UserError, match="There is no data set 'x'"):
        evaluation.write(workdir, dataset="x")
    with pytest.raises(UserError, match="no checkpoint '5'"):
        evaluation.write(workdir, checkpoint="5")
    version_dir = synthetic.build(tmp_path, image_size=48, num_images=(2, 1, 1))
    name = f"synthetic_fundus/{version_dir.parent.name}"
    with pytest.raises(UserError, match="48 pixels a side.*trained on 32"):
        evaluation.write(workdir, data_dir=str(tmp_path), dataset=name)
    assert {path.name for path in (workdir / "evaluation").glob("*")} == before


def test_the_checkpoint_alone_is_enough(workdir, on_model, tmp_path):
    """Only the checkpoint is there, and the data set lies somewhere else."""
    bare = tmp_path / "run"
    bare.mkdir()
    (bare / "checkpoints").symlink_to(workdir / "checkpoints")
    network = workdirs.load(bare)
    assert network.config.model.encoder == "vgg13"
    assert network.image_size == 32
    assert network.checkpoint == on_model.metrics["checkpoint"]


def test_glaucoma_alone(glaucoma_run, tmp_path):
    found = evaluated(glaucoma_run.copy(tmp_path / "run"))
    present = {name for name in METRICS if found.metrics[name] is not None}
    assert present == {"auc", "auc_fc", "sensitivity_at_85_specificity"}
    assert found.metrics["auc"] == found.metrics["auc_fc"]
    assert all(row["probability"] == row["probability_fc"] for row in found.rows)
    assert found.metrics["num_parameters"] < 68376
    assert (found.output / "roc.png").exists()
    assert len(list((found.output / "overlays").iterdir())) == 7


def test_fovea_alone(fovea_run, tmp_path):
    found = evaluated(fovea_run.copy(tmp_path / "run"))
    present = {name for name in METRICS if found.metrics[name] is not None}
    assert present == {"fovea_error", "fovea_error_native"}
    assert not (found.output / "roc.png").exists()
    assert len(list((found.output / "overlays").iterdir())) == 7


def test_csv_leaves_missing_values_empty(tmp_path):
    rows = [{"a": 1, "b": None}, {"a": 0.1, "c": "x,y"}]
    evaluate.write_csv(tmp_path / "t.csv", rows)
    with (tmp_path / "t.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["a", "b", "c"],
            ["1", "", ""],
            ["0.1", "", "x,y"],
        ]


def test_photographs_that_were_trained_on_are_named(
    tiny_run, on_model, synthetic_data, compiled, tmp_path
):
    """Another data set tests on seven photographs of the training split, and two."""
    assert on_model.metrics["trained_on"] == []
    lines = ["image_id,image,glaucoma,split"]
    known = raw_records(synthetic_data, "train")[2:9]
    others = raw_records(synthetic_data, "test")[:2]
    for index, record in enumerate([*known, *others]):
        Image.fromarray(record["image"]).save(tmp_path / f"{index}.png")
        lines.append(f"eye {index},{index}.png,{int(record['glaucoma'])},test")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    data_dir = tmp_path / "data"
    version_dir = folder.build(data_dir, tmp_path, image_size=32, shape="stretch")
    flags = [f"--workdir={tiny_run.workdir}", f"--output={tmp_path / 'out'}"]
    dataset = f"--dataset=fundus_folder/{version_dir.parent.name}"
    command = ["evaluate", *flags, f"--data_dir={data_dir}", dataset]
    ended = forked_commands.run({"evaluate": command}, tmp_path, compiled)["evaluate"]
    assert ended.code == 0, ended.err
    names = [f"eye {index}" for index in range(7)]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["trained_on"] == names
    (note,) = (x for x in forked_commands.said(ended.err) if "trained on" in x)
    assert note.startswith(
        "note: The network was trained on 7 of the photographs that are scored "
        f"({', '.join(names[:5])} and 2 more), so that the scores are too good"
    )


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (("1", "2"), {"trained_on": []}),
        (("1", None), {}),
        (("1 b", None), {"trained_on": ["second"]}),
        ((None, None), {}),
    ],
)
def test_networks_that_do_not_know_are_not_said_to_have_seen_none(known, expected):
    networks = [
        SimpleNamespace(metadata={"training_photographs": one} if one else {})
        for one in known
    ]
    split = SimpleNamespace(
        image_ids=lambda: ["first", "second"], digests=lambda: ["a", "b"]
    )
    average = SimpleNamespace(averaged=networks)
    assert evaluate._trained_on(average, split) == expected


def test_at_most_five_names_are_given():
    assert evaluate.brief(list("abcde")) == "a, b, c, d, e"
    assert evaluate.brief(list("abcdef")) == "a, b, c, d, e and 1 more"
