"""Imports encoders from torchvision's and Keras' files."""

import pathlib

import numpy as np

from mtl_jax.errors import UserError
from mtl_jax.models import unet
from mtl_jax.weights import names, tensors
from mtl_jax.weights.encoder import EncoderWeights

ARCHITECTURES = ("vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "resnet34")

# Keras' networks expect BGR from 0 to 255 minus this mean, which is RGB here.
_KERAS_MEAN = np.array([123.68, 116.779, 103.939])


def import_encoder(source: pathlib.Path, architecture: str) -> EncoderWeights:
    """Reads the convolutions of a VGG or a ResNet.

    Args:
      source: torchvision's file as `.pth` or `.safetensors`, or Keras' VGG16 as `.h5`
        (of Keras 3, `.weights.h5`).
      architecture: one of `ARCHITECTURES`.

    Returns:
      The encoder's variables. For all files, the encoder expects images minus
      `input_mean`, divided by ImageNet's deviations. Keras' order of colours and scale
      are folded into the first layer. Its mean is not: folded into the bias, it would
      be wrong at the image's border, where the convolution pads the normalised image
      with zeros.

    Raises:
      UserError: if the file cannot be read or is of another architecture.
    """
    source = pathlib.Path(source).expanduser()
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"--architecture={architecture} is unknown; choose from "
            f"{', '.join(ARCHITECTURES)}."
        )
    found = tensors.read(source)
    is_keras = source.suffix in (".h5", ".hdf5")
    if is_keras and architecture != "vgg16":
        raise UserError(
            f"{source} is a file of Keras, which has no {architecture}; name a file of "
            "torchvision, or give --architecture=vgg16."
        )
    if is_keras:
        layers = names.keras_vgg16()
        # The first versions of Keras 3 number the convolutions instead.
        for number, name in enumerate(layers):
            theirs = f"conv2d_{number}" if number else "conv2d"
            for role in ("kernel", "bias"):
                if f"{theirs}/{role}" in found:
                    found[f"{name}/{role}"] = found.pop(f"{theirs}/{role}")
    elif architecture == "resnet34":
        layers = names.torchvision_resnet34()
    else:
        layers = names.torchvision_vgg(architecture)
    names.check(source, architecture, found, layers)
    encoders = ("features.", "block", "layer")
    names.check_no_more(source, architecture, found, layers, encoders)

    params, batch_stats = {}, {}
    for ours, layer in layers.items():
        kernel, *others = (found[name] for name, _ in layer)
        if not is_keras:
            kernel = kernel.transpose(2, 3, 1, 0)  # OIHW to HWIO.
        params[ours] = {"conv": {"kernel": np.ascontiguousarray(kernel)}}
        # A bias, if any, precedes the four tensors of a BatchNorm.
        if len(others) % 4:
            params[ours]["conv"]["bias"] = others.pop(0)
        if others:
            scale, shift, mean, var = others
            params[ours]["norm"] = {"scale": scale, "bias": shift}
            batch_stats[ours] = {"norm": {"mean": mean, "var": var}}
    used = {name for layer in layers.values() for name, _ in layer}
    input_mean = np.array(unet.IMAGENET_MEAN, np.float32)
    if is_keras:
        first = params["block1_conv1"]["conv"]
        first["kernel"] = _fold(first["kernel"])
        input_mean = (_KERAS_MEAN / 255).astype(np.float32)
    return EncoderWeights(
        architecture=architecture,
        params=params,
        batch_stats=batch_stats,
        input_mean=input_mean,
        norm="batch" if batch_stats else "none",
        source=source.name,
        ignored=tuple(sorted(set(found) - used)),
    )


def _fold(kernel: np.ndarray) -> np.ndarray:
    """Adapts Keras' first kernel to RGB images divided by ImageNet's deviations."""
    std = np.array(unet.IMAGENET_STD)[:, None]
    return (kernel[:, :, ::-1].astype(np.float64) * (255 * std)).astype(np.float32)
