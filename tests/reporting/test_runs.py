"""What the logs and the evaluation of a run say."""

import json
import math

import pytest

from mtl_jax.errors import UserError
from mtl_jax.reporting import runs

RUN = runs.RunKey("0", 0, 1e-3, "single")


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
    assert runs.scores(tmp_path, RUN).to_dict() == {2: pytest.approx(0.4)}
    # Compilation in the first epoch is no part of it.
    assert runs.minutes_per_epoch(tmp_path, RUN) == pytest.approx(10 * (0.6 + 1.2) / 60)
    # The time of all of them is unknown if that of one is.
    write_log(workdir / "fovea", [None], [])
    assert math.isnan(runs.minutes_per_epoch(tmp_path, RUN))


def test_a_single_step_has_no_pace(tmp_path):
    write_log(RUN.workdir(tmp_path), [None], [])
    assert math.isnan(runs.minutes_per_epoch(tmp_path, RUN))


COLUMNS = "glaucoma,probability,dice_disc,dice_cup,fovea_error,vcdr,vcdr_true,loss_disc"


def write_numbers(tmp_path, *lines, columns=COLUMNS):
    folder = RUN.workdir(tmp_path) / "evaluation" / "test-model"
    folder.mkdir(parents=True)
    text = "\n".join([f"image_id,{columns}", *lines, ""])
    (folder / "per_image.csv").write_text(text)


def test_numbers_of_images_are_exact_and_names_stay_text(tmp_path):
    values = [0, 0.1 + 0.2, 1 / 3, 5e-324, 12345.678901234567, 0.6, 0.7, 1]
    numbers = ",".join(map(repr, values))
    write_numbers(tmp_path, f"NA,{numbers}", "007,,,,,,0.5,,", "'=1,,,,,,,,")
    found = runs.image_numbers(tmp_path, RUN)
    assert list(found.index) == ["007", "=1", "NA"]
    assert list(found.loc["NA"]) == [*values, abs(0.6 - 0.7)]
    assert found.loc["007"].dropna().to_dict() == {"vcdr": 0.5}


def test_texts_are_left_out(tmp_path):
    columns = f"source,{COLUMNS},manifest_age"
    write_numbers(tmp_path, "a,idrid,0,0.1,1,1,1,0.5,0.5,1,60 years", columns=columns)
    found = runs.image_numbers(tmp_path, RUN)
    assert list(found.columns) == [*COLUMNS.split(","), "vcdr_error"]


@pytest.mark.parametrize(
    "line",
    [
        "x,0,0.1,1,1,inf,0.5,0.5,1",
        "x,0,0.1,1,1,nan,0.5,0.5,1",
        "x,0,0.1,1,1,1,1,1,1,1,1",
    ],
)
def test_numbers_of_images_that_cannot_be_right(tmp_path, line):
    write_numbers(tmp_path, "a,0,0.1,1,1,1,0.5,0.5,1", line)
    with pytest.raises(UserError, match="is damaged.*evaluate that run again with"):
        runs.image_numbers(tmp_path, RUN)


def test_a_file_without_a_column_is_damaged(tmp_path):
    write_numbers(tmp_path, "a,0", columns="glaucoma")
    with pytest.raises(UserError, match="is damaged.*evaluate that run again with"):
        runs.image_numbers(tmp_path, RUN)
