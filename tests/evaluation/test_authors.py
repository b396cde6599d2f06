"""Maps read as the authors' program reads them, and how far ours are from that.

docs/authors.md gives the differences measured here. What that program does is written
anew in PyTorch, SciPy and scikit-learn.
"""

import csv
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from configs import default, refuge
from mtl_jax import configuration, tasks, workdirs
from mtl_jax.data import geometry, images, pipeline
from mtl_jax.evaluation import evaluate, predict
from mtl_jax.inference import postprocess, scoring
from mtl_jax.inference.postprocess import PAPER, PostProcessing
from mtl_jax.inference.prediction import cup_to_disc_ratio, interpret

pytest_plugins = ("training_fixtures",)

AUTHORS = configuration.build(refuge.get_config("authors")).post
# Of REFUGE's two cameras, (height, width).
NATIVE = ((2056, 2124), (1634, 1634))
VARIANCE = 50


def random_maps(seed, size=32):
    """Logits of blobs of any size and sharpness, in part with nothing above zero."""
    rng = np.random.default_rng(seed)
    maps = ndimage.gaussian_filter(rng.normal(size=(2, size, size)), (0, 3, 3))
    sharpness = rng.choice([1, 10, 100])
    return sharpness * maps / maps.std() - rng.uniform(-1, 4) * sharpness / 2


def test_the_config_reads_as_the_authors_and_the_default_as_the_paper():
    assert configuration.build(refuge.get_config()).post == PAPER
    # By default the cup is sought in the disc, unlike in the paper.
    in_disc = dataclasses.replace(PAPER, cup="in_disc")
    assert configuration.build(default.get_config()).post == in_disc
    assert (
        PostProcessing(
            connectivity=4, empty="whole", vcdr="probabilities", pixel_origin="corner"
        )
        == AUTHORS
    )


def their_ratio(torch, disc, cup):
    """`get_vCDRs`: sums over the rows of each column, the largest of disc and cup."""
    heights = [torch.sum(x, 0).max() for x in (cup, disc)]
    return (heights[0] / (heights[1] + 1e-7)).item()


def test_ratio_of_probabilities_is_theirs():
    torch = pytest.importorskip("torch")
    differences = []
    for seed in range(100):
        maps = random_maps(seed)
        disc, cup = torch.sigmoid(torch.tensor(maps))
        expected = their_ratio(torch, disc, cup)
        logits = dict(zip(("disc", "cup"), maps, strict=True))
        found = [
            interpret(logits, None, geometry.whole(size), AUTHORS)
            for size in ((32, 32), (80, 9))
        ]
        assert found[0].vcdr == found[1].vcdr == pytest.approx(expected, abs=1e-6)
        differences.append(
            abs(
                found[0].vcdr
                - (interpret(logits, None, geometry.whole((32, 32))).vcdr or 0)
            )
        )
    assert max(differences) == pytest.approx(6.0, abs=0.05)


def test_of_maps_with_sharp_edges_both_ratios_are_near():
    """Circles whose edges take a few of 256 pixels."""
    ys, xs = np.mgrid[:256, :256]
    distance = np.hypot(xs - 128, ys - 120)
    differences = []
    for radius in range(25, 45):
        for share in (0.3, 0.5, 0.7):
            logits = {"disc": radius - distance, "cup": share * radius - distance}
            ours, theirs = (
                interpret(logits, None, geometry.whole((256, 256)), post).vcdr
                for post in (PAPER, AUTHORS)
            )
            differences.append(abs(ours - theirs))
    assert max(differences) == pytest.approx(0.027, abs=1e-3)


def test_there_is_always_a_ratio():
    nothing = {name: np.full((8, 8), -30.0) for name in ("disc", "cup")}
    assert interpret(nothing, None, geometry.whole((8, 8))).vcdr is None
    assert interpret(
        nothing, None, geometry.whole((8, 8)), AUTHORS
    ).vcdr == pytest.approx(1e-13 * 8 / 1e-7, rel=0.1)


