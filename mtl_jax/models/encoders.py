"""The encoders that a network may have, by name."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn

from mtl_jax.models import resnet, vgg


class Encoder(NamedTuple):
    """What a network needs to know of its encoder.

    Attributes:
      create: makes the module, given `widths`, `conv` and `name`.
      widths: channels of its features at full width.
      stride: how many times smaller the deepest features are than the image.
      last_kernel: path of its last convolution's kernel, the last parameter that all
        tasks share.
    """

    create: Callable[..., nn.Module]
    widths: tuple[int, ...]
    stride: int
    last_kernel: str


ENCODERS = {
    name: Encoder(
        functools.partial(vgg.VggEncoder, depths),
        vgg.WIDTHS,
        16,
        f"encoder/block5_conv{depths[-1]}/conv/kernel",
    )
    for name, depths in vgg.DEPTHS.items()
} | {
    name: Encoder(
        functools.partial(resnet.ResNetEncoder, depths),
        resnet.WIDTHS,
        32,
        f"encoder/layer4_block{depths[-1]}_conv2/conv/kernel",
    )
    for name, depths in resnet.DEPTHS.items()
}
