"""Tensors of public weight files, and the network that a file's tensors belong to.

`Layers` describe an architecture: our path of each layer, and the names and shapes of
its tensors in the file.
"""

import itertools
import pathlib
from collections.abc import Mapping

import numpy as np

from mtl_jax.errors import UserError
from mtl_jax.models import resnet, vgg

Layers = dict[str, list[tuple[str, tuple[int, ...]]]]

# Other VGGs are listed so that messages can name them.
_DEPTHS = {
    **vgg.DEPTHS,
    "vgg11": (1, 1, 2, 2, 2),
    "vgg19": (2, 2, 4, 4, 4),
}
# Networks that one tensor's name identifies.
_BY_TENSOR = {
    "layer4.2.conv3.weight": "a deeper ResNet of torchvision (50 layers or more)",
    "layer3.5.conv2.weight": "torchvision's resnet34",
    "layer4.1.conv2.weight": "torchvision's resnet18",
    "inc.double_conv.0.conv_block.CONV.weight": "a network of the original authors",
    "block5_conv4/kernel": "Keras' vgg19",
    "block5_conv3/kernel": "Keras' vgg16",
}


def torchvision_vgg(architecture: str) -> Layers:
    """Encoder of a VGG of torchvision: kernel (OIHW), bias, then BatchNorm's four."""
    encoder, _, bn = architecture.partition("_")
    layers, index, channels = {}, 0, 3
    for i, (depth, width) in enumerate(zip(_DEPTHS[encoder], vgg.WIDTHS, strict=True)):
        for j in range(depth):
            conv, norm = f"features.{index}", f"features.{index + 1}"
            layer = layers[f"block{i + 1}_conv{j + 1}"] = [
                (f"{conv}.weight", (width, channels, 3, 3)),
                (f"{conv}.bias", (width,)),
            ]
            if bn:
                layer += batch_norm(norm, width)
            # Convolution, normalisation if there is one, ReLU.
            index += 3 if bn else 2
            channels = width
        index += 1  # Pooling.
    return layers


def keras_vgg16() -> Layers:
    """Encoder of Keras' VGG16: kernel (HWIO), bias."""
    layers, channels = {}, 3
    for i, (depth, width) in enumerate(
        zip(vgg.DEPTHS["vgg16"], vgg.WIDTHS, strict=True)
    ):
        for j in range(depth):
            name = f"block{i + 1}_conv{j + 1}"
            layers[name] = [
                (f"{name}/kernel", (3, 3, channels, width)),
                (f"{name}/bias", (width,)),
            ]
            channels = width
    return layers


def torchvision_resnet34() -> Layers:
    """ResNet-34 of torchvision without its classifier: kernel (OIHW), BatchNorm's four.

    Convolutions have no bias. A layer's first block has a convolutional shortcut if its
    input has another shape.
    """
    first, *widths = resnet.WIDTHS
    layers = {"stem": [("conv1.weight", (first, 3, 7, 7)), *batch_norm("bn1", first)]}
    channels = first
    for i, (depth, width) in enumerate(
        zip(resnet.DEPTHS["resnet34"], widths, strict=True), 1
    ):
        for j in range(depth):
            ours, theirs = f"layer{i}_block{j + 1}", f"layer{i}.{j}"
            for k, before in ((1, channels), (2, width)):
                layers[f"{ours}_conv{k}"] = [
                    (f"{theirs}.conv{k}.weight", (width, before, 3, 3)),
                    *batch_norm(f"{theirs}.bn{k}", width),
                ]
            if channels != width:
                layers[f"{ours}_shortcut"] = [
                    (f"{theirs}.downsample.0.weight", (width, channels, 1, 1)),
                    *batch_norm(f"{theirs}.downsample.1", width),
                ]
            channels = width
    return layers


