"""The multi-task U-Net of Pascal et al. (Scientific Reports 2022, 12:12361)."""

import functools
from collections.abc import Callable, Collection
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtl_jax.models import layers
from mtl_jax.models.encoders import ENCODERS

# RGB in [0, 1], of the photographs that public weights were trained on.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class InputNormalisation(nn.Module):
    """Subtracts a mean colour and divides by ImageNet's deviations.

    The mean is ImageNet's, unless pretrained weights bring another. It is one of the
    batch statistics, so that checkpoints contain it. Training does not change it.
    """

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Normalises [B, H, W, 3] in [0, 1], in float32."""
        mean = self.variable("batch_stats", "mean", lambda: jnp.array(IMAGENET_MEAN))
        return (images.astype(jnp.float32) - mean.value) / jnp.array(IMAGENET_STD)


class Decoder(nn.Module):
    """Stages of upsampling, concatenation with the skip, and two convolutions.

    If the encoder's first features are smaller than the image, one more upsampling and
    convolution follow.

    Attributes:
      widths: channels of the encoder's blocks, which determine those of the stages.
      conv: makes one convolution layer, given its features and its name.
      checkpoint: transforms the function of each stage, see `VggEncoder`.
    """

    widths: tuple[int, ...]
    conv: Callable[..., nn.Module]
    checkpoint: Callable[[Callable[..., Any]], Callable[..., Any]]

    @nn.compact
    def __call__(
        self, features: list[jax.Array], height: int, *, train: bool
    ) -> jax.Array:
        """Decodes the encoder's features to [B, height, W, channels]."""

        def stage(decoder, x, skip, i):
            x = jnp.concatenate([skip, layers.upsample(x)], axis=-1)
            level = len(decoder.widths) - 2 - i
            middle, out = decoder.widths[level], decoder.widths[max(level - 1, 0)]
            x = decoder.conv(middle, name=f"stage{i + 1}_conv1")(x, train=train)
            return decoder.conv(out, name=f"stage{i + 1}_conv2")(x, train=train)

        x = features[-1]
        for i, skip in enumerate(reversed(features[:-1])):
            x = self.checkpoint(functools.partial(stage, i=i))(self, x, skip)
        if x.shape[1] < height:
            x = self.conv(self.widths[0], name="last_conv")(
                layers.upsample(x), train=train
            )
        return x


class MultiTaskUNet(nn.Module):
    """U-Net with a shared encoder and decoder, and one head per task.

    A network with only classification heads has no decoder. A network with only dense
    heads is a plain U-Net. The sides of the image must be divisible by 16, or by 32 for
    `resnet34`.

    Attributes:
      encoder: `vgg16`, `vgg13` (the original authors' program) or `resnet34`.
      width: multiplier of all channel counts, for small models.
      classification_heads: names of the heads on the encoder's deepest features.
      dense_heads: names of the heads on the decoder's features.
      norm: `batch`, `batch_no_average` (the authors' behaviour), `group` or `none`.
      norm_momentum: share of the running averages kept at each update (`batch`).
      init_scheme: initialisation of kernels and biases: `kaiming_uniform`, PyTorch's
        default and the paper's, or `he_uniform`; see `layers.initializers`.
      dropout: probability that a pooled feature is dropped before the classifier.
      normalize_input: whether to apply `InputNormalisation`, for pretrained encoders.
      dtype: dtype of the computation, float32 or bfloat16; parameters are float32.
      remat: whether the backward pass computes the features inside each block of the
        encoder and stage of the decoder anew instead of keeping them.
      axis_name: name of the `jax.pmap` axis over which batch statistics are shared.
    """

    encoder: str = "vgg16"
    width: float = 1.0
    classification_heads: tuple[str, ...] = ("glaucoma",)
    dense_heads: tuple[str, ...] = ("disc", "cup", "fovea")
    norm: layers.Norm = "batch"
    norm_momentum: float = 0.99
    init_scheme: layers.Init = "kaiming_uniform"
    dropout: float = 0.8
    normalize_input: bool = False
    dtype: Any = jnp.float32
    remat: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        heads: Collection[str] | None = None,
        train: bool = False,
    ) -> dict[str, jax.Array]:
        """Predicts logits, and computes only what the requested heads need.

        Args:
          images: float [B, H, W, 3] in [0, 1].
          heads: names of the requested heads; all by default.
          train: whether to normalise by the batch and apply dropout, with the rng
            `dropout`.

        Returns:
          float32 logits by head: [B] for classification, [B, H, W] for dense heads.

        Raises:
          ValueError: for an unknown head, or a side that the encoder's stride does not
            divide.
        """
        everything = (*self.classification_heads, *self.dense_heads)
        wanted = everything if heads is None else tuple(heads)
        if unknown := set(wanted) - set(everything):
            raise ValueError(f"heads {sorted(unknown)} are not among {everything}")
        encoder = ENCODERS[self.encoder]
        if images.shape[1] % encoder.stride or images.shape[2] % encoder.stride:
            raise ValueError(
                f"sides of {images.shape} must be divisible by {encoder.stride}"
            )

        widths = tuple(max(1, round(self.width * width)) for width in encoder.widths)
        conv = functools.partial(
            layers.ConvNorm,
            norm=self.norm,
            norm_momentum=self.norm_momentum,
            init_scheme=self.init_scheme,
            dtype=self.dtype,
            axis_name=self.axis_name,
        )
        if self.normalize_input:
            images = InputNormalisation(name="input")(images)
        checkpoint = nn.remat if self.remat else _kept
        features = encoder.create(widths, conv, checkpoint, name="encoder")(
            images.astype(self.dtype), train=train
        )

        logits = {}
        if any(head in wanted for head in self.classification_heads):
            pooled = layers.global_max_pool(features[-1])
            pooled = layers.Dropout(self.dropout, self.axis_name)(pooled, train=train)
            for head in self.classification_heads:
                logits[head] = self._head(head, pooled)
        if any(head in wanted for head in self.dense_heads):
            decoded = Decoder(widths, conv, checkpoint, name="decoder")(
                features, images.shape[1], train=train
            )
            for head in self.dense_heads:
                logits[head] = self._head(head, decoded)
        return {head: logits[head][..., 0].astype(jnp.float32) for head in wanted}

    def _head(self, name: str, features: jax.Array) -> jax.Array:
        # On pixels, a dense layer on the last axis is a 1x1 convolution.
        kernel_init, bias_init = layers.initializers(
            self.init_scheme, features.shape[-1]
        )
        return nn.Dense(
            1,
            dtype=self.dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            name=f"head_{name}",
        )(features)


def _kept(function: Callable[..., Any]) -> Callable[..., Any]:
    return function
