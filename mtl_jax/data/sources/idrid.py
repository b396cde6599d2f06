"""IDRiD: foveas of its localisation part, optic discs of its segmentation part.

Reference:
  Porwal et al., Indian Diabetic Retinopathy Image Dataset (IDRiD): A Database for
  Diabetic Retinopathy Screening Research, Data 3:25, 2018.
"""

import dataclasses
import pathlib

import numpy as np
from PIL import Image
from scipy.spatial import distance

from mtl_jax.data import building
from mtl_jax.data.sources.layout import Layout
from mtl_jax.data.sources.listing import Listing, number_of, text_of
from mtl_jax.data.sources.masks import MaskFile
from mtl_jax.data.sources.rows import Contents, Row, some, without

_PHOTOGRAPHS = r"/idrid_\d{2,3}\.jpe?g"
# The grading part has the photographs of the localisation part once more. Folders are
# called "a. Training Set" and "b. Testing Set".
_SPLIT = r"^(?!.*grading).*/(?:[ab]\. ?)?(train|test)[^/]*(?:/.*)?"
# The localisation part counts to 413 and to 103, the segmentation part to 81.
_LOCALISATION = _SPLIT + r"/idrid_(\d{3})\.jpe?g"
_SEGMENTATION = _SPLIT + r"/idrid_(\d{2})\.jpe?g"

# Photographs are compared by this many pixels a side. Five pairs of the 413 training
# photographs are the same there; the next two differ by 2.9 grey levels in the mean.
_LOOK_SIZE, _SAME_LOOK = 32, 1.0


def read(listing: Listing) -> Contents:
    """Reads the photographs of both parts and both official splits.

    Some photographs are in both parts under other numbers. They become one row with
    both annotations, in the split of the localisation part.
    """
    contents = Contents([], str(listing.root))
    localisation = _localisation(listing, contents)
    segmentation = _segmentation(listing, contents)
    rows = _joined(localisation, segmentation, contents)
    contents.rows = [dataclasses.replace(r, number=n) for n, r in enumerate(rows, 1)]
    return contents


def _localisation(listing: Listing, contents: Contents) -> list[Row]:
    foveas = {}
    for match, where, cells in listing.records(
        r"/[^/]*fovea[^/]*(train|test)[^/]*\.csv", "imageno", "xcoordinate"
    ):
        x, y = (number_of(cells, f"{axis}coordinate", where) for axis in "xy")
        number = text_of(cells["imageno"]).lower().removeprefix("idrid_")
        if x is not None and y is not None:
            foveas[match[1], number] = (x, y)
    rows = [
        Row(
            0,
            f"idrid_{split}_{number}",
            path,
            fovea_xy=foveas.get((split, number)),
            split=split,
        )
        for (split, number), path in listing.find(_LOCALISATION).items()
    ]
    names = [row.image_id for row in rows if row.fovea_xy is None]
    contents.missing += without("fovea", names, len(rows))
    return rows


def _segmentation(listing: Listing, contents: Contents) -> list[Row]:
    masks = listing.find(r"/idrid_(\d{2})_od\.tiff?")
    rows = []
    for (split, number), path in listing.find(_SEGMENTATION).items():
        mask = masks.get((number,))
        rows.append(
            Row(
                0,
                f"idrid_segmentation_{number}",
                path,
                disc_mask=MaskFile((mask,), "labels") if mask else None,
                split=split,
            )
        )
    names = [row.image_id for row in rows if row.disc_mask is None]
    contents.missing += without("disc", names, len(rows))
    return rows


def _joined(
    localisation: list[Row], segmentation: list[Row], contents: Contents
) -> list[Row]:
    """Joins rows of the same photograph, by its look.

    A photograph of both parts is in the split of the localisation part. Of copies in
    both splits of a part the one for training is left out; copies in one split count as
    one patient's.
    """
    # Training first.
    localisation, segmentation = (
        sorted(part, key=lambda row: row.split, reverse=True)
        for part in (localisation, segmentation)
    )
    rows = localisation + segmentation
    same = _same_looks([row.image for row in rows])
    joined: dict[int, Row] = {}
    merged, left_out = [], []
    for i, row in enumerate(rows):
        copies = [k for k in joined if same[i, k]]
        if not copies:
            joined[i] = row
        elif copies[0] < len(localisation) <= i:
            for k in copies:
                mask = row.disc_mask or joined[k].disc_mask
                joined[k] = dataclasses.replace(joined[k], disc_mask=mask)
            merged.append(row.image_id)
        else:
            first = joined[copies[0]]
            if first.split != row.split:
                left_out += [joined.pop(k).image_id for k in copies]
            else:
                row = dataclasses.replace(row, patient=first.image_id)
                joined[copies[0]] = dataclasses.replace(first, patient=first.image_id)
            joined[i] = row
    if merged:
        contents.notes.append(
            "photographs of the segmentation part that are also in the localisation "
            f"part are one with those: {len(merged)} ({some(merged)})."
        )
    if left_out:
        contents.notes.append(
            "training photographs that are also in the test split are left out: "
            f"{len(left_out)} ({some(left_out)})."
        )
    return list(joined.values())


def _same_looks(paths: list[pathlib.Path]) -> np.ndarray:
    """Tells which photographs look the same, bool [N, N]."""
    looks = np.array(
        list(
            building.parallel_map(_look, paths, "comparing photographs", processes=True)
        )
    ).reshape(len(paths), -1)
    differences = distance.cdist(looks, looks, "cityblock") / _LOOK_SIZE**2
    return differences < _SAME_LOOK


def _look(path: pathlib.Path) -> np.ndarray:
    """A photograph as a few grey levels; of a damaged one, what is like no other."""
    try:
        with Image.open(path) as image:
            # Decodes an eighth of the resolution, in a fraction of the time.
            image.draft("L", (8 * _LOOK_SIZE, 8 * _LOOK_SIZE))
            small = image.convert("L").resize((_LOOK_SIZE,) * 2, Image.Resampling.BOX)
            return np.asarray(small, np.float32)
    # Pillow raises a dozen kinds; the file is read, and reported, with all others.
    except Exception:
        return np.full((_LOOK_SIZE, _LOOK_SIZE), np.nan, np.float32)


LAYOUT = Layout(
    _PHOTOGRAPHS,
    looked_for="C. Localization/1. Original Images/a. Training Set/IDRiD_001.jpg",
    labels=(),
    read=read,
    placed=r"(?:grading|/(?:[ab]\. ?)?(?:train|test)).*" + _PHOTOGRAPHS,
)
