"""Evaluates a trained network on a split of a data set."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from mtl_jax import files, metrics, tasks, workdirs
from mtl_jax.data import pipeline
from mtl_jax.errors import UserError
from mtl_jax.inference import outlines, scoring
from mtl_jax.inference.prediction import Prediction

# The outlines of the predicted masks by image and task, in pixels of the model image.
OUTLINES = "outlines.json"

# Of many photographs, so many are named.
_NAMED = 5

Row = Mapping[str, Any]
Draw = Callable[
    [pathlib.Path, workdirs.TrainedNetwork, pipeline.Split, Sequence[Row]], None
]


def evaluate(
    workdir: pathlib.Path | Sequence[pathlib.Path],
    *,
    split: str = "test",
    resolution: scoring.Resolution = "model",
    checkpoint: str = "best",
    data_dir: str | None = None,
    accept_other_data: bool = False,
    dataset: str | None = None,
    output: pathlib.Path | None = None,
    tta: bool | None = None,
    calibrated: bool = True,
    draw: Draw | None = None,
) -> tuple[pathlib.Path, dict[str, Any]]:
    """Scores a checkpoint.

    Writes `metrics.json`, `per_image.csv` and, at model resolution, `outlines.json`. By
    default they are in the folder `evaluation/SPLIT-RESOLUTION` of the first workdir.
    Its name also has the data set if it is not the run's own, the checkpoint if it is
    not the best, how many networks are averaged with a digest of their paths, and
    whether over flips. The losses of an average are those of its first network on the
    images as they are.
    `trained_on` names the photographs that the networks were trained on, by their
    pixels; checkpoints of earlier versions do not know, and it is absent.
    If the photographs are of several sources, the rows name them, and `by_source` has
    the metrics of each. `intervals` has the 95 % interval of each metric, see
    `metrics.intervals`.

    Args:
      workdir: folder of the run, or those of several runs that are averaged. A folder
        of exported networks has no data set of its own and is not written to, so it
        needs `data_dir`, `dataset` and `output`.
      split: split of the data set.
      resolution: resolution at which masks are compared, `model` or `native`.
      checkpoint: `best`, `latest` or a step.
      data_dir: folder of the data sets, if it has moved since the run.
      accept_other_data: whether the data set of that name may have other records than
        the one that the network was trained on.
      dataset: data set to evaluate on, if not the run's own.
      output: folder to write, if not in the workdir.
      tta: whether to average over flips; None if the calibration was fitted so.
      calibrated: whether to use the calibration of the first workdir, if it has one.
      draw: function that adds pictures to that folder.

    Returns:
      The folder, and what `metrics.json` holds.

    Raises:
      UserError: if the checkpoint, the data set or the split cannot be read, the
        networks do not fit together, or an exported one lacks an argument.
    """
    folders = workdirs.as_folders(workdir)
    is_portable = any(map(workdirs.is_portable, folders))
    if is_portable:
        _check_given(data_dir=data_dir, dataset=dataset, output=output)
    if output is not None:
        files.check_replaceable(output, folders)
    if calibrated:
        network = workdirs.load_calibrated(folders, checkpoint, tta=tta)
    else:
        network = workdirs.load_averaged(folders, checkpoint, tta=bool(tta))
    own = network.config.data
    dataset = dataset or own.dataset
    # Another user's data set may have the name of the one it was trained on.
    is_own = dataset == own.dataset and not is_portable
    builder = pipeline.open_dataset(data_dir or own.data_dir, dataset)
    check_images(builder, network)
    if not (is_portable or accept_other_data):
        check_fingerprint(builder, network, dataset)
    # Another data set's images were not divided for this run.
    fold = network.experiment.fold if is_own else None
    opened = pipeline.open_split(builder, split, fold, network.post.pixel_origin)
    if not is_portable:
        check_folds(folders, network, dataset, split)
    if is_own:
        network = workdirs.fit_missing_classifier(network, folders[0], builder, fold)
    rows, by_source, traced = _score(network, opened, resolution)
    summary = {
        **_summarize(rows),
        "num_parameters": network.num_parameters,
        "seconds_per_step": network.metadata["seconds_per_step"],
        "dataset": builder.info.full_name,
        "split": split,
        "fold": own.fold if is_own else "official",
        "resolution": resolution,
        "checkpoint": network.checkpoint,
        **_trained_on(network, opened),
        **({"workdirs": [*map(str, folders)]} if len(folders) > 1 else {}),
        **_arrangement(network, rows),
        **({"by_source": by_source} if by_source else {}),
    }
    if output is None:
        parts = [
            "" if is_own else f"{dataset.replace('/', '-')}-",
            f"{split}-{resolution}",
            "" if checkpoint == "best" else f"-checkpoint{network.checkpoint}",
            "" if len(folders) == 1 else f"-average{len(folders)}-{_digest(folders)}",
            "-tta" if network.is_flipped else "",
            "" if calibrated else "-uncalibrated",
        ]
        output = folders[0] / "evaluation" / "".join(parts)
    with files.whole_directory(output, folders) as folder:
        files.write_json(folder / "metrics.json", summary)
        write_csv(folder / "per_image.csv", rows)
        if traced:
            files.write_text(folder / OUTLINES, json.dumps(traced))
        if draw is not None:
            draw(folder, network, opened, rows)
    return output, summary


def _score(
    network: workdirs.TrainedNetwork,
    split: pipeline.Split,
    resolution: scoring.Resolution,
) -> tuple[list[Row], dict[str, Any], dict[str, Any]]:
    """Predicts on all photographs of a split, and compares with what is annotated.

    Returns:
      The rows of the photographs, the metrics of each source if there are several, and
      the outlines of the photographs at model resolution, by name.
    """
    rows, sources, traced = [], [], {}
    for case in scoring.cases(
        network.outputs,
        split,
        network.batch_size,
        network.classifier,
        resolution,
        network.post,
        network.calibration,
    ):
        rows.append(scoring.score_case(case, network.post))
        sources.append(case.details["source"])
        if resolution == "model":
            traced[case.details["image_id"]] = _outlines(case.prediction)
    return *_by_source(rows, sources), traced


def _trained_on(
    network: workdirs.TrainedNetwork, split: pipeline.Split
) -> dict[str, list[str]]:
    """Names the images of a split that a network has seen; nothing if unknown."""
    key = "training_photographs"
    known = [one.metadata.get(key) for one in network.averaged or [network]]
    if not any(known):
        return {}
    seen = set(" ".join(filter(None, known)).split())
    images = zip(split.image_ids(), split.digests(), strict=True)
    found = sorted(name for name, digest in images if digest in seen)
    # Those that do not know may have seen others.
    return {"trained_on": found} if found or all(known) else {}


def brief(names: Sequence[str]) -> str:
    """Names at most five, and counts the others."""
    more = len(names) - _NAMED
    shown = ", ".join(names[:_NAMED])
    return f"{shown} and {more} more" if more > 0 else shown


def _digest(folders: Sequence[pathlib.Path]) -> str:
    """Tells averages apart: eight letters of what the paths hash to."""
    paths = "\n".join(str(folder.resolve()) for folder in folders)
    return hashlib.sha256(paths.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _arrangement(
    network: workdirs.TrainedNetwork, rows: Sequence[Row]
) -> dict[str, Any]:
    """Describes averaging and calibration, as far as there are any."""
    found: dict[str, Any] = {}
    if network.averaged:
        found["average"] = network.num_members
    if network.calibration is not None:
        found["calibration"] = {
            **dataclasses.asdict(network.calibration),
            "uncalibrated": _before_calibration(rows),
        }
    if network.note:
        found["note"] = network.note
    return found


def _before_calibration(rows: Sequence[Row]) -> dict[str, float | None]:
    """Computes the calibration errors that the rows had before their calibration."""
    found = {}
    for metric in metrics.every().values():
        if metric.reliability and not metric.task:
            score, label = metric.columns
            before = metrics.columns(rows, metrics.uncalibrated(score), label)
            found[metric.name] = metrics.calibration_error(*before)
    return found


def check_folds(
    folders: Sequence[pathlib.Path],
    network: workdirs.TrainedNetwork,
    dataset: str,
    split: str,
) -> None:
    """Refuses to score networks on images that some of them may be trained on.

    Args:
      folders: workdirs of the networks.
      network: network that was read from them.
      dataset: data set that is to be scored.
      split: split that is to be scored.

    Raises:
      UserError: if the networks' validation splits differ, and the data set is that of
        one of them.
    """
    is_known = dataset in {name for name, _ in network.divisions}
    if split != "test" and is_known and len(network.divisions) > 1:
        raise UserError(
            f"The networks of {', '.join(map(str, folders))} have different folds or "
            f"data sets, so that some may be trained on the {split} photographs of "
            "others; name workdirs of one fold, or the split test."
        )


def _check_given(**arguments: object) -> None:
    for name, value in arguments.items():
        if value is None:
            raise UserError(
                f"--{name} is missing; an exported network, such as the one in the "
                "package, comes without data and is not written to."
            )


def _by_source(
    rows: Sequence[Row], sources: Sequence[str]
) -> tuple[list[Row], dict[str, dict[str, Any]]]:
    """Adds a column `source` to rows, and computes the metrics of each source.

    Images of one source alone are left as they are, without metrics of their own.
    """
    if len(set(sources)) < 2:
        return list(rows), {}
    named: list[Row] = [
        {"image_id": row["image_id"], "source": source, **row}
        for row, source in zip(rows, sources, strict=True)
    ]
    return named, {
        name: _summarize([row for row in named if row["source"] == name])
        for name in sorted(set(sources))
    }


def _summarize(rows: Sequence[Row]) -> dict[str, Any]:
    return {**scoring.summarize(rows), "intervals": metrics.intervals(rows)}


def check_images(
    builder: tfds.core.DatasetBuilder, network: workdirs.TrainedNetwork
) -> None:
    """Refuses images of another size or shape than the network was trained on.

    Raises:
      UserError: if the size or the shape differs.
    """
    expected = network.image_size
    if (side := pipeline.image_size(builder)) != expected:
        raise UserError(
            f"{builder.info.full_name} has images of {side} pixels a side, the network "
            f"was trained on {expected}; build the data set with "
            f"--image_size={expected}."
        )
    if (shape := pipeline.shape(builder)) != network.shape:
        raise UserError(
            f"{builder.info.full_name} has photographs in the shape {shape!r}, the "
            f"network was trained on {network.shape!r}; build the data set with "
            f"--shape={network.shape}."
        )


def check_fingerprint(
    builder: tfds.core.DatasetBuilder, network: workdirs.TrainedNetwork, dataset: str
) -> None:
    """Refuses a data set that has the name of a network's own, but other records.

    Raises:
      UserError: if the records differ.
    """
    began = {
        one.metadata["records_fingerprint"]
        for one in network.averaged or [network]
        # Checkpoints of earlier versions have none.
        if one.config.data.dataset == dataset and "records_fingerprint" in one.metadata
    }
    if began and {found := pipeline.fingerprint(builder)} != began:
        raise UserError(
            f"{builder.info.full_name} in {builder.data_dir} has other records than "
            f"the data set that the network was trained on (the SHA-256 is {found}, "
            f"and was {' or '.join(sorted(began))}); name that one with --data_dir, or "
            "add --accept_other_data if it is meant."
        )


def _outlines(prediction: Prediction) -> dict[str, list[list[list[float]]]]:
    """Traces each predicted mask as closed polylines of points (x, y)."""
    found = prediction.found
    masks = {t.name for t in tasks.of_kind("segmentation")} & found.keys()
    marks = outlines.marks_of({name: found[name] for name in masks})
    return {
        name: [line.round(1).tolist() for line in lines]
        for name, lines in marks.items()
    }


def write_csv(path: pathlib.Path, rows: Sequence[Row]) -> None:
    """Writes rows as CSV, one column for every key in any of them; None is empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    files.write_csv(path, columns, rows)
