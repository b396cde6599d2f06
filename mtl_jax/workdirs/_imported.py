"""Writes a workdir for a network that another program trained."""

import pathlib
from typing import Any

import jax
import numpy as np

from mtl_jax import configuration, files
from mtl_jax.data import schema
from mtl_jax.data.field_of_view import Shape
from mtl_jax.errors import UserError
from mtl_jax.inference.vcdr import VcdrClassifier
from mtl_jax.training.checkpoints import Checkpoints
from mtl_jax.weights.glaucoma_mtl import OriginalNetwork

# Config fields whose values the imported network determines.
_NEEDED = {
    "model.encoder": "vgg13",
    "model.norm": "batch_no_average",
    "model.pretrained": "",
}


def write_imported(
    workdir: pathlib.Path,
    config: configuration.Config,
    network: OriginalNetwork,
    image_size: int = 256,
) -> None:
    """Writes a workdir for an imported network, which works like that of a run.

    The network is checkpoint 0. A run that resumes it starts at epoch 0 with fresh
    optimizer states.

    Args:
      workdir: folder to write, whole or not at all.
      config: config of the run, such as `configs/refuge.py:authors`.
      network: the imported network.
      image_size: pixels a side of the images it was trained on.

    Raises:
      UserError: if the config describes another network, or the workdir holds something
        else or cannot be written.
    """
    configuration.check(config)
    schema.check_image_size(image_size)
    _check_config(config, network)
    write_network(
        workdir,
        config,
        network.params,
        image_size=image_size,
        # As the authors' program trains.
        shape="stretch",
        classifier=network.classifier,
        origin={
            "source": network.source,
            "epoch": network.epoch,
            "n_iter": network.n_iter,
        },
    )


def write_network(
    workdir: pathlib.Path,
    config: configuration.Config,
    params: Any,
    *,
    image_size: int,
    shape: Shape,
    batch_stats: Any = None,
    classifier: VcdrClassifier | None = None,
    origin: dict[str, Any],
) -> None:
    """Writes a workdir whose checkpoint 0 is a network; see `write_imported`.

    Args:
      workdir: folder to write, whole or not at all.
      config: config of the run.
      params: parameters of the network.
      image_size: pixels a side of the network's images.
      shape: what these show of their photographs.
      batch_stats: batch statistics of the network; None if it has none.
      classifier: classifier on the vertical cup-to-disc ratio.
      origin: JSON values that tell where the network comes from.

    Raises:
      UserError: if the workdir holds something else or cannot be written.
    """
    metadata = {
        "config": configuration.to_json(config),
        "image_size": image_size,
        "shape": shape,
        "num_training_images": None,
        "vcdr_classifier": classifier and classifier._asdict(),
        "epoch": 0,
        "seconds_per_step": None,
        "validation": {},
        "imported": origin,
    }
    with files.whole_directory(workdir) as folder:
        checkpoints = Checkpoints(folder)
        variables = {"params": params, "batch_stats": batch_stats or {}}
        checkpoints.save_network(variables, metadata)
        checkpoints.close()
        files.write_text(folder / "config.json", configuration.to_json(config) + "\n")


def _check_config(config: configuration.Config, network: OriginalNetwork) -> None:
    if config.method.name == "single":
        raise UserError(
            f"config.method.name is 'single', but {network.source} holds one network "
            "for all tasks; choose another method for further training."
        )
    for field, value in _NEEDED.items():
        part, name = field.split(".")
        if config[part][name] != value:
            raise UserError(
                f"config.{field} is {config[part][name]!r}, but the network of "
                f"{network.source} needs {value!r}; see configs/refuge.py:authors."
            )
    shapes = configuration.build(config).variable_shapes()
    theirs = jax.tree.map(np.shape, network.params)
    if jax.tree.map(lambda x: x.shape, shapes["params"]) != theirs:
        raise UserError(
            f"The network of {network.source} does not fit the config's tasks or "
            "model.width; see configs/refuge.py:authors."
        )
