"""The rows of a run."""

import json

import numpy as np

from mtl_jax.experiments import plan, results

pytest_plugins = ("training_fixtures",)


def test_validation_gives_the_best_of_all_epochs(make_config, tmp_path):
    """Whatever epoch that was, each metric's own; of STL by the network of its task."""
    rng = np.random.default_rng(0)
    values = rng.uniform(size=(3, 5))
    names = ("auc", "loss_glaucoma", "fovea_error")
    for part, columns in (("glaucoma", names[:2]), ("fovea", names[2:])):
        lines = [
            {f"validation/{name}": row[names.index(name)] for name in columns}
            | {"validation/score": row[names.index(columns[0])]}
            | {"train/loss_glaucoma": -1.0, "validation/dice_disc": None}
            for row in values.T
        ]
        (tmp_path / part).mkdir()
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / part / "metrics.jsonl").write_text(text)
    (run,) = plan.learning_rates(make_config(), ["single"], [1e-3], 1)
    test = {"split": "test", "resolution": "model", "num_images": {}}
    test |= {"num_parameters": 7, "seconds_per_step": 0.5}
    found = {
        row["metric"]: row["value"]
        for row in results.rows_of(run, tmp_path, [test])
        if row["split"] == "validation"
    }
    best = [values[0].max(), values[1].min(), values[2].min()]
    # Of several networks the mean of their best scores.
    score = (values[0].max() + values[2].max()) / 2
    assert found == dict(zip(names, best, strict=True)) | {"score": score}


def row(method, fold, rate, score):
    place = {"method": method, "fold": fold, "seed": 0, "learning_rate": rate}
    return {**place, "split": "validation", "metric": "score", "value": score}


def test_rates_are_chosen_on_the_first_fold():
    rows = [
        row("vanilla", "0", 1e-3, 0.5),
        row("vanilla", "0", 1e-2, 0.7),
        row("vanilla", "1", 1e-2, 0.1),
        row("single", "0", 1e-3, 0.9),
        row("single", "0", 1e-2, 0.8),
        row("single", "1", 1e-3, 0.2),
        # Never validated.
        {**row("two_stage", "0", 1e-3, 0.9), "split": "test"},
    ]
    assert results.best_rates(rows) == {"vanilla": 1e-2, "single": 1e-3}
    assert results.at_best_rates(rows) == [rows[i] for i in (1, 2, 3, 5, 6)]


def test_validation_around_annotated_discs_is_no_result(make_config, tmp_path):
    config = make_config()
    (tmp_path / "crop").mkdir()
    line = json.dumps({"step": 1, "epoch": 1, "validation/dice_cup": 0.9})
    (tmp_path / "crop/metrics.jsonl").write_text(line + "\n")
    test = {
        "split": "test",
        "resolution": "model",
        "num_images": {"dice_cup": 3},
        "dice_cup": 0.5,
        "num_parameters": 7,
        "seconds_per_step": None,
    }
    splits = {}
    for run in plan.repeats(config, ["single", "two_stage"], 1):
        rows = results.rows_of(run, tmp_path, [test])
        splits[run.method] = [row["split"] for row in rows]
    assert splits == {"single": ["test", "validation", ""], "two_stage": ["test", ""]}
