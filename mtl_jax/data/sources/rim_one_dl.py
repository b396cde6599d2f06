"""RIM-ONE DL: close-ups of the disc from three hospitals, with disc, cup and glaucoma.

Reference:
  Fumero et al., RIM-ONE DL: A Unified Retinal Image Database for Assessing Glaucoma
  Using Deep Learning, Image Analysis & Stereology 39:161, 2020.
"""

from mtl_jax.data.sources.layout import Layout
from mtl_jax.data.sources.listing import Listing
from mtl_jax.data.sources.masks import MaskFile
from mtl_jax.data.sources.rows import Contents, Row

# Of both official partitions; the other has the same photographs.
_PHOTOGRAPHS = (
    r"/partitioned_by_hospital/.*?(train|test)[^/]*/(glaucoma|normal)/(r[123]_im\d+)"
    r"\.(?:png|jpe?g)"
)


def read(listing: Listing) -> Contents:
    """Reads the photographs with the partition by hospital."""
    masks = listing.find(r"/(r[123]_im\d+)-\d-(disc|cup)-t\.png")
    contents = Contents([], str(listing.root))
    for (split, diagnosis, stem), path in listing.find(_PHOTOGRAPHS).items():
        disc, cup = (masks.get((stem, kind)) for kind in ("disc", "cup"))
        contents.rows.append(
            Row(
                len(contents.rows) + 1,
                path.stem,
                path,
                disc_mask=MaskFile((disc,)) if disc else None,
                cup_mask=MaskFile((cup,)) if cup else None,
                glaucoma=float(diagnosis == "glaucoma"),
                split=split,
            )
        )
    return contents


LAYOUT = Layout(
    _PHOTOGRAPHS,
    looked_for="partitioned_by_hospital/training_set/glaucoma/r2_Im001.png",
    labels=("disc", "cup", "glaucoma"),
    read=read,
)
