"""The VGG encoder (Simonyan and Zisserman 2015) without its classifier."""

from collections.abc import Callable

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
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        """Encodes [B, H, W, 3].

        Returns:
          Features of the five blocks, [B, H / 2**i, W / 2**i, widths[i]].
        """
        features = []
        for i, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            if i:
                x = layers.max_pool(x)
            for j in range(depth):
                name = f"block{i + 1}_conv{j + 1}"
                x = self.conv(width, name=name)(x, train=train)
            features.append(x)
        return features
