"""SMDG-19: photographs of nineteen public sets, squared, with glaucoma and some masks.

Reference:
  Kiefer et al., A Catalog of Public Glaucoma Datasets for Machine Learning
  Applications, ICISDM 2023.
"""

from mtl_jax.data.sources.layout import Layout
from mtl_jax.data.sources.listing import Listing, eye_of, key_of, number_of, text_of
from mtl_jax.data.sources.masks import MaskFile
from mtl_jax.data.sources.rows import Contents, Problem, Row, some

_PHOTOGRAPHS = r"/full-fundus/([^/]+)\.(?:png|jpe?g)"
_FOLDERS = {
    "fundus": "full-fundus",
    "fundus_od_seg": "optic-disc",
    "fundus_oc_seg": "optic-cup",
}
# An expert's mark where there is nothing to draw.
_NOTHING = ("", "not visible", "nan")


def read(listing: Listing) -> Contents:
    """Reads the photographs of the table; there is no official split.

    A suspect (-1) has no diagnosis.
    """
    found = {
        folder: listing.find(rf"/{folder}/([^/]+\.(?:png|jpe?g))")
        for folder in _FOLDERS.values()
    }
    contents, listed = Contents([], str(listing.root)), set()
    for _, where, cells in listing.records(
        r"/metadata[ _-]*standardized\.csv", "names", "types", "fundus"
    ):
        files = {}
        for column, folder in _FOLDERS.items():
            named = text_of(cells.get(key_of(column))).lower()
            if named not in _NOTHING:
                files[column] = found[folder].get((named.rsplit("/", 1)[-1],))
                if files[column] is None:
                    text = f"{where} names {named}, which is not there."
                    contents.problems.append(Problem(len(contents.rows) + 1, text))
        if (path := files.get("fundus")) is None:
            continue
        listed.add(path)
        disc, cup = files.get("fundus_od_seg"), files.get("fundus_oc_seg")
        label = number_of(cells, "types", where)
        name, patient = text_of(cells["names"]), text_of(cells.get("patientid"))
        contents.rows.append(
            Row(
                len(contents.rows) + 1,
                name,
                path,
                disc_mask=MaskFile((disc,), "soft") if disc else None,
                cup_mask=MaskFile((cup,), "soft") if cup else None,
                glaucoma=label if label in (0, 1) else None,
                # Numbers of patients are those of the set that a photograph is from.
                patient=patient and f"{name.rsplit('-', 1)[0]}/{patient}",
                eye=eye_of(cells.get("eye")),
            )
        )
    if others := set(found["full-fundus"].values()) - listed:
        contents.missing.append(
            f"photographs that are not in the table: {len(others)} "
            f"({some(sorted(map(listing.name, others)))})."
        )
    return contents


LAYOUT = Layout(
    _PHOTOGRAPHS,
    looked_for="full-fundus/full-fundus/BEH-1.png",
    labels=(),
    read=read,
)
