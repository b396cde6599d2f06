"""The rows of a run."""

import json

from mtl_jax.experiments import plan, results

pytest_plugins = ("training_fixtures",)


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
    for run in plan.repeats(config, ["single", "res34_unet"], 1):
        rows = results.rows_of(run, tmp_path, [test])
        splits[run.method] = [row["split"] for row in rows]
    assert splits == {"single": ["test", "validation", ""], "res34_unet": ["test", ""]}