def their_mask(logits):
    """`refine_seg` of probabilities from one half on."""
    labels, _ = ndimage.label(1 / (1 + np.exp(-logits)) >= 0.5)
    counts = np.bincount(labels.ravel())[1:]
    if not len(counts):
        return labels == 0
    return labels == np.argmax(counts) + 1


def test_masks_are_theirs():
    different = []
    for seed in range(200):
        logits = random_maps(seed)[0]
        found = postprocess.segment(logits, None, AUTHORS)
        np.testing.assert_array_equal(found, their_mask(logits))
        different.append((found != postprocess.segment(logits)).mean())
    assert max(different) == 1.0
    # Speckle, of which pixels touch at corners more often.
    different = []
    for seed in range(50):
        logits = np.random.default_rng(seed).normal(size=(32, 32)) - 0.2
        found = postprocess.segment(logits, None, AUTHORS)
        np.testing.assert_array_equal(found, their_mask(logits))
        different.append((found != postprocess.segment(logits)).mean())
    assert max(different) == pytest.approx(0.36, abs=0.01)


def test_an_empty_mask_is_the_whole_image_at_any_size():
    nothing = {name: np.full((8, 8), -30.0) for name in ("disc", "cup")}
    found = interpret(nothing, None, geometry.whole((30, 20)), AUTHORS)
    assert found.found["disc"].shape == found.found["cup"].shape == (30, 20)
    assert found.found["disc"].all()
    assert found.found["cup"].all()
    found = interpret(nothing, None, geometry.whole((30, 20)))
    assert not found.found["disc"].any()


def their_map(native_xy, native_size, size=256):
    """Target map of a fovea, and the point that their metric takes for the truth."""
    x, y = np.array(native_xy) * size / np.array(native_size[::-1])
    rows, columns = np.mgrid[:size, :size]
    values = np.exp(-0.5 * ((rows - y) ** 2 + (columns - x) ** 2) / VARIANCE)
    values /= values.max()
    row, column = ndimage.center_of_mass(values)
    return values, (column, row)


def as_logits(values):
    return logit(np.clip(values, 1e-12, 1 - 1e-12))


@pytest.mark.parametrize("native_size", NATIVE)
def test_a_perfect_map_of_theirs(native_size):
    """With ours every fovea would come out to the lower right of its place."""
    rng = np.random.default_rng(0)
    distances = {PAPER: [], AUTHORS: []}
    for _ in range(20):
        true = rng.uniform(0.3, 0.7, 2) * np.array(native_size[::-1])
        values, _ = their_map(true, native_size)
        for post, found in distances.items():
            # Where the network's own image is, and where the photograph is.
            at_model, at_native = (
                interpret(
                    {"fovea": as_logits(values)}, None, geometry.whole(size), post
                ).found["fovea"]
                for size in ((256, 256), native_size)
            )
            wanted = geometry.rescale_xy(
                true, native_size, (256, 256), post.pixel_origin
            )
            found.append(
                (np.linalg.norm(at_model - wanted), np.linalg.norm(at_native - true))
            )
    theirs, ours = (np.max(distances[post], 0) for post in (AUTHORS, PAPER))
    assert theirs.max() < 0.01
    scale = np.array([256 / side for side in native_size])
    expected = np.linalg.norm((1 - scale) / 2)
    np.testing.assert_allclose(ours[0], expected, atol=0.01)
    np.testing.assert_allclose(
        ours[1], np.linalg.norm((1 - scale) / 2 / scale), atol=0.05
    )
    assert 0.59 < ours[0] < 0.63


def test_their_true_point_is_the_annotation_but_at_the_border():
    differences = {}
    for pixels in (0, 7, 14, 21, 28, 35, 128):
        point = np.array([pixels, 128.0])
        _, centre = their_map(point, (256, 256))
        differences[pixels] = np.linalg.norm(centre - point)
    # Three standard deviations from the border, and nearer.
    assert differences[0] == pytest.approx(5.3, abs=0.1)
    assert differences[21] == pytest.approx(0.03, abs=0.01)
    assert max(differences[k] for k in (28, 35, 128)) < 0.003


@pytest.fixture(scope="module")
def builder(synthetic_data):
    return pipeline.open_dataset(*synthetic_data)


