"""Notes with what a long prediction began, so that only its like continues it."""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from mtl_jax import files, workdirs
from mtl_jax.errors import UserError

NAME = ".mtl_jax.begun.json"

# What is said where the second start differs from the first.
_OTHERS = {
    "network": "another network, checkpoint, calibration or --tta",
    "photographs": "other photographs, or another --shard",
    "flags": "other flags",
}


class Start(NamedTuple):
    """How a prediction began.

    Attributes:
      digests: digests of what must be the same, by the keys of `_OTHERS`.
      states: size in bytes and time of the last change in ns of each photograph, by its
        name in the table; None if there is no such file.
    """

    digests: dict[str, str]
    states: dict[str, list[int] | None]

    def content(self) -> bytes:
        """What the file `NAME` holds."""
        return (json.dumps(self._asdict()) + "\n").encode()


def describe(
    network: workdirs.TrainedNetwork,
    photographs: Mapping[str, pathlib.Path],
    flags: Mapping[str, Any],
) -> Start:
    """Describes a start.

    Args:
      network: the network.
      photographs: paths of the photographs by their names in the table.
      flags: what else determines the output.
    """
    named = [
        f"{name}\0{files.escape(str(files.resolved(path)))}"
        for name, path in photographs.items()
    ]
    parts = {
        "network": json.dumps(workdirs.identity(network)),
        "photographs": "\0\0".join(named),
        "flags": json.dumps(dict(flags), sort_keys=True),
    }
    digests = {
        name: hashlib.sha256(text.encode()).hexdigest()[:16]
        for name, text in parts.items()
    }
    return Start(digests, {name: _state(path) for name, path in photographs.items()})


def _state(path: pathlib.Path) -> list[int] | None:
    try:
        state = os.stat(path)
    except OSError:
        return None
    return [state.st_size, state.st_mtime_ns]


def exists(output: pathlib.Path) -> bool:
    """Whether a prediction has begun in a folder.

    It has not where a process was killed before it began, or while it removed an
    earlier output.

    Raises:
      UserError: if the folder holds a whole output of another kind.
    """
    if (output / NAME).is_file():
        return True
    others = files.written(output)
    if others and all(path.exists() for path in others):
        raise UserError(
            f"{output} holds no prediction that --resume can continue; leave the flag "
            "out to replace it, or name another output folder."
        )
    return False


def read(output: pathlib.Path, start: Start) -> Start:
    """Reads how a prediction began; refuses to continue what was begun otherwise.

    Args:
      output: folder in which a prediction has begun.
      start: how it is started now.

    Raises:
      UserError: if the network, the photographs or the flags differ.
    """
    try:
        value = files.parse_json((output / NAME).read_bytes())
        begun = Start(dict(value["digests"]), dict(value["states"]))
        differ = [
            x for x, digest in start.digests.items() if begun.digests[x] != digest
        ]
        if not differ and begun.states.keys() != start.states.keys():
            raise KeyError("states")
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{output / NAME} is damaged; leave out --resume to begin again."
        ) from None
    if differ:
        raise UserError(
            f"{output} was begun with {_OTHERS[differ[0]]}; repeat the first command "
            "with --resume, or leave out --resume to begin again."
        )
    return begun
