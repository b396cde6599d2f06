"""Networks: `MultiTaskUNet` and the layers it is made of."""

from mtl_jax.models.unet import MultiTaskUNet

__all__ = ["MultiTaskUNet"]