def glaucoma_mtl() -> Layers:
    """The network of the original authors: kernel (OIHW), bias, BatchNorm's two."""
    layers: Layers = {}

    def double_conv(ours: str, theirs: str, *channels: int) -> None:
        for j, (before, after) in enumerate(itertools.pairwise(channels)):
            block = f"{theirs}.double_conv.{j}.conv_block"
            layers[f"{ours}_conv{j + 1}"] = [
                (f"{block}.CONV.weight", (after, before, 3, 3)),
                (f"{block}.CONV.bias", (after,)),
                (f"{block}.BN.weight", (after,)),
                (f"{block}.BN.bias", (after,)),
            ]

    first, *widths = vgg.WIDTHS
    double_conv("encoder/block1", "inc", 3, first, first)
    for i, (before, after) in enumerate(itertools.pairwise(vgg.WIDTHS), 1):
        theirs = f"down{i}.maxpool_conv.1"
        double_conv(f"encoder/block{i + 1}", theirs, before, after, after)
    for i, skip in enumerate(reversed(vgg.WIDTHS[:-1]), 1):
        out = vgg.WIDTHS[max(len(vgg.WIDTHS) - i - 2, 0)]
        double_conv(f"decoder/stage{i}", f"up{i}.conv", 2 * skip, skip, out)
    for i, name in enumerate(("disc", "cup", "fovea")):
        head = f"outcs.{i}.conv"
        layers[f"head_{name}"] = [
            (f"{head}.weight", (1, first, 1, 1)),
            (f"{head}.bias", (1,)),
        ]
    layers["head_glaucoma"] = [
        ("outfc.fc.weight", (1, widths[-1])),
        ("outfc.fc.bias", (1,)),
    ]
    return layers


def batch_norm(name: str, width: int) -> list[tuple[str, tuple[int, ...]]]:
    """The four tensors of a BatchNorm of PyTorch."""
    parts = ("weight", "bias", "running_mean", "running_var")
    return [(f"{name}.{part}", (width,)) for part in parts]


def check(
    source: pathlib.Path,
    architecture: str,
    found: Mapping[str, np.ndarray],
    layers: Layers,
) -> None:
    """Refuses a file without the tensors of an architecture.

    Raises:
      UserError: with the first missing or misshapen tensor, and the network that the
        file seems to hold.
    """
    for name, shape in (pair for layer in layers.values() for pair in layer):
        if name not in found:
            problem = f"has no {name}"
        elif found[name].shape != shape:
            problem = f"has {name} of shape {found[name].shape} instead of {shape}"
        else:
            continue
        raise _mismatch(source, architecture, f"it {problem}, and", found)


def check_no_more(
    source: pathlib.Path,
    architecture: str,
    found: Mapping[str, np.ndarray],
    layers: Layers,
    prefixes: tuple[str, ...],
) -> None:
    """Refuses a file with additional convolutions, which holds a deeper network.

    Args:
      source: the file, for messages.
      architecture: the expected architecture.
      found: tensors of the file.
      layers: layers of the architecture.
      prefixes: prefixes of the names of the encoder's tensors.

    Raises:
      UserError: with the first additional tensor, and the network that the file seems
        to hold.
    """
    expected = {name for layer in layers.values() for name, _ in layer}
    more = sorted(
        name
        for name in set(found) - expected
        if name.startswith(prefixes) and found[name].ndim == 4
    )
    if more:
        raise _mismatch(source, architecture, f"it has {more[0]} besides, and", found)


def _mismatch(source, architecture, problem, found):
    return UserError(
        f"{source} is not of the architecture {architecture}: {problem} looks like "
        f"{_looks_like(found)}; name a file of {architecture}, or another "
        "--architecture."
    )


def _looks_like(found: Mapping[str, np.ndarray]) -> str:
    """Names the network that a file's names and shapes belong to."""
    kernels = {name for name in found if name.startswith("features.")}
    kernels = {name for name in kernels if found[name].ndim == 4}
    for encoder in _DEPTHS:
        for architecture in (encoder, f"{encoder}_bn"):
            layers = torchvision_vgg(architecture).values()
            if kernels == {layer[0][0] for layer in layers}:
                return f"torchvision's {architecture}"
    for name, network in _BY_TENSOR.items():
        if name in found:
            return network
    return f"nothing known here (its first tensor is {min(found, default=None)})"
