"""Reads trained networks that are averaged, and their calibration."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from mtl_jax import files
from mtl_jax.errors import UserError, check_access
from mtl_jax.inference import averaging, vcdr
from mtl_jax.inference.calibration import Calibration
from mtl_jax.workdirs._portable import CALIBRATION
from mtl_jax.workdirs._trained import TrainedNetwork, load

# What networks have in common if their outputs can be averaged.
_ALIKE = {
    "tasks": lambda network: tuple(sorted(network.config.tasks)),
    "image size": lambda network: network.image_size,
    "shape": lambda network: network.shape,
    "post-processing": lambda network: network.post,
}


def as_folders(
    workdir: str | pathlib.Path | Sequence[str | pathlib.Path],
) -> list[pathlib.Path]:
    """Lists one workdir or several.

    Raises:
      UserError: if there is none.
    """
    several = [workdir] if isinstance(workdir, str | pathlib.Path) else workdir
    if not several:
        raise UserError("--workdir is empty; name the workdir of a trained run.")
    return [*map(pathlib.Path, several)]


def load_averaged(
    workdirs: Sequence[pathlib.Path], checkpoint: str = "best", *, tta: bool = False
) -> TrainedNetwork:
    """Reads networks whose outputs are averaged, with each other and over flips.

    Args:
      workdirs: workdirs of one run or several.
      checkpoint: `best`, `latest` or a step, chosen for each of them.
      tta: whether to average over an image and its horizontal, vertical and double
        flip (test-time augmentation). A network of two stages finds the disc in each.

    Returns:
      The first network. `outputs` averages all. Its classifier on the cup-to-disc
      ratio is the mean of theirs; parameters and seconds are their sums.

    Raises:
      UserError: if a network cannot be read, or they do not fit together.
    """
    networks = [load(workdir, checkpoint) for workdir in workdirs]
    for name, value in _ALIKE.items():
        for workdir, network in zip(workdirs, networks, strict=True):
            if value(network) != value(networks[0]):
                raise UserError(
                    f"The networks of {workdirs[0]} and {workdir} differ in {name} "
                    f"({value(networks[0])}, {value(network)}) and cannot be averaged; "
                    "name workdirs that have it in common."
                )
    return _average(networks, tta=tta)


def _average(networks: Sequence[TrainedNetwork], *, tta: bool) -> TrainedNetwork:
    if len(networks) == 1 and not tta:
        return networks[0]
    seconds = [network.metadata["seconds_per_step"] for network in networks]
    classifiers = [network.classifier for network in networks if network.classifier]
    return dataclasses.replace(
        networks[0],
        checkpoint=",".join(network.checkpoint for network in networks),
        metadata={
            **networks[0].metadata,
            "seconds_per_step": None if None in seconds else sum(seconds),
        },
        classifier=vcdr.mean(classifiers),
        averaged=tuple(networks),
        num_parameters=sum(network.num_parameters for network in networks),
        flips=averaging.FLIPS if tta else averaging.FLIPS[:1],
    )


def load_calibrated(
    workdirs: Sequence[pathlib.Path],
    checkpoint: str = "best",
    *,
    tta: bool | None = None,
) -> TrainedNetwork:
    """Reads networks as `load_averaged`, with the calibration of the first workdir.

    Args:
      workdirs: as for `load_averaged`.
      checkpoint: as for `load_averaged`.
      tta: whether to average over flips; None if a calibration of these networks was
        fitted so.

    Returns:
      The network. It has a calibration if the first workdir has one that was fitted on
      the same networks and flips. If it was fitted on others, the network's `note` says
      so.

    Raises:
      UserError: if a network or the calibration cannot be read.
    """
    network = load_averaged(workdirs, checkpoint, tta=bool(tta))
    path = pathlib.Path(workdirs[0]) / CALIBRATION
    if not path.exists():
        return network
    calibration, found = _read(path)
    wanted = _arrangement(network)
    if tta is None and found == {**wanted, "tta": True}:
        network, wanted = _average(network.averaged or [network], tta=True), found
    if found == wanted:
        return dataclasses.replace(network, calibration=calibration)
    others = "for other networks"
    if _say(found) != _say(wanted):
        others = f"for {_say(found)}, this is {_say(wanted)}"
    note = (
        f"{path} is {others}: probabilities are not calibrated; fit another with "
        "scripts/calibrate.py."
    )
    return dataclasses.replace(network, note=note)


def write_calibration(
    workdirs: Sequence[pathlib.Path],
    network: TrainedNetwork,
    calibration: Calibration,
) -> pathlib.Path:
    """Stores a calibration in the first workdir, and what it belongs to.

    Args:
      workdirs: workdirs of `network`.
      network: network that `load_averaged` returned for them.
      calibration: calibration that was fitted on it.

    Returns:
      The file's path.

    Raises:
      UserError: if the file cannot be written.
    """
    path = pathlib.Path(workdirs[0]) / CALIBRATION
    content = {
        "arrangement": _arrangement(network),
        "calibration": dataclasses.asdict(calibration),
    }
    try:
        files.write_json(path, content)
        files.add_to_record(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}).") from error
    return path


def _arrangement(network: TrainedNetwork) -> dict[str, Any]:
    """Describes what a calibration belongs to."""
    return {
        "tta": network.is_flipped,
        "checkpoint": network.checkpoint,
        "networks": [one.fingerprint() for one in network.averaged or [network]],
    }


def identity(network: TrainedNetwork) -> dict[str, Any]:
    """Describes all that the predictions of a network depend on, as JSON can hold it.

    Two networks with the same description predict the same.
    """
    calibration = network.calibration
    return {
        **_arrangement(network),
        "calibration": calibration and dataclasses.asdict(calibration),
    }


def _say(arrangement: dict[str, Any]) -> str:
    count = len(arrangement["networks"])
    return (
        f"{count} workdir{'s' * (count != 1)} at checkpoint "
        f"{arrangement['checkpoint']} {'with' if arrangement['tta'] else 'without'} "
        "--tta"
    )


def _read(path: pathlib.Path) -> tuple[Calibration, dict[str, Any]]:
    """Reads a calibration and its arrangement; refuses numbers that cannot be."""
    try:
        content = files.parse_json(path.read_text())
        calibration = Calibration(**content["calibration"])
        arrangement = content["arrangement"]
        _say(arrangement)
        temperatures = (
            calibration.temperature_fc,
            calibration.temperature_vcdr,
            calibration.temperature,
        )
        sound = [t is None or 0 < t < math.inf for t in temperatures]
        sound += [0 <= calibration.weight_fc <= 1, calibration.temperature is not None]
        sound += [0 <= calibration.threshold <= 2]
        if not all(sound):
            raise ValueError("a number is out of range")
    except (OSError, ValueError, TypeError, KeyError) as error:
        check_access(path, error)
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {error}); delete it, or "
            "fit it again with scripts/calibrate.py."
        ) from error
    return calibration, arrangement
