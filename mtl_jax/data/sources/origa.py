"""ORIGA-light: 650 photographs with disc, cup and glaucoma.

Reference:
  Zhang et al., ORIGA-light: An Online Retinal Fundus Image Database for Glaucoma
  Analysis and Research, EMBC 2010.
"""

from collections.abc import Mapping
from typing import Any

from mtl_jax.data.sources import _class_masks
from mtl_jax.data.sources.layout import Layout
from mtl_jax.data.sources.listing import Listing, text_of
from mtl_jax.data.sources.rows import Reading

# Other folders beside hold the same photographs cropped and squared.
_PHOTOGRAPHS = r"/images/(\d{3})\.jpe?g"
_SETS = {"a": "train", "b": "test"}


def read(listing: Listing) -> Reading:
    """Reads the photographs: set A of the table is train, set B is test."""
    return _class_masks.read(
        listing,
        _PHOTOGRAPHS,
        masks=r"/masks/(\d{3})\.png",
        table=r"/origalist\.csv",
        heads=("filename", "glaucoma"),
        prefix="origa_",
        also=_eye_and_set,
    )


def _eye_and_set(cells: Mapping[str, Any]) -> dict[str, str]:
    eye = text_of(cells.get("eye")).upper()
    return {
        "eye": eye if eye in ("OD", "OS") else "",
        "split": _SETS.get(text_of(cells.get("set")).lower(), ""),
    }


LAYOUT = Layout(
    _PHOTOGRAPHS,
    looked_for="Images/001.jpg",
    labels=("disc", "cup", "glaucoma"),
    read=read,
)
