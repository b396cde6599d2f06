"""Two networks, the second of which looks where the first found the optic disc."""

import copy
import csv
import shutil

import numpy as np
import pytest

from configs import fundus, refuge
from mtl_jax import configuration, workdirs
from mtl_jax.data import pipeline, synthetic
from mtl_jax.data.synthetic import write_example
from mtl_jax.errors import UserError
from mtl_jax.evaluation import evaluate
from mtl_jax.inference import postprocess
from mtl_jax.inference.vcdr import VcdrClassifier
from mtl_jax.reporting import predictions
from mtl_jax.training import views
from mtl_jax.workdirs import TrainedNetwork, encoder_of, load
from mtl_jax.workdirs._trained import _join

pytest_plugins = ("training_fixtures",)

SIZE, SEEN = 64, 32


@pytest.fixture(scope="module")
def run(trained, make_config, shared_dir):
    """Both stages by a small VGG, which compiles faster than a ResNet."""
    version_dir = synthetic.build(
        shared_dir / "data", image_size=SIZE, num_images=(12, 4, 4)
    )
    config = make_config(
        {
            "data.dataset": f"synthetic_fundus/{version_dir.parent.name}",
            "method.name": "two_stage",
            "model.norm": "none",
            "view.size": SEEN,
        },
        tasks=("disc", "cup"),
        num_epochs=6,
        validate_every=6,
    )
    return trained("two_stage_run", config)


def test_the_config_of_the_paper_describes_two_unets():
    config = refuge.get_config("two_stage")
    whole, crop = configuration.part_configs(config).values()
    assert (whole.view.kind, tuple(whole.tasks)) == ("whole", ("disc",))
    assert (crop.view.kind, tuple(crop.tasks)) == ("crop", ("disc", "cup"))
    for one in (whole, crop):
        configuration.check(one, is_part=True)
        assert configuration.build(one).model.encoder == "resnet34"
        assert one.view.size == 256


def test_every_task_is_in_the_stage_that_can_see_it():
    config = fundus.get_config()
    whole, crop = configuration.part_configs(config).values()
    assert tuple(whole.tasks) == ("disc", "fovea")
    assert tuple(crop.tasks) == ("glaucoma", "disc", "cup")
    assert whole.method.name == crop.method.name == "independent"
    for one in (config, fundus.get_config("vanilla")):
        configuration.check(one)


@pytest.mark.slow
def test_the_second_stage_looks_where_the_first_found_the_disc(run):
    model = load(run.workdir)
    whole = load(run.workdir / "whole")
    assert model.image_size == SIZE
    assert list(model.config.tasks) == ["disc", "cup"]
    assert model.num_parameters == 2 * whole.num_parameters + 5
    table = pipeline.open_split(
        pipeline.open_dataset(run.config.data.data_dir, run.config.data.dataset), "test"
    )
    batch = {"image": table.take(range(4))["image"]}
    first, _ = whole(batch)
    assert first["disc"].shape == (4, SIZE, SIZE)
    discs = np.stack([postprocess.segment(one) for one in first["disc"]])
    windows = np.asarray(views.around(discs, 2.0))
    logits, losses = model(batch)
    assert losses == {}
    # Somewhere else there is nothing.
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    for name in ("disc", "cup"):
        for values, (left, top, side) in zip(logits[name], windows, strict=True):
            outside = (x < left) | (x > left + side) | (y < top) | (y > top + side)
            np.testing.assert_array_equal(values[outside], views.OUTSIDE)
            assert (values[~outside] != views.OUTSIDE).mean() > 0.9


