"""A trained network, read back from its workdir."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from mtl_jax import configuration, tasks
from mtl_jax.errors import UserError
from mtl_jax.evaluation.scoring import Batch, Logits
from mtl_jax.evaluation.vcdr import VcdrClassifier
from mtl_jax.training import parallel
from mtl_jax.training.checkpoints import Checkpoints
from mtl_jax.training.step import evaluation_step


@dataclasses.dataclass(frozen=True)
class TrainedNetwork:
    """All that evaluation and prediction need, from the checkpoint alone.

    Calling it maps a batch in host memory to logits and losses in host memory, on all
    local devices.

    Attributes:
      config: of the run.
      checkpoint: folder it was read from.
      metadata: of the checkpoint.
      tasks: of the network.
      image_size: pixels a side of the images it was trained on.
      batch_size: images at a time.
      classifier: on the vertical cup-to-disc ratio, fitted on the training split.
      variables: on the devices.
      num_parameters: of the network.
    """

    config: configuration.Config
    checkpoint: pathlib.Path
    metadata: dict[str, Any]
    tasks: tuple[tasks.Task, ...]
    image_size: int
    batch_size: int
    classifier: VcdrClassifier | None
    variables: Any
    num_parameters: int
    mapped: Any

    def __call__(self, batch: Batch) -> tuple[Logits, dict[str, Any]]:
        """Logits and losses of a batch of `batch_size` images."""
        return parallel.gather(self.mapped(self.variables, parallel.shard(batch)))


def load(workdir: pathlib.Path, checkpoint: str = "best") -> TrainedNetwork:
    """Reads a network back.

    Args:
      workdir: of a run.
      checkpoint: `best`, `latest`, or a step.

    Raises:
      UserError: if there is no such checkpoint or it cannot be read.
    """
    workdir = pathlib.Path(workdir)
    if not workdir.is_dir():
        raise UserError(f"There is no workdir {workdir}; name that of a trained run.")
    checkpoints = Checkpoints(workdir, read_only=True)
    step = _step_of(checkpoints, workdir, checkpoint)
    metadata = checkpoints.restore_metadata(step)
    config = configuration.from_json(metadata["config"])
    try:
        configuration.check(config)
    except UserError as error:
        raise UserError(
            f"{checkpoints.path(step)} is of another version of mtl_jax: {error}"
        ) from error
    model = configuration.create_model(config)
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3), jnp.float32)
    )
    shapes = {"batch_stats": {}, **shapes}
    variables = checkpoints.restore_model(step, shapes)
    checkpoints.close()
    classifier = metadata["vcdr_classifier"]
    the_tasks = configuration.create_tasks(config)
    devices = jax.local_device_count()
    return TrainedNetwork(
        config=config,
        checkpoint=checkpoints.path(step),
        metadata=metadata,
        tasks=the_tasks,
        image_size=metadata["image_size"],
        batch_size=-(-config.batch_size // devices) * devices,
        classifier=classifier and VcdrClassifier(**classifier),
        variables=parallel.replicate(variables),
        num_parameters=sum(x.size for x in jax.tree.leaves(variables["params"])),
        mapped=parallel.map_evaluation(evaluation_step(model, the_tasks)),
    )


def _step_of(checkpoints: Checkpoints, workdir: pathlib.Path, checkpoint: str) -> int:
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"{workdir} holds no checkpoint; name the workdir of a run.")
    if checkpoint == "best":
        return checkpoints.best()
    if checkpoint == "latest":
        return checkpoints.latest()
    if checkpoint not in map(str, steps):
        raise UserError(
            f"{workdir} has no checkpoint {checkpoint!r}; choose best, latest or one of"
            f" the steps {', '.join(map(str, steps))}."
        )
    return int(checkpoint)
