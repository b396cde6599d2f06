"""Claims the folder of a run, and finds its networks.

A workdir holds one network. If its method trains several, it holds a folder for each.
"""

import pathlib

from mtl_jax import configuration, files, tasks
from mtl_jax.errors import UserError
from mtl_jax.training import parallel
from mtl_jax.training.checkpoints import Checkpoints
from mtl_jax.workdirs import _portable


def networks(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Lists the folders with checkpoints: the workdir, or those of its networks.

    Raises:
      UserError: if one of them cannot be read.
    """
    # Those that may not be read are refused; other folders may be anything.
    known = [workdir / name for name in (*tasks.TASKS, *configuration.STAGES)]
    parts = {path.parent for path in workdir.glob("*/checkpoints")}
    return [
        folder
        for folder in (workdir, *known, *sorted(parts - {*known}))
        if Checkpoints(folder, read_only=True).steps() != []
    ]


def claim(workdir: pathlib.Path, config: configuration.Config, resume: bool) -> None:
    """Claims the workdir for a run by writing its config there.

    Raises:
      UserError: if the workdir holds a run of another config, or a run of this config
        and `resume` is False, or an exported network, or if it cannot be written.
    """
    if _portable.is_portable(workdir):
        raise UserError(
            f"{workdir} holds an exported network, which is not trained further; name "
            "another workdir."
        )
    path = workdir / "config.json"
    is_begun = networks(workdir) != []
    if path.exists():
        try:
            theirs = configuration.from_json(path.read_text(), path)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} cannot be read ({error}); move it away to continue with "
                "--resume, or name another workdir."
            ) from error
        fields = configuration.differences(config, theirs)
        # The same data may have moved to another folder.
        fields = [field for field in fields if field != "data.data_dir"]
        if fields and is_begun:
            raise UserError(
                f"{workdir} holds a run of another config (it differs in "
                f"{', '.join(fields)}); name another workdir."
            )
    if not resume and is_begun:
        raise UserError(
            f"{workdir} already holds a run of this config; continue it with "
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
