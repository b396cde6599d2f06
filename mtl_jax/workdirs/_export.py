"""Exports the trained networks of a workdir to a folder that can be passed on."""

import copy
import pathlib
from typing import NamedTuple

import numpy as np
from etils import epy
from scipy.special import expit

from mtl_jax import configuration
from mtl_jax.configuration import defaults
from mtl_jax.training import parallel
from mtl_jax.workdirs import _portable
from mtl_jax.workdirs._portable import Dtype, Stored
from mtl_jax.workdirs._trained import TrainedNetwork, load, members

with epy.lazy_imports():
    from mtl_jax.data.synthetic import renderer


class Exported(NamedTuple):
    """What an export wrote.

    Attributes:
      num_bytes: size of all files.
      difference: largest absolute difference that the rounding to the dtype makes to a
        probability, of a class or a pixel, on a batch of drawn fundi; 0 for float32,
        which rounds nothing. None for the second of two stages alone.
    """

    num_bytes: int
    difference: float | None


def export(
    workdir: pathlib.Path,
    output: pathlib.Path,
    *,
    checkpoint: str = "best",
    dtype: Dtype = "float32",
) -> Exported:
    """Writes the networks of a workdir to a folder that `load` reads.

    The configs in it name no folder of this machine.

    Args:
      workdir: workdir of a run.
      output: folder to write; an earlier export there is replaced.
      checkpoint: `best`, `latest` or a step.
      dtype: dtype of the tensors in the files. Networks compute in float32 all the
        same.

    Raises:
      UserError: if the checkpoint cannot be read, a number is too large for the dtype,
        or the folder holds something else or cannot be written.
    """
    workdir, output = pathlib.Path(workdir), pathlib.Path(output)
    before = load(workdir, checkpoint)
    stored = [_stored(*member) for member in members(workdir, checkpoint)]
    _portable.write(output, stored, dtype, workdir)
    num_bytes = sum(path.stat().st_size for path in output.iterdir())
    if dtype == "float32":
        return Exported(num_bytes, 0.0)
    return Exported(num_bytes, _difference(before, load(output)))


def _stored(name: str, network: TrainedNetwork) -> Stored:
    config = copy.deepcopy(network.config)
    config.data.data_dir = defaults.get_config().data.data_dir
    # The weights that training started from are not needed any more, but "auto"
    # depends on whether there were any.
    normalizes = network.experiment.model.normalize_input
    config.model.normalize_input = "on" if normalizes else "off"
    config.model.pretrained = ""
    config.method.two_stage_pretrained = ""
    ((_, variables),) = network.networks
    classifier = network.classifier
    metadata = {
        **network.metadata,
        "config": configuration.to_json(config),
        "vcdr_classifier": classifier and classifier._asdict(),
    }
    # Only a training that goes on needs it.
    metadata.pop("watch", None)
    step = int(network.checkpoint)
    return Stored(name, step, metadata, parallel.unreplicate(variables))


def _difference(one: TrainedNetwork, other: TrainedNetwork) -> float | None:
    """The largest difference between the probabilities of two networks."""
    if one.config.view.kind == "crop":
        return None
    size = (one.image_size, one.image_size)
    camera = renderer.EVALUATION_CAMERA
    fundi = [
        renderer.render(np.random.default_rng(seed), size, camera, bool(seed % 2))
        for seed in range(one.batch_size)
    ]
    batch = {"image": np.stack([fundus.photograph for fundus in fundi])}
    (first, _), (second, _) = one(batch), other(batch)
    return max(
        float(np.abs(expit(first[task]) - expit(second[task])).max()) for task in first
    )
