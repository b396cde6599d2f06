"""Stores imported encoders, and starts networks from them."""

import dataclasses
import hashlib
import pathlib
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from mtl_jax import files
from mtl_jax.errors import UserError, check_access
from mtl_jax.models import unet

_TENSORS, _RECORD = "encoder.safetensors", "weights.json"

# Normalisations of networks that may start from an encoder, by its own.
_SUITABLE = {
    "batch": ("batch", "batch_no_average"),
    "batch_no_average": ("batch_no_average",),
    "group": ("group",),
    "none": ("none",),
}
_NORM_NAMES = {
    "batch": "BatchNorm",
    "batch_no_average": "BatchNorm without averages",
    "group": "GroupNorm",
    "none": "no normalisation",
}


@dataclasses.dataclass(frozen=True)
class EncoderWeights:
    """Pretrained variables of an encoder.

    Attributes:
      architecture: architecture such as `vgg16` or, with BatchNorm, `vgg16_bn`.
      params: float32 NumPy arrays by layer, as under `encoder` in a network's params.
      batch_stats: BatchNorm's running averages likewise; empty without BatchNorm.
      input_mean: [3], mean RGB colour, in [0, 1], of the images it was trained on.
      norm: normalisation after its convolutions, as in `config.model.norm`.
      width: multiplier of its channels.
      source: name of its file.
      ignored: names of the file's tensors that do not belong to the encoder.
    """

    architecture: str
    params: Any
    batch_stats: Any
    input_mean: np.ndarray
    norm: str = "batch"
    width: float = 1.0
    source: str = ""
    ignored: tuple[str, ...] = ()

    @property
    def encoder(self) -> str:
        """Name of the network's encoder, as in `config.model.encoder`."""
        return self.architecture.removesuffix("_bn")


def save(encoder: EncoderWeights, output: pathlib.Path) -> None:
    """Writes an encoder's folder, completely or not at all.

    Raises:
      UserError: if the folder holds something else or cannot be written.
    """
    from safetensors.numpy import save

    with files.whole_directory(output) as folder:
        variables = {"params": encoder.params, "batch_stats": encoder.batch_stats}
        # pyrefly: ignore[bad-assignment]  # Empty nodes only where they are kept.
        tensors: dict[str, np.ndarray] = traverse_util.flatten_dict(variables, sep="/")
        # Its `save_file` makes files that nobody else may read.
        content = save(tensors)
        (folder / _TENSORS).write_bytes(content)
        files.write_json(
            folder / _RECORD,
            {
                "architecture": encoder.architecture,
                "norm": encoder.norm,
                "width": encoder.width,
                "input_mean": [float(x) for x in encoder.input_mean],
                # The same for every import; only for readers of the file.
                "input_std": unet.IMAGENET_STD,
                "source": encoder.source,
                "sha256": hashlib.sha256(content).hexdigest(),
            },
        )


def load(folder: pathlib.Path) -> EncoderWeights:
    """Reads a folder that `save` wrote.

    Raises:
      UserError: if the folder does not exist or is damaged.
    """
    from safetensors.numpy import load as parse

    folder = pathlib.Path(folder).expanduser()
    if not (folder / _RECORD).is_file():
        raise UserError(
            f"config.model.pretrained is {folder}, where there are no imported "
            "weights; make them by scripts/import_weights.py."
        )
    try:
        record = files.parse_json((folder / _RECORD).read_text())
        if record["norm"] not in _SUITABLE:
            raise ValueError(f"its norm is {record['norm']!r}")
        if not isinstance(record["architecture"], str):
            raise ValueError(f"its architecture is {record['architecture']!r}")
        content = (folder / _TENSORS).read_bytes()
        # Earlier versions wrote no digest.
        if record.get("sha256") not in (None, hashlib.sha256(content).hexdigest()):
            raise ValueError(f"{_TENSORS} is not what was written: its SHA-256 differs")
        variables = traverse_util.unflatten_dict(parse(content), sep="/")
        input_mean = np.array(record["input_mean"], np.float32)
        if input_mean.shape != (3,) or not np.isfinite(input_mean).all():
            raise ValueError(f"its input_mean is {record['input_mean']}")
        return EncoderWeights(
            architecture=record["architecture"],
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            input_mean=input_mean,
            norm=record["norm"],
            width=record.get("width", 1.0),
            source=record["source"],
        )
    # A record and a table of tensors may say anything.
    except Exception as error:
        check_access(folder, error)
        raise UserError(
            f"{folder} is damaged; make it again by scripts/import_weights.py "
            f"({type(error).__name__}: {error})."
        ) from error


def check_suitable(
    encoder: EncoderWeights, encoder_name: str, norm: str, width: float = 1.0
) -> None:
    """Refuses a network that these weights do not fit.

    Args:
      encoder: the weights.
      encoder_name: `config.model.encoder`.
      norm: `config.model.norm`.
      width: `config.model.width`.

    Raises:
      UserError: with the field to change.
    """
    if encoder.encoder != encoder_name:
        raise UserError(
            f"config.model.pretrained holds {encoder.architecture}, but "
            f"config.model.encoder is {encoder_name!r}; set it to "
            f"{encoder.encoder!r}."
        )
    if norm not in _SUITABLE[encoder.norm]:
        choices = " or ".join(repr(name) for name in _SUITABLE[encoder.norm])
        raise UserError(
            f"config.model.pretrained holds {encoder.architecture}, whose convolutions "
            f"are followed by {_NORM_NAMES[encoder.norm]}, but config.model.norm is "
            f"{norm!r}; set it to {choices}, or import other weights."
        )
    if width != encoder.width:
        raise UserError(
            f"config.model.width is {width}, but config.model.pretrained holds weights "
            f"of width {encoder.width}; set it to {encoder.width}."
        )


def start_from(
    encoder: EncoderWeights, params: Any, batch_stats: Any
) -> tuple[Any, Any]:
    """Replaces the encoder of a fresh network.

    Args:
      encoder: an encoder that `check_suitable` accepts.
      params: parameters of a `MultiTaskUNet`.
      batch_stats: batch statistics of the same network. Running averages and the input
        mean are replaced if the network has them.

    Returns:
      Both with the encoder's values, otherwise unchanged.

    Raises:
      UserError: if the encoder's layers differ from the network's in name or shape.
    """
    ours = params["encoder"], batch_stats.get("encoder", encoder.batch_stats)
    theirs = encoder.params, encoder.batch_stats
    if jax.tree.map(np.shape, theirs) != jax.tree.map(np.shape, ours):
        raise UserError(
            f"The layers of {encoder.architecture} in config.model.pretrained are not "
            "those of the network; import the weights again."
        )
    batch_stats = dict(batch_stats)
    if "encoder" in batch_stats:
        batch_stats["encoder"] = encoder.batch_stats
    if "input" in batch_stats:
        batch_stats["input"] = {"mean": encoder.input_mean}
    return {**params, "encoder": encoder.params}, batch_stats
