"""Stores trained networks in a folder that can be passed on.

The folder holds `network.json` and, for each network, `NAME.safetensors`. `load` reads
it like the workdir that it was exported from. It has no optimizer and no data set, and
nothing is written to it later.
"""

import hashlib
import json
import pathlib
import shutil
from collections.abc import Sequence
from importlib import metadata
from typing import Any, Literal, NamedTuple

import numpy as np
from flax import traverse_util

from mtl_jax import files
from mtl_jax.errors import UserError, check_access
from mtl_jax.weights import tensors

Dtype = Literal["float32", "float16"]

# The network that comes with the package.
BUILT_IN = pathlib.Path(__file__).parents[1] / "networks" / "fundus"

# What calibrates the probabilities; the first workdir of an average has it, too.
CALIBRATION = "calibration.json"
_RECORD = "network.json"

# Changes when older versions of mtl_jax can no longer read the folder.
_FORMAT = 1
# What evaluation and prediction read of a checkpoint's metadata.
_NEEDED = ("config", "image_size", "shape", "vcdr_classifier", "seconds_per_step")


class Stored(NamedTuple):
    """A network as the folder holds it.

    Attributes:
      name: name of its file, without the extension.
      step: step of its checkpoint.
      metadata: metadata of the checkpoint, see `workdirs.train`.
      variables: `params` and `batch_stats`, nested dicts of float32 arrays.
    """

    name: str
    step: int
    metadata: dict[str, Any]
    variables: dict[str, Any]


def is_portable(folder: pathlib.Path) -> bool:
    """Whether a folder holds exported networks, rather than a run."""
    return (pathlib.Path(folder) / _RECORD).exists()


def flatten(variables: Any) -> dict[str, Any]:
    """Maps names such as `params/encoder/block1_conv1/conv/kernel` to the leaves."""
    # pyrefly: ignore[bad-return]  # Empty nodes only where they are kept.
    return traverse_util.flatten_dict(variables, sep="/")


def write(
    output: pathlib.Path,
    networks: Sequence[Stored],
    dtype: Dtype,
    workdir: pathlib.Path,
) -> None:
    """Writes the folder, completely or not at all.

    Args:
      output: folder to write; an earlier export there is replaced.
      networks: the networks.
      dtype: dtype of the tensors in the files.
      workdir: where the networks are from. Its calibration is copied, if it has one.

    Raises:
      UserError: if a number is too large for the dtype, or the folder holds something
        else or cannot be written.
    """
    from safetensors.numpy import save

    entries = {}
    with files.whole_directory(output, [workdir]) as folder:
        for network in networks:
            content = save(_cast(network, dtype))
            (folder / f"{network.name}.safetensors").write_bytes(content)
            entries[network.name] = {
                "step": network.step,
                "dtype": dtype,
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                **network.metadata,
                # An object, for readers of the file.
                "config": json.loads(network.metadata["config"]),
            }
        record = {
            "format": _FORMAT,
            "mtl_jax": metadata.version("mtl_jax"),
            "networks": entries,
        }
        files.write_json(folder / _RECORD, record)
        if (workdir / CALIBRATION).exists():
            shutil.copyfile(workdir / CALIBRATION, folder / CALIBRATION)


def _cast(network: Stored, dtype: Dtype) -> dict[str, np.ndarray]:
    with np.errstate(over="ignore"):
        found = {
            name: np.asarray(tensor, dtype, order="C")
            for name, tensor in flatten(network.variables).items()
        }
    for name, tensor in found.items():
        if not np.isfinite(tensor).all():
            raise UserError(
                f"The tensor {name} has numbers that {dtype} cannot hold; export the "
                "network with --dtype=float32."
            )
    return found


def read(folder: pathlib.Path) -> list[Stored]:
    """Reads the networks of a folder.

    Raises:
      UserError: if a file is missing, damaged or of another version.
    """
    return [_read_one(folder, *entry) for entry in _entries(folder).items()]


def _entries(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    path = folder / _RECORD
    try:
        record = files.parse_json(path.read_text(encoding="utf-8"))
        if record["format"] != _FORMAT:
            raise UserError(
                f"{path} has the format {record['format']!r} of mtl_jax "
                f"{record.get('mtl_jax')}, and this version reads the format {_FORMAT};"
                " export the network anew with this version, or use the other one."
            )
        entries = record["networks"]
        for entry in entries.values():
            entry["config"] = json.dumps(entry["config"])
            for key in ("step", "sha256", *_NEEDED):
                entry[key]
        if not entries:
            raise ValueError("it lists no network")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        check_access(path, error)
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UserError(
            f"{path} is damaged; export the network again, or install mtl_jax again if "
            f"it is the package's ({reason})."
        ) from error
    return entries


def _read_one(folder: pathlib.Path, name: str, entry: dict[str, Any]) -> Stored:
    path = folder / f"{name}.safetensors"
    found = tensors.read(path)
    if hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
        raise UserError(
            f"{path} is not the file that {_RECORD} beside it describes (its SHA-256 "
            "differs); export the network again."
        )
    variables = traverse_util.unflatten_dict(found, sep="/")
    kept = {key: entry[key] for key in entry if key not in ("dtype", "bytes", "sha256")}
    step = kept.pop("step")
    return Stored(name, step, kept, {"batch_stats": {}, **variables})