def soft_network(batch):
    """Logits of soft maps of the truth, moved by a pixel; of glaucoma any."""
    logits = {}
    for name in ("disc", "cup"):
        moved = np.roll(batch[f"{name}_mask"].astype(float), 1, axis=2)
        logits[name] = 6 * (ndimage.gaussian_filter(moved, (0, 1, 1)) - 0.4)
    size = batch["image"].shape[1]
    ys, xs = np.mgrid[:size, :size]
    x, y = (batch["fovea_xy"] + 1.5).T[..., None, None]
    logits["fovea"] = as_logits(np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / 8))
    logits["glaucoma"] = np.sin(np.arange(len(x))) + batch["glaucoma"]
    return logits, {}


def test_metrics_are_theirs(builder):
    """All seven figures, in their definitions, of one network."""
    torch = pytest.importorskip("torch")
    origin = AUTHORS.pixel_origin
    train = pipeline.open_split(builder, "train", None, origin)
    table = pipeline.open_split(builder, "test", None, origin)
    classifier = scoring.fit_vcdr_classifier(train, 1.0, AUTHORS)
    rows = scoring.score_split(soft_network, table, 6, classifier, post=AUTHORS)
    found = scoring.summarize(rows)

    def of_truth(batch):
        pairs = zip(batch["disc_mask"], batch["cup_mask"], strict=True)
        return np.array(
            [
                their_ratio(torch, *(torch.tensor(x * 1.0) for x in pair))
                for pair in pairs
            ]
        )

    known = train.take(range(len(train)))
    regression = LogisticRegression().fit(of_truth(known)[:, None], known["glaucoma"])
    batch = table.take(range(6))
    logits, _ = soft_network(batch)
    maps = {
        name: torch.sigmoid(torch.tensor(values)) for name, values in logits.items()
    }
    ratios = np.array(
        [
            their_ratio(torch, d, c)
            for d, c in zip(maps["disc"], maps["cup"], strict=True)
        ]
    )
    second = regression.predict_proba(ratios[:, None])[:, 1]
    first, labels = maps["glaucoma"].numpy(), batch["glaucoma"]
    expected = {
        "auc_fc": roc_auc_score(labels, first),
        "auc_vcdr": roc_auc_score(labels, second),
        "auc": roc_auc_score(labels, (first + second) / 2),
        "vcdr_mae": np.abs(ratios - of_truth(batch)).mean(),
    }
    for name in ("disc", "cup"):
        masks = [their_mask(values) for values in logits[name]]
        truth = batch[f"{name}_mask"]
        expected[f"dice_{name}"] = np.mean(
            [
                2 * (a * b).sum() / (a.sum() + b.sum())
                for a, b in zip(masks, truth, strict=True)
            ]
        )
    points = [ndimage.center_of_mass(values)[::-1] for values in maps["fovea"].numpy()]
    expected["fovea_error"] = np.linalg.norm(points - batch["fovea_xy"], axis=1).mean()
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert found["vcdr_mae"] > 0
    assert found["fovea_error"] > 1


@pytest.mark.parametrize("resolution", ["model", "native"])
def test_evaluation_scores_a_perfect_network_of_theirs_perfect(folder_data, resolution):
    """Photographs of three sizes, each larger than the network's image."""
    builder = pipeline.open_dataset(*folder_data)
    mean = {}
    for post in (PAPER, AUTHORS):
        table = pipeline.open_split(builder, "test", None, post.pixel_origin)
        theirs = pipeline.open_split(builder, "test", None, "corner")

        def network(batch, theirs=theirs):
            size = batch["image"].shape[1]
            ys, xs = np.mgrid[:size, :size]
            x, y = theirs.take(range(6))["fovea_xy"].T[..., None, None]
            values = np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / 2)
            return {"fovea": as_logits(values)}, {}

        rows = scoring.score_split(network, table, 6, None, resolution, post)
        summary = scoring.summarize(rows)
        mean[post] = summary["fovea_error"], summary["fovea_error_native"]
    assert max(mean[AUTHORS]) < 0.01
    # By half of 1 - 32 / 64 pixels and more along each axis.
    assert 0.35 < mean[PAPER][0] < 0.5
    assert mean[PAPER][1] > 2 * mean[PAPER][0]


