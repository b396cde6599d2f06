"""Calibrates a trained network on its validation split."""

import pathlib
from collections.abc import Sequence

from mtl_jax import metrics, workdirs
from mtl_jax.data import pipeline
from mtl_jax.errors import UserError
from mtl_jax.evaluation import evaluate
from mtl_jax.inference import calibration, scoring


def calibrate(
    workdir: pathlib.Path | Sequence[pathlib.Path],
    *,
    split: str = "validation",
    checkpoint: str = "best",
    tta: bool = False,
    sensitivity: float | None = None,
    specificity: float | None = None,
    data_dir: str | None = None,
    accept_other_data: bool = False,
) -> tuple[pathlib.Path, calibration.Calibration]:
    """Fits temperatures, weight and threshold, see `inference.calibration`.

    Writes `calibration.json` into the first workdir. Evaluation and prediction use it
    for the same networks and flips.

    Args:
      workdir: folder of the run, or those of several runs that are averaged.
      split: split of the run's own data set that is neither trained nor tested on.
      checkpoint: `best`, `latest` or a step.
      tta: whether to average over flips.
      sensitivity: sensitivity that the threshold is to reach on the split, in (0, 1).
      specificity: the same for the specificity; at most one of them.
      data_dir: folder of the data sets, if it has moved since the run.
      accept_other_data: whether the data set of that name may have other records than
        the one that the network was trained on.

    Returns:
      The path of the file, and the calibration.

    Raises:
      UserError: if a value or the split is refused; if the checkpoint or the data set
        cannot be read; or if the split has no photographs of both classes.
    """
    _check_wishes(sensitivity, specificity)
    if split in ("train", "test"):
        reason = "trained" if split == "train" else "tested"
        raise UserError(
            f"A calibration on photographs that the network is {reason} on would "
            f"make the {'network' if split == 'train' else 'test'} look better than it "
            "is; leave out --split to use the validation split."
        )
    folders = workdirs.as_folders(workdir)
    if any(map(workdirs.is_portable, folders)):
        raise UserError(
            "An exported network comes without a validation split; calibrate the run, "
            "and export it again."
        )
    network = workdirs.load_averaged(folders, checkpoint, tta=tta)
    data = network.config.data
    builder = pipeline.open_dataset(data_dir or data.data_dir, data.dataset)
    evaluate.check_images(builder, network)
    if not accept_other_data:
        evaluate.check_fingerprint(builder, network, data.dataset)
    evaluate.check_folds(folders, network, data.dataset, split)
    fold = network.experiment.fold
    opened = pipeline.open_split(builder, split, fold, network.post.pixel_origin)
    network = workdirs.fit_missing_classifier(network, folders[0], builder, fold)
    rows = scoring.score_split(
        network.outputs,
        opened,
        network.batch_size,
        network.classifier,
        post=network.post,
    )
    if all(row["probability"] is None for row in rows):
        raise UserError(
            f"The network of {folders[0]} gives no probability of {metrics.DIAGNOSIS}, "
            "so that there is nothing to calibrate."
        )
    _, labels = metrics.columns(rows, "probability", metrics.DIAGNOSIS)
    if not metrics.has_both_classes(labels):
        raise UserError(
            f"{opened.name} has {int((labels == 1).sum())} photographs with "
            f"{metrics.DIAGNOSIS} and {int((labels == 0).sum())} without that are "
            "annotated so; a calibration needs both."
        )
    fitted = calibration.fit(
        _probabilities(rows, "probability_fc"),
        _probabilities(rows, "probability_vcdr"),
        labels.astype(int).tolist(),
        sensitivity=sensitivity,
        specificity=specificity,
    )
    return workdirs.write_calibration(folders, network, fitted), fitted


def _check_wishes(sensitivity: float | None, specificity: float | None) -> None:
    if sensitivity is not None and specificity is not None:
        raise UserError(
            "A threshold has one wish: leave out --sensitivity or --specificity."
        )
    for name, value in (("sensitivity", sensitivity), ("specificity", specificity)):
        if value is not None and not 0 < value < 1:
            raise UserError(f"--{name}={value:g} must be above 0 and below 1.")


def _probabilities(rows: Sequence[evaluate.Row], column: str) -> list[float] | None:
    """Returns a probability of the annotated images; None if the network has none."""
    values, _ = metrics.columns(rows, column, metrics.DIAGNOSIS)
    return values.tolist() if len(values) else None
