"""Sources of photographs: public data sets by their own files, one module each.

A source is a function from a folder to `Row`s. `LAYOUTS` has those of public sets; a
folder with a manifest is `mtl_jax.data.folder`.
"""

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np

from mtl_jax.annotations import LABELS
from mtl_jax.data.sources import (
    drishti_gs1,
    g1020,
    idrid,
    origa,
    papila,
    refuge,
    rim_one_dl,
    smdg,
    splits,
)
from mtl_jax.data.sources.layout import Layout
from mtl_jax.data.sources.listing import Listing
from mtl_jax.data.sources.rows import (
    Contents,
    Problem,
    Row,
    divided_patients,
    some,
    unsuitable,
    without,
)
from mtl_jax.errors import UserError

LAYOUTS: dict[str, Layout] = {
    "drishti_gs1": drishti_gs1.LAYOUT,
    "idrid": idrid.LAYOUT,
    "rim_one_dl": rim_one_dl.LAYOUT,
    "papila": papila.LAYOUT,
    "origa": origa.LAYOUT,
    "g1020": g1020.LAYOUT,
    "smdg": smdg.LAYOUT,
    "refuge": refuge.LAYOUT,
}

# Their photographs are in SMDG as well, squared and under other names.
IN_SMDG = ("drishti_gs1", "g1020", "origa", "papila", "refuge")


def read(name: str, root: pathlib.Path) -> Contents:
    """Reads a public data set without opening its images, but for IDRiD's.

    Without official splits, a hash of their names deals about 60, 20 and 20 % of the
    photographs to the splits. If there is no validation split, it gets about 20 % of
    the training photographs so. Both go by patient.

    Args:
      name: of `LAYOUTS`.
      root: folder of its files.

    Raises:
      UserError: if nothing is found, or files of another data set are.
    """
    layout, listing = LAYOUTS[name], Listing(root)
    there = {path for _, path in listing.matches(layout.photographs)}
    _check_unmixed(name, listing)
    if not there:
        raise UserError(
            f"{root} holds nothing of {name}: no photograph in it or its subfolders has"
            f" a name like {layout.looked_for}; unpack the archives there, or name the "
            "folder that holds them."
        )
    contents = layout.read(listing)
    placed = {path for _, path in listing.matches(layout.placed)}
    _add_missing(contents, layout, [listing.name(path) for path in there - placed])
    contents.missing += listing.repeated
    contents.problems += _twice(contents.rows, listing)
    # Names are of files, but for those in a table.
    contents.problems += [
        Problem(row.number, text)
        for row in contents.rows
        if (text := unsuitable(row.image_id))
    ]
    has_splits = all(row.split for row in contents.rows)
    assign = splits.assign_validation if has_splits else splits.assign
    contents.rows = [
        dataclasses.replace(row, source=name) for row in assign(contents.rows)
    ]
    if divided := divided_patients(contents.rows):
        contents.notes.append(
            "patients with photographs in training and in test by the official split, "
            f"which is kept: {len(divided)} ({some(divided)})."
        )
    return contents


def _check_unmixed(name: str, listing: Listing) -> None:
    """Refuses a folder with the files of another data set beside those of `name`."""
    for other, layout in LAYOUTS.items():
        found = next(listing.matches(layout.photographs), None)
        if found is not None and other != name:
            raise UserError(
                f"{listing.root} holds photographs of {other} "
                f"({listing.name(found[1])}), not only of {name}; name the folder of "
                "one data set."
            )


def _add_missing(contents: Contents, layout: Layout, misplaced: list[str]) -> None:
    """Adds sentences about photographs without place, and without annotations."""
    for label in layout.labels:
        names = [row.image_id for row in contents.rows if not _has(row, label)]
        contents.missing += without(label, names, len(contents.rows))
    if misplaced:
        contents.missing.append(
            "photographs in no folder of the published set, which has them like "
            f"{layout.looked_for}: {len(misplaced)} ({some(sorted(misplaced))})."
        )


def _twice(rows: list[Row], listing: Listing) -> Iterator[Problem]:
    """Photographs with one name, such as one in both official splits."""
    first: dict[str, Row] = {}
    for row in rows:
        if (other := first.setdefault(row.image_id, row)) is not row:
            yield Problem(
                row.number,
                f"{row.image_id} is in {other.split} and {row.split} "
                f"({listing.name(other.image)}, {listing.name(row.image)}); keep one "
                "of them.",
            )


def _has(row: Row, label: str) -> bool:
    return dict(zip(LABELS, row.labels, strict=True))[label]


def found(rows: list[Row]) -> str:
    """A table of the numbers of photographs and annotations, by source and split."""
    lines = [f"{'':26}{'images':>8}" + "".join(f"{label:>10}" for label in LABELS)]
    for source in dict.fromkeys(row.source for row in rows):
        for split in ("train", "validation", "test"):
            members = [r for r in rows if (r.source, r.split) == (source, split)]
            if members:
                counts = np.sum([row.labels for row in members], axis=0)
                lines.append(
                    f"{source + ' ' + split:26}{len(members):8}"
                    + "".join(f"{count:10}" for count in counts)
                )
    return "\n".join(lines)