def test_a_cup_beyond_the_annotated_disc():
    disc, cup = np.zeros((2, 16, 16), np.uint8)
    disc[4:8, 4:8] = 1
    cup[2:10, 5] = 1
    both, theirs = {"disc": disc, "cup": cup}, "probabilities"
    assert cup_to_disc_ratio(both) == pytest.approx(1.0)
    assert cup_to_disc_ratio(both, theirs) == pytest.approx(2.0)
    no_disc = {**both, "disc": 0 * disc}
    assert cup_to_disc_ratio(no_disc, theirs) == pytest.approx(8e7)
    assert cup_to_disc_ratio({"cup": cup}, theirs) is None
    inside = {**both, "cup": cup & disc}
    assert cup_to_disc_ratio(inside) == cup_to_disc_ratio(inside, theirs)


def config_of_the_authors(make_config):
    """The fields that the authors' config sets otherwise than the default."""
    theirs, ours = refuge.get_config("authors"), default.get_config()
    ours.data.dataset = theirs.data.dataset
    fields = configuration.differences(theirs, ours)
    assert len(fields) >= 9
    values = {}
    for field in fields:
        part, name = field.split(".")
        values[field] = theirs[part][name]
    return make_config(values, num_epochs=2, validate_every=2)


@pytest.mark.slow
def test_a_run_of_the_authors_config(make_config, complete_data, tmp_path):
    config = config_of_the_authors(make_config)
    config.data.data_dir, config.data.dataset = complete_data
    workdir = tmp_path / "run"
    workdirs.train(config, workdir)
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    *_, last = (line for line in lines if "validation/score" in line)
    terms = [last[f"validation/loss_{name}"] for name in tasks.TASKS]
    assert last["validation/score"] == pytest.approx(-sum(terms))

    # What was scored in training is what evaluation scores.
    folder, metrics = evaluate.evaluate(
        workdir, split="validation", checkpoint="latest"
    )
    for name in ("auc", "dice_disc", "fovea_error", "vcdr_mae", "loss_fovea"):
        assert metrics[name] == pytest.approx(last[f"validation/{name}"], rel=1e-4)
    with (folder / "per_image.csv").open() as file:
        rows = list(csv.DictReader(file))
    builder = pipeline.open_dataset(*complete_data)
    table = pipeline.open_split(builder, "validation", None, "corner")
    network = workdirs.load(workdir, "latest")
    assert network.post == AUTHORS
    train = pipeline.open_split(builder, "train")
    assert network.classifier == scoring.fit_vcdr_classifier(train, 1.0, AUTHORS)
    for index, row in enumerate(rows):
        logits, _ = network(table.take([index] * network.batch_size))
        probability = {k: 1 / (1 + np.exp(-v[0])) for k, v in logits.items()}
        disc, cup = (probability[k].sum(0).max() for k in ("disc", "cup"))
        assert float(row["vcdr"]) == pytest.approx(cup / disc, rel=1e-5)
        y, x = ndimage.center_of_mass(probability["fovea"])
        height, width = table.details(index)["native_size"]
        found = float(row["fovea_x"]), float(row["fovea_y"])
        size = network.image_size
        assert found == pytest.approx((x * width / size, y * height / size), rel=1e-4)

    photograph = tmp_path / "eye.png"
    image = table.take([0])["image"][0]
    Image.fromarray(image).resize((96, 64), Image.Resampling.NEAREST).save(photograph)
    ((_, predicted),) = predict.predict(
        network, {"eye": photograph}, lambda each: each, predict.Tally()
    )
    picture = images.read_photograph(photograph)
    seen = geometry.resize_photograph(picture, (32, 32))
    logits, _ = network({"image": np.stack([seen] * network.batch_size)})
    y, x = ndimage.center_of_mass(1 / (1 + np.exp(-logits["fovea"][0])))
    found = predicted.prediction.found["fovea"]
    assert found == pytest.approx((x * 3, y * 2), abs=0.02)
