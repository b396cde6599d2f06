"""Writes an evaluation with pictures, and a submission to the REFUGE challenge."""

import pathlib
from collections.abc import Sequence
from typing import Any

from mtl_jax import files, workdirs
from mtl_jax.data import pipeline
from mtl_jax.evaluation.evaluate import Row, evaluate
from mtl_jax.inference import scoring
from mtl_jax.reporting import pictures, submission


def write(
    workdir: pathlib.Path | Sequence[pathlib.Path],
    *,
    checkpoint: str = "best",
    write_submission: pathlib.Path | None = None,
    **options: Any,
) -> tuple[pathlib.Path, dict[str, Any]]:
    """Scores a checkpoint with `evaluation.evaluate`, and draws its predictions.

    Adds `roc.png` and `overlays/` to the folder of the evaluation.

    Args:
      workdir: folder of the run, or those of several runs that are averaged.
      checkpoint: `best`, `latest` or a step.
      write_submission: folder to write a REFUGE submission to, see `submission`.
      **options: further arguments of `evaluation.evaluate`.

    Returns:
      The folder, and what `metrics.json` holds.

    Raises:
      UserError: if the checkpoint, the data set or the split is missing, or the
        network cannot fill a submission.
    """
    if write_submission is not None:
        # Refuse before the evaluation rather than after it.
        folders = workdirs.as_folders(workdir)
        output = options.get("output")
        used = [*folders, output] if output else folders
        files.check_replaceable(write_submission, used)
        network = workdirs.load_averaged(folders, checkpoint)
        submission.check_tasks(network.config.tasks)

    def draw(
        folder: pathlib.Path,
        network: workdirs.TrainedNetwork,
        split: pipeline.Split,
        rows: Sequence[Row],
    ) -> None:
        pictures.plot_roc(folder / "roc.png", rows)
        pictures.draw_cases(folder / "overlays", network, split, rows)
        if write_submission is not None:
            _write_submission(write_submission, network, split)

    return evaluate(workdir, checkpoint=checkpoint, draw=draw, **options)


def _write_submission(
    output: pathlib.Path, network: workdirs.TrainedNetwork, split: pipeline.Split
) -> None:
    """Predicts once more, at the photographs' own resolution."""
    cases = scoring.cases(
        network.outputs,
        split,
        network.batch_size,
        network.classifier,
        "native",
        network.post,
        network.calibration,
    )
    with (
        files.whole_directory(output) as folder,
        files.growing_directory(folder) as growing,
    ):
        submission.write(
            growing, ((c.details["file_name"], c.prediction) for c in cases)
        )
