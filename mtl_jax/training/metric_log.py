"""Where numbers go while a run trains: metrics.jsonl and TensorBoard."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from mtl_jax import files
from mtl_jax.errors import UserError

FILE = "metrics.jsonl"


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the lines of a log.

    Raises:
      UserError: if a line is no JSON object.
    """
    lines = path.read_bytes().splitlines()
    found = [_parsed(line) for line in lines]
    for number, line in enumerate(found, 1):
        if line is None:
            raise UserError(
                f"{path} is damaged in line {number}, which is no JSON object; delete "
                "that line."
            )
    return [line for line in found if line is not None]


class MetricLog:
    """Writes one JSON object per line, and the same scalars for TensorBoard.

    A line has `step`, `epoch`, and names such as `train/loss_disc` or
    `validation/auc`; a value that could not be computed is null.
    """

    def __init__(
        self, workdir: pathlib.Path, step: int, *, silent: bool = False
    ) -> None:
        """Opens the logs of a run that stands at `step`.

        Lines of later steps, left by a run that was killed after its last checkpoint,
        are dropped: the resumed run writes them again.

        Args:
          workdir: of the run.
          step: the last one done.
          silent: write nothing; another process of the run does.
        """
        self._silent = silent
        if silent:
            return
        # It takes torch along where there is one: seconds that only a run should cost.
        import tensorboardX

        path = pathlib.Path(workdir) / FILE
        lines = path.read_bytes().splitlines() if path.exists() else []
        kept = [line for line in lines if _is_up_to(line, step)]
        replacement = path.with_suffix(".tmp")
        replacement.write_bytes(b"".join(line + b"\n" for line in kept))
        os.replace(replacement, path)
        self._file = path.open("a")
        self._tensorboard = tensorboardX.SummaryWriter(
            str(pathlib.Path(workdir) / "tensorboard"), purge_step=step + 1
        )

    def write(self, step: int, epoch: int, values: Mapping[str, float | None]) -> None:
        """Logs the values of one step."""
        if self._silent:
            return
        line = {"step": step, "epoch": epoch, **values}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in values.items():
            if value is not None:
                self._tensorboard.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes both logs."""
        if self._silent:
            return
        self._file.close()
        self._tensorboard.close()


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        found = files.parse_json(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _is_up_to(line: bytes, step: int) -> bool:
    # The last line of a killed run may be cut.
    found = (_parsed(line) or {}).get("step")
    return isinstance(found, int) and found <= step
