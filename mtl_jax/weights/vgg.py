"""VGG encoders from torchvision's and Keras' files."""

import pathlib
from collections.abc import Mapping

import numpy as np

from mtl_jax.errors import UserError
from mtl_jax.models import unet, vgg
from mtl_jax.weights import tensors
from mtl_jax.weights.encoder import Encoder

ARCHITECTURES = ("vgg13", "vgg13_bn", "vgg16", "vgg16_bn")

# Other members of the family are known so that they can be named.
_DEPTHS = {
    **vgg.DEPTHS,
    "vgg11": (1, 1, 2, 2, 2),
    "vgg19": (2, 2, 4, 4, 4),
}
# Keras' networks want BGR on the scale 0..255 minus this mean, here as RGB.
_KERAS_MEAN = np.array([123.68, 116.779, 103.939])
# Their files say by the names of their layers what they are.
_BY_LAYERS = {
    "layer4.2.conv3.weight": "a deeper ResNet of torchvision (50 layers or more)",
    "layer3.5.conv2.weight": "torchvision's resnet34",
    "layer4.1.conv2.weight": "torchvision's resnet18",
    "inc.double_conv.0.conv_block.CONV.weight": "a network of the original authors",
    "block5_conv4/kernel": "Keras' vgg19",
    "block5_conv3/kernel": "Keras' vgg16",
}

Shapes = dict[str, tuple[int, ...]]


def import_vgg(source: pathlib.Path, architecture: str) -> Encoder:
    """Reads the convolutions of a VGG.

    Args:
      source: torchvision's file as `.pth` or `.safetensors`, or Keras' VGG16 as `.h5`.
      architecture: one of `ARCHITECTURES`.

    Returns:
      The encoder's variables. It wants images normalised by ImageNet's deviations and
      by `input_mean`, whichever file they are from: what Keras does otherwise is folded
      into the first layer, but for the mean. (Folded into the bias, the mean would be
      wrong at the image's border, where the convolution pads with zeros what has been
      normalised already; so the network takes the mean along.)

    Raises:
      UserError: if the file cannot be read or is of another architecture.
    """
    source = pathlib.Path(source).expanduser()
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"--architecture={architecture} is not known; choose from "
            f"{', '.join(ARCHITECTURES)}."
        )
    found = tensors.read(source)
    is_keras = source.suffix in (".h5", ".hdf5")
    layers = _keras_layers if is_keras else _torchvision_layers
    try:
        wanted = layers(architecture)
    except KeyError:
        raise UserError(
            f"{source} is a file of Keras, which has no {architecture}; name a file of "
            "torchvision, or --architecture=vgg16."
        ) from None
    expected = {name: shape for layer in wanted.values() for name, shape in layer}
    _check(source, architecture, found, expected)

    params, batch_stats = {}, {}
    for ours, layer in wanted.items():
        kernel, bias, *norm = (found[name] for name, _ in layer)
        if not is_keras:
            kernel = kernel.transpose(2, 3, 1, 0)  # OIHW to HWIO.
        params[ours] = {"conv": {"kernel": np.ascontiguousarray(kernel), "bias": bias}}
        if norm:
            scale, shift, mean, var = norm
            params[ours]["norm"] = {"scale": scale, "bias": shift}
            batch_stats[ours] = {"norm": {"mean": mean, "var": var}}
    input_mean = np.array(unet.IMAGENET_MEAN, np.float32)
    if is_keras:
        first = params["block1_conv1"]["conv"]
        first["kernel"] = _fold(first["kernel"])
        input_mean = (_KERAS_MEAN / 255).astype(np.float32)
    return Encoder(
        architecture=architecture,
        params=params,
        batch_stats=batch_stats,
        input_mean=input_mean,
        source=source.name,
        ignored=tuple(sorted(set(found) - set(expected))),
    )


def _fold(kernel: np.ndarray) -> np.ndarray:
    """Keras' first kernel for images in RGB, by ImageNet's deviations in [0, 1]."""
    std = np.array(unet.IMAGENET_STD)[:, None]
    return (kernel[:, :, ::-1].astype(np.float64) * (255 * std)).astype(np.float32)


def _torchvision_layers(architecture: str) -> dict[str, list]:
    """Names and shapes of a layer's tensors in the file, by our name of the layer."""
    encoder, _, bn = architecture.partition("_")
    layers, index, channels = {}, 0, 3
    for i, (depth, width) in enumerate(zip(_DEPTHS[encoder], vgg.WIDTHS, strict=True)):
        for j in range(depth):
            conv, norm = f"features.{index}", f"features.{index + 1}"
            layers[f"block{i + 1}_conv{j + 1}"] = [
                (f"{conv}.weight", (width, channels, 3, 3)),
                (f"{conv}.bias", (width,)),
            ]
            if bn:
                layers[f"block{i + 1}_conv{j + 1}"] += [
                    (f"{norm}.{name}", (width,))
                    for name in ("weight", "bias", "running_mean", "running_var")
                ]
            # Convolution, normalisation if there is one, ReLU.
            index += 3 if bn else 2
            channels = width
        index += 1  # Pooling.
    return layers


def _keras_layers(architecture: str) -> dict[str, list]:
    """As `_torchvision_layers`; Keras has this one only."""
    layers, channels = {}, 3
    for i, (depth, width) in enumerate(
        zip({"vgg16": vgg.DEPTHS["vgg16"]}[architecture], vgg.WIDTHS, strict=True)
    ):
        for j in range(depth):
            name = f"block{i + 1}_conv{j + 1}"
            layers[name] = [
                (f"{name}/kernel", (3, 3, channels, width)),
                (f"{name}/bias", (width,)),
            ]
            channels = width
    return layers


def _check(
    source: pathlib.Path,
    architecture: str,
    found: Mapping[str, np.ndarray],
    expected: Shapes,
) -> None:
    """Refuses a file without the tensors of the architecture, naming the first."""
    for name, shape in expected.items():
        if name not in found:
            problem = f"has no {name}"
        elif found[name].shape != shape:
            problem = f"has {name} of shape {found[name].shape} instead of {shape}"
        else:
            continue
        raise UserError(
            f"{source} is not of the architecture {architecture}: it {problem}, and "
            f"looks like {_looks_like(found)}; name a file of {architecture}, or "
            "another --architecture."
        )
    # What follows the last layer that is wanted belongs to a deeper network.
    parts = ("features.", "block")
    more = sorted(
        name
        for name in set(found) - set(expected)
        if name.startswith(parts) and found[name].ndim == 4
    )
    if more:
        raise UserError(
            f"{source} is not of the architecture {architecture}: it has {more[0]} "
            f"besides, and looks like {_looks_like(found)}; name a file of "
            f"{architecture}, or another --architecture."
        )


def _looks_like(found: Mapping[str, np.ndarray]) -> str:
    """What network a file's names and shapes belong to."""
    kernels = {name for name in found if name.startswith("features.")}
    kernels = {name for name in kernels if found[name].ndim == 4}
    for encoder in _DEPTHS:
        for architecture in (encoder, f"{encoder}_bn"):
            layers = _torchvision_layers(architecture).values()
            if kernels == {layer[0][0] for layer in layers}:
                return f"torchvision's {architecture}"
    for name, network in _BY_LAYERS.items():
        if name in found:
            return network
    return f"nothing known here (its first tensor is {min(found, default=None)})"
