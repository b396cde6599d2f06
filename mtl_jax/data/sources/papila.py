"""PAPILA: both eyes of 244 patients, with contours of two experts and diagnosis.

Reference:
  Kovalyk et al., PAPILA: Dataset with fundus images and clinical data of both eyes of
  the same patient for glaucoma assessment, Scientific Data 9:291, 2022.
"""

import re

from mtl_jax.data.sources.layout import Layout
from mtl_jax.data.sources.listing import Listing, number_of, text_of
from mtl_jax.data.sources.masks import MaskFile
from mtl_jax.data.sources.rows import Contents, Row, without

_PHOTOGRAPHS = r"/ret(\d{3})(od|os)\.(?:jpe?g|png)"


def read(listing: Listing) -> Contents:
    """Reads the photographs; there is no official split.

    A mask is where at least half of the experts, so one of two, see the structure. A
    suspect (2) has no diagnosis.
    """
    contours: dict[tuple[str, str, str], tuple] = {}
    found = listing.find(r"/ret(\d{3})(od|os)_(disc|cup)_exp(\d)\.txt")
    for (patient, eye, kind, _), path in found.items():
        key = (patient, eye, kind)
        contours[key] = (*contours.get(key, ()), path)
    diagnoses = {}
    for match, where, cells in listing.records(
        r"/patient_data_(od|os)\.(?:xlsx|csv)", "diagnosis"
    ):
        # The first column has no head of its own in the row of the others.
        named = re.fullmatch(r"#?(\d{1,3})", text_of(next(iter(cells.values()))))
        if named is not None:
            value = number_of(cells, "diagnosis", where)
            diagnoses[f"{int(named[1]):03}", match[1]] = value
    photographs = listing.find(_PHOTOGRAPHS)
    names = [
        path.stem
        for (patient, eye), path in photographs.items()
        if diagnoses.get((patient, eye)) is None
    ]
    missing = without("diagnosis", names, len(photographs))
    contents = Contents([], str(listing.root), missing=missing)
    for (patient, eye), path in photographs.items():
        disc, cup = (contours.get((patient, eye, kind)) for kind in ("disc", "cup"))
        diagnosis = diagnoses.get((patient, eye))
        contents.rows.append(
            Row(
                len(contents.rows) + 1,
                path.stem,
                path,
                disc_mask=MaskFile(disc, "contours") if disc else None,
                cup_mask=MaskFile(cup, "contours") if cup else None,
                glaucoma=diagnosis if diagnosis in (0, 1) else None,
                patient=patient,
                eye=eye.upper(),
            )
        )
    return contents


LAYOUT = Layout(
    _PHOTOGRAPHS,
    looked_for="FundusImages/RET002OD.jpg",
    labels=("disc", "cup"),
    read=read,
)
