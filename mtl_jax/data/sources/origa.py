"""ORIGA-light: 650 photographs with disc, cup and glaucoma.

Reference:
  Zhang et al., ORIGA-light: An Online Retinal Fundus Image Database for Glaucoma
  Analysis and Research, EMBC 2010.
"""

from collections.abc import Mapping
from typing import Any

from mtl_jax.data.sources import _class_masks
from mtl_jax.data.sources.layout import Layout
from mtl_jax.data.sources.listing import Listing, eye_of, text_of
from mtl_jax.data.sources.rows import Contents

# Other folders beside hold the same photographs cropped and squared.
_PHOTOGRAPHS = r"/images/(\d{3})\.jpe?g"
_SETS = {"a": "train", "b": "test"}


def read(listing: Listing) -> Contents:
    """Reads the photographs: set A of the table is train, set B is test."""
    return _class_masks.read(
        listing,
        _PHOTOGRAPHS,
        masks=r"/masks/(\d{3})\.png",
        table=r"/origalist\.csv",
        heads=("filename", "glaucoma"),
        prefix="origa_",
        eye_and_split=_eye_and_split,
    )


def _eye_and_split(cells: Mapping[str, Any]) -> tuple[str, str]:
    return (
        eye_of(cells.get("eye")),
        _SETS.get(text_of(cells.get("set")).lower(), ""),
    )


LAYOUT = Layout(
    _PHOTOGRAPHS,
    looked_for="Images/001.jpg",
    labels=("disc", "cup", "glaucoma"),
    read=read,
)