@pytest.mark.slow
def test_evaluated_and_predicted_with_like_any_other(run, tmp_path):
    workdir = run.copy(tmp_path / "run")
    _, metrics = evaluate.evaluate(workdir, resolution="native")
    assert metrics["dice_disc"] is not None
    assert metrics["dice_cup"] is not None
    assert metrics["vcdr_mae"] is not None
    # As in the paper's tables.
    for name in ("auc", "auc_fc", "auc_vcdr", "fovea_error"):
        assert metrics[name] is None
    write_example(tmp_path / "photographs")
    predictions.write(workdir, str(tmp_path / "photographs/images"), tmp_path / "out")
    with (tmp_path / "out" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert all(row["mask"] and row["disc_area"] for row in rows)
    assert not any(row["probability"] or row["fovea_x"] for row in rows)


@pytest.mark.slow
def test_one_stage_alone_is_no_model(run, tmp_path):
    crop = load(run.workdir / "crop")
    with pytest.raises(UserError, match="trained on crops around discs"):
        crop({"image": np.zeros((4, SIZE, SIZE, 3), np.uint8)})
    # Others may start from it all the same.
    assert encoder_of(crop).encoder == "small"
    half = run.copy(tmp_path / "half")
    shutil.rmtree(half / "crop")
    with pytest.raises(UserError, match="not hold the network .* yet.*--resume"):
        load(half)
    # What is left of the training is done, and the rest left alone.
    before = (half / "whole/metrics.jsonl").read_text()
    workdirs.train(run.config, half, resume=True)
    assert (half / "whole/metrics.jsonl").read_text() == before
    assert load(half).checkpoint == "18-18"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"tasks": ("cup", "fovea")},
            r"\('cup', 'fovea'\), but .* two_stage .* add 'disc'",
        ),
        ({"view.kind": "whole"}, "view.kind is 'whole', but .* leave it empty"),
        ({"view.kind": "half"}, "view.kind has 'half'; choose from '', whole, crop"),
        (
            {"method.name": "vanilla", "view.kind": "crop"},
            "no other network finds the disc",
        ),
        ({"view.zoom": 0.5}, "view.zoom is 0.5; it must lie between 1"),
        (
            {"method.name": "vanilla", "view.zoom": 2.0},
            "view.zoom is 2, but .*view.kind to 'whole'",
        ),
        (
            {"tasks": ("disc", "fovea"), "data.pixel_origin": "corner"},
            "pixel_origin is 'corner'",
        ),
        (
            {"tasks": ("disc", "fovea"), "loss.fovea_peak": "pixel", "view.zoom": 2.0},
            "fovea_peak is 'pixel', .*view.zoom moves some there",
        ),
        (
            {"method.stage_method": "single"},
            "stage_method has 'single'; choose from vanilla, independent",
        ),
        ({"view.size": 42}, "view.size is 42 pixels, which does not fit .* of 4"),
        (
            {"model.encoder": "resnet34", "view.size": 48},
            "resnet34; choose a multiple of 32",
        ),
        ({"view.margin": 0.5}, "view.margin is 0.5; it must lie between 1"),
    ],
)
def test_what_does_not_go_together(make_config, fields, said):
    config = make_config({"method.name": "two_stage", "view.size": SEEN})
    config.tasks = ("disc", "cup")
    config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=said):
        configuration.check(config)


@pytest.mark.slow
def test_what_cannot_begin_leaves_no_trace(run, tmp_path):
    for field in ("data.data_dir", "model.pretrained"):
        config = copy.deepcopy(run.config)
        config.update_from_flattened_dict({field: str(tmp_path / "nowhere")})
        with pytest.raises(UserError, match="nowhere"):
            workdirs.train(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_a_view_does_not_make_two_stages(make_config):
    config = make_config(
        {"method.name": "single", "view.kind": "whole", "view.size": SEEN},
        tasks=("glaucoma", "disc"),
    )
    members = [
        TrainedNetwork(
            experiment=configuration.build(one),
            checkpoint="1",
            metadata={"seconds_per_step": 1.0},
            image_size=SIZE,
            batch_size=4,
            classifier=VcdrClassifier(1.0, 2.0, 0.5),
            num_parameters=3,
            networks=(),
        )
        for one in configuration.part_configs(config).values()
    ]
    joined = _join(members)
    assert joined.config.method.name == "single"
    assert joined.config.view.kind == "whole"
    assert joined.classifier == (1, 2, 0.5)
    assert joined.num_parameters == 6


def test_images_that_the_encoder_cannot_halve(make_config, synthetic_data, tmp_path):
    config = make_config({"model.encoder": "resnet34", "model.width": 1 / 16})
    version_dir = synthetic.build(
        synthetic_data[0], image_size=48, num_images=(4, 2, 2), glaucoma_fraction=0.5
    )
    config.data.dataset = f"synthetic_fundus/{version_dir.parent.name}"
    with pytest.raises(UserError, match="has images of 48 pixels.*multiple of 32"):
        workdirs.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
