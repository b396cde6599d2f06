"""REFUGE beside other sources, as `mtl_jax.data.refuge` finds its unpacked files.

Reference:
  Orlando et al., REFUGE Challenge, Medical Image Analysis 59:101570, 2020.
"""

import pathlib

from mtl_jax.data.refuge.files import SourceFile, list_files
from mtl_jax.data.refuge.layout import sort_files
from mtl_jax.data.refuge.survey import survey
from mtl_jax.data.sources.layout import Layout
from mtl_jax.data.sources.listing import Listing
from mtl_jax.data.sources.masks import MaskFile
from mtl_jax.data.sources.rows import Contents, Row
from mtl_jax.errors import UserError


def read(listing: Listing) -> Contents:
    """Reads the photographs of the three official splits."""
    files = list_files(listing.root)
    found = survey(sort_files(files.files))
    contents = Contents([], str(listing.root), missing=files.problems + found.problems)
    for number, case in enumerate(found.cases, start=1):
        mask = None
        if case.mask is not None:
            mask = MaskFile((_unpacked(case.mask),), "refuge")
        contents.rows.append(
            Row(
                number,
                case.stem,
                _unpacked(case.photograph),
                mask=mask,
                fovea_xy=case.fovea_xy,
                glaucoma=case.glaucoma,
                split=case.split,
            )
        )
    return contents


def _unpacked(file: SourceFile) -> pathlib.Path:
    if file.member is not None:
        raise UserError(
            f"{file.path} holds {file.member}; unpack it to read REFUGE beside other "
            "sources."
        )
    return pathlib.Path(file.path)


LAYOUT = Layout(
    r"/[gntv]\d{4}\.jpe?g",
    looked_for="Training400/Glaucoma/g0001.jpg",
    labels=(),
    read=read,
)
