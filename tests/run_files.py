"""What two runs are compared by: their logs and checkpoints."""

import json

import jax
import numpy as np
import orbax.checkpoint as ocp

TIMES = ("train/seconds_per_step", "train/images_per_second")


def metric_lines(workdir, without=()):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in without} for row in rows]


def saved_steps(workdir):
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        return []
    # A process killed while it deletes a checkpoint leaves a folder `deleted`.
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def saved(workdir, step, item):
    """An item of a checkpoint as Orbax finds it, without a template."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(workdir.absolute() / f"checkpoints/{step}/{item}")


def saved_position(workdir, step):
    """The position in the data that a checkpoint holds."""
    return (workdir / f"checkpoints/{step}/data/process_0-of-1.json").read_text()


def assert_identical(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), path
