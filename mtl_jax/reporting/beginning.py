"""Notes with what a long prediction began, so that only its like continues it."""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from mtl_jax import files, workdirs
from mtl_jax.errors import UserError

NAME = ".mtl_jax.begun.json"

# What is said where the second start differs from the first.
_OTHERS = {
    "network": "another network, checkpoint, calibration or --tta",
    "photographs": "other photographs, or another --shard",
    "flags": "other flags",
}


def describe(
    network: workdirs.TrainedNetwork,
    photographs: Mapping[str, pathlib.Path],
    flags: Mapping[str, Any],
) -> bytes:
    """Describes a start by digests.

    Args:
      network: the network.
      photographs: paths of the photographs by their names in the table.
      flags: what else determines the output.
    """
    named = [f"{name}\0{files.escape(str(path))}" for name, path in photographs.items()]
    parts = {
        "network": json.dumps(workdirs.identity(network)),
        "photographs": "\0\0".join(named),
        "flags": json.dumps(dict(flags), sort_keys=True),
    }
    digests = {
        name: hashlib.sha256(text.encode()).hexdigest()[:16]
        for name, text in parts.items()
    }
    return (json.dumps(digests) + "\n").encode()


def exists(output: pathlib.Path) -> bool:
    """Whether a prediction has begun in a folder; false if nothing is there.

    Raises:
      UserError: if something else is there.
    """
    if (output / NAME).is_file():
        return True
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    raise UserError(
        f"{output} holds no prediction that --resume can continue; leave the flag out, "
        "or name another output folder."
    )


def check(output: pathlib.Path, start: bytes) -> None:
    """Refuses to continue what was begun otherwise.

    Args:
      output: folder in which a prediction has begun.
      start: result of `describe`.

    Raises:
      UserError: if the network, the photographs or the flags differ.
    """
    try:
        begun = files.parse_json((output / NAME).read_bytes())
        differ = [x for x, digest in json.loads(start).items() if begun[x] != digest]
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{output / NAME} is damaged; leave out --resume to begin again."
        ) from None
    if differ:
        raise UserError(
            f"{output} was begun with {_OTHERS[differ[0]]}; repeat the first command "
            "with --resume, or leave out --resume to begin again."
        )
