"""The encoders of networks, by name."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn

from mtl_jax.models import resnet, vgg


class Encoder(NamedTuple):
    """An encoder for `MultiTaskUNet`.

    Attributes:
      create: makes the module, given `widths`, `conv`, `checkpoint` and `name`.
      widths: channels of its features at full width.
      stride: ratio of the image's size to that of the deepest features.
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
