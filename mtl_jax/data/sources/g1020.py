"""G1020: 1020 photographs with disc, cup and glaucoma.

Reference:
  Bajwa et al., G1020: A Benchmark Retinal Fundus Image Dataset for Computer-Aided
  Glaucoma Detection, IJCNN 2020.
"""

from mtl_jax.data.sources import _class_masks
from mtl_jax.data.sources.layout import Layout
from mtl_jax.data.sources.listing import Listing
from mtl_jax.data.sources.rows import Contents

_PHOTOGRAPHS = r"/images/(image_\d+)\.jpe?g"


def read(listing: Listing) -> Contents:
    """Reads the photographs; there is no official split.

    A mask without the value 2 says that no cup is visible.
    """
    return _class_masks.read(
        listing,
        _PHOTOGRAPHS,
        masks=r"/masks/(image_\d+)\.png",
        table=r"/g1020\.csv",
        heads=("imageid", "binarylabels"),
        prefix="g1020_",
    )


LAYOUT = Layout(
    _PHOTOGRAPHS,
    looked_for="Images/image_0.jpg",
    labels=("disc", "cup", "glaucoma"),
    read=read,
)
