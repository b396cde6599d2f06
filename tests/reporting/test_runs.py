"""What the logs of a run say of its training."""

import json
import math

import pytest

from mtl_jax.reporting import runs

RUN = runs.Run("0", 0, 1e-3, "single")


def write_log(folder, seconds, scores):
    """Ten steps an epoch, a score after every second."""
    folder.mkdir(parents=True)
    lines = []
    for epoch, second in enumerate(seconds, 1):
        place = {"step": 10 * epoch, "epoch": epoch}
        lines.append({**place, "train/seconds_per_step": second})
        if epoch % 2 == 0:
            lines.append({**place, "validation/score": scores[epoch // 2 - 1]})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)


def test_networks_of_one_model_count_together(tmp_path):
    workdir = RUN.workdir(tmp_path)
    write_log(workdir / "disc", [9.0, 0.6, 0.6, 0.6], [0.2, 0.4])
    write_log(workdir / "cup", [1.2, 1.2], [0.6])
    # The second network has not come to the fourth epoch.
    assert runs.scores(tmp_path, RUN) == {2: pytest.approx(0.4)}
    # Compilation in the first epoch is no part of it.
    assert runs.minutes_per_epoch(tmp_path, RUN) == pytest.approx(10 * (0.6 + 1.2) / 60)


def test_a_single_step_has_no_pace(tmp_path):
    write_log(RUN.workdir(tmp_path), [None], [])
    assert math.isnan(runs.minutes_per_epoch(tmp_path, RUN))
