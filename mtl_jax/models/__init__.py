"""Networks: `MultiTaskUNet`, its encoders and its layers."""

from mtl_jax.models.unet import MultiTaskUNet

__all__ = ["MultiTaskUNet"]
