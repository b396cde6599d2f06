"""Drishti-GS1: optic disc and cup by four experts, and glaucoma.

Reference:
  Sivaswamy et al., A Comprehensive Retinal Image Dataset for the Assessment of Glaucoma
  from the Optic Nerve Head Analysis, JSM Biomedical Imaging Data Papers 2:1004, 2015.
"""

from mtl_jax.data.sources.layout import Layout
from mtl_jax.data.sources.listing import Listing, text_of
from mtl_jax.data.sources.masks import MaskFile
from mtl_jax.data.sources.rows import Contents, Row

_PHOTOGRAPHS = r"/(drishtigs_\d{3})\.(?:png|jpe?g|tiff?|bmp)"
_SPLIT = r"/(train|test)[^/]*(?:/.*)?"
_DIAGNOSES = {"normal": 0.0, "glaucomatous": 1.0}


def read(listing: Listing) -> Contents:
    """Reads the photographs of both official splits.

    A mask is where at least half of the experts see the structure.
    """
    maps = listing.find(r"/(drishtigs_\d{3})_(od|cup)segsoftmap\.png")
    diagnoses, patients = {}, {}
    for _, _, cells in listing.records(
        r"/[^/]*diagnosis[^/]*\.(?:xlsx|csv)", "drishtigsfile", "total"
    ):
        name = text_of(cells["drishtigsfile"]).lower()
        diagnoses[name] = _DIAGNOSES.get(text_of(cells["total"]).lower())
        patients[name] = text_of(cells.get("patientid"))
    contents = Contents([], str(listing.root))
    for (split, stem), path in listing.find(_SPLIT + _PHOTOGRAPHS).items():
        disc, cup = (maps.get((stem, kind)) for kind in ("od", "cup"))
        contents.rows.append(
            Row(
                len(contents.rows) + 1,
                path.stem,
                path,
                disc_mask=MaskFile((disc,), "soft") if disc else None,
                cup_mask=MaskFile((cup,), "soft") if cup else None,
                glaucoma=diagnoses.get(stem),
                split=split,
                patient=patients.get(stem, ""),
            )
        )
    return contents


LAYOUT = Layout(
    _PHOTOGRAPHS,
    looked_for="Training/Images/drishtiGS_002.png",
    labels=("disc", "cup", "glaucoma"),
    read=read,
    placed=_SPLIT + _PHOTOGRAPHS,
)
