"""A run's folder: whose it is, and where its networks are.

A workdir holds one network, or, of a method that trains several, a folder for each.
"""

import pathlib

from mtl_jax import configuration, files, tasks
from mtl_jax.errors import UserError
from mtl_jax.training import parallel
from mtl_jax.training.checkpoints import Checkpoints


def networks(workdir: pathlib.Path) -> list[pathlib.Path]:
    """The folders with checkpoints: the workdir itself, or those of its networks."""
    parts = (*tasks.TASKS, *configuration.STAGES)
    places = [workdir, *(workdir / name for name in parts)]
    return [
        place for place in places if Checkpoints(place, read_only=True).steps() != []
    ]


def claim(workdir: pathlib.Path, config: configuration.Config, resume: bool) -> None:
    """Makes the workdir this run's own, unless it is another's.

    Raises:
      UserError: if it holds a run of another config, or one of this config that is not
        to be resumed, or cannot be written.
    """
    path = workdir / "config.json"
    if path.exists():
        try:
            theirs = configuration.from_json(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} cannot be read ({error}); name another workdir."
            ) from error
        fields = configuration.differences(config, theirs)
        # Data that have moved are the same data.
        fields = [field for field in fields if field != "data.data_dir"]
        is_begun = networks(workdir) != []
        if fields and is_begun:
            raise UserError(
                f"{workdir} holds a run of another config (it differs in "
                f"{', '.join(fields)}); name another workdir."
            )
        if not resume and is_begun:
            raise UserError(
                f"{workdir} holds a run of this config already; go on with it by "
                "--resume, or name another workdir."
            )
    if not parallel.is_first_process():
        return
    try:
        files.write_text(path, configuration.to_json(config) + "\n")
    except OSError as error:
        raise UserError(
            f"{workdir} cannot be written ({error.strerror}); name another workdir."
        ) from error
