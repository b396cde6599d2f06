"""The ResNet-34 encoder (He et al. 2016) in torchvision's layout."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

WIDTHS = (64, 64, 128, 256, 512)

# Blocks in each of the four layers.
DEPTHS = {"resnet34": (3, 4, 6, 3)}


class ResNetEncoder(nn.Module):
    """A 7x7 convolution and four layers of blocks, each of two 3x3 convolutions.

    Attributes:
      depths: blocks in each layer.
      widths: channels of the first convolution and of each layer.
      conv: makes one convolution layer, given its features and its name.
      checkpoint: transforms the function of each block, see `VggEncoder`.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    conv: Callable[..., nn.Module]
    checkpoint: Callable[[Callable[..., Any]], Callable[..., Any]]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        """Encodes [B, H, W, 3].

        Returns:
          Features of the first convolution and of the four layers,
          [B, H / 2**(i + 1), W / 2**(i + 1), widths[i]].
        """

        def block(encoder, x, i, j):
            conv = functools.partial(encoder.conv, use_bias=False)
            width = encoder.widths[i]
            name, stride = f"layer{i}_block{j}", 2 if i > 1 and j == 1 else 1
            y = conv(width, stride=stride, name=f"{name}_conv1")(x, train=train)
            y = conv(width, relu=False, name=f"{name}_conv2")(y, train=train)
            if stride > 1 or x.shape[-1] != width:
                x = conv(
                    width,
                    kernel_size=1,
                    stride=stride,
                    relu=False,
                    name=f"{name}_shortcut",
                )(x, train=train)
            return nn.relu(x + y)

        stem = self.conv(
            self.widths[0], kernel_size=7, stride=2, use_bias=False, name="stem"
        )
        x = stem(x, train=train)
        features = [x]
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for i, depth in enumerate(self.depths, 1):
            for j in range(1, depth + 1):
                x = self.checkpoint(functools.partial(block, i=i, j=j))(self, x)
            features.append(x)
        return features
