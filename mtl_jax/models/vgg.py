"""The VGG encoder (Simonyan and Zisserman 2015) without its classifier."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from mtl_jax.models import layers

WIDTHS = (64, 128, 256, 512, 512)

# Convolutions per block. The paper's text says VGG-16. The authors' program has VGG-13,
# and so have the paper's parameter counts.
DEPTHS = {"vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3)}


class VggEncoder(nn.Module):
    """Five blocks of convolutions with 2x2 max pooling between them.

    Attributes:
      depths: convolutions in each block.
      widths: channels of each block.
      conv: makes one convolution layer, given its features and its name.
      checkpoint: transforms the function `(self, x) -> x` of each block, such as
        `nn.remat`.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    conv: Callable[..., nn.Module]
    checkpoint: Callable[[Callable[..., Any]], Callable[..., Any]]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        """Encodes [B, H, W, 3].

        Returns:
          Features of the five blocks, [B, H / 2**i, W / 2**i, widths[i]].
        """

        def block(encoder, x, i):
            if i:
                x = layers.max_pool(x)
            for j in range(encoder.depths[i]):
                conv = encoder.conv(encoder.widths[i], name=f"block{i + 1}_conv{j + 1}")
                x = conv(x, train=train)
            return x

        features = []
        for i in range(len(self.depths)):
            x = self.checkpoint(functools.partial(block, i=i))(self, x)
            features.append(x)
        return features
