"""Makes the record of one REFUGE photograph and checks its files."""

from typing import Any, NamedTuple

import numpy as np

from mtl_jax.data import images, schema
from mtl_jax.data.field_of_view import Shape
from mtl_jax.data.refuge import official
from mtl_jax.data.refuge.files import SourceFile
from mtl_jax.data.refuge.survey import Case
from mtl_jax.errors import UserError


class Examined(NamedTuple):
    """The record of one photograph, and what is said of its files.

    Attributes:
      record: see `schema.encode_record`; None if the photograph cannot be read. An
        annotation with a problem is absent.
      problems: sentences about what is wrong.
      other_values: number of mask pixels with another value than REFUGE's, which count
        as the nearest.
      conversion: see `images.Photograph`.
    """

    record: dict[str, Any] | None
    problems: list[str]
    other_values: int
    conversion: str = ""


class Decoded(NamedTuple):
    """The contents of one photograph's files.

    Attributes:
      photograph: RGB, or None.
      annotations: `disc_mask`, `cup_mask` (uint8 [H, W]) and `fovea_xy` (native
        pixels), each None if absent.
      problems: sentences about what is wrong.
      other_values: number of mask pixels with another value than REFUGE's.
    """

    photograph: images.Photograph | None
    annotations: dict[str, np.ndarray | None]
    problems: list[str]
    other_values: int = 0


def examine(case: Case, image_size: int, shape: Shape) -> Examined:
    """Makes the record of one photograph.

    Args:
      case: the photograph and its annotations.
      image_size: pixels a side of the model image.
      shape: what it shows of the photograph, see `field_of_view.frame_of`.
    """
    photograph, annotations, problems, other_values = read_case(case)
    if photograph is None:
        return Examined(None, problems, other_values)
    record = schema.encode_record(
        case.stem,
        photograph.picture,
        image_size,
        shape,
        **annotations,
        glaucoma=case.glaucoma,
        source="refuge",
        patient="",
        eye="",
        camera=official.SPLITS[case.split].camera,
        # The challenge's name, which this copy of the file may not have.
        file_name=f"{case.stem}.jpg",
    )
    return Examined(record, problems, other_values, photograph.conversion)


def read_case(case: Case) -> Decoded:
    """Decodes the files of one photograph."""
    absent = {"disc_mask": None, "cup_mask": None, "fovea_xy": None}
    try:
        photograph = images.open_photograph(
            case.photograph.name, case.photograph.read_bytes()
        )
    except UserError as error:
        return Decoded(None, absent, [str(error)])
    size = (photograph.picture.height, photograph.picture.width)
    fovea_xy, problems = _fovea(case, size)
    annotations = {**absent, "fovea_xy": fovea_xy}
    other_values = 0
    if case.mask is not None:
        try:
            disc_mask, cup_mask, other_values = _disc_and_cup(case.mask, size)
        except UserError as error:
            problems.append(str(error))
        else:
            annotations |= {"disc_mask": disc_mask, "cup_mask": cup_mask}
    return Decoded(photograph, annotations, problems, other_values)


def problems_of(case: Case) -> list[str]:
    """Lists the problems of one photograph's files."""
    return read_case(case).problems


def _fovea(case: Case, size: tuple[int, int]) -> tuple[np.ndarray | None, list[str]]:
    """The fovea if it fits a photograph of this (height, width), and the problems."""
    if case.fovea_xy is None:
        return None, []
    height, width = size
    x, y = case.fovea_xy
    if case.sides is not None and case.sides != (min(size), max(size)):
        return None, [
            f"{case.photograph.name} has {width} x {height} pixels, but the table with "
            f"its fovea says {case.sides[0]} x {case.sides[1]}; the official "
            "photographs are not resized."
        ]
    if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
        return None, [
            f"the fovea ({x:g}, {y:g}) lies outside {case.photograph.name}, which has "
            f"{width} x {height} pixels; the official set has it inside, in pixels of "
            "the original photograph."
        ]
    return np.array(case.fovea_xy), []


def _disc_and_cup(
    mask: SourceFile, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Optic disc and cup in the mask of a photograph of this (height, width).

    Returns:
      Both masks, and the number of pixels with other values than REFUGE's.

    Raises:
      UserError: if the mask cannot be read or does not fit.
    """
    grey = images.read_mask(mask.name, mask.read_bytes())
    if grey.shape != size:
        raise UserError(
            f"{mask.name} has {grey.shape[1]} x {grey.shape[0]} pixels, its "
            f"photograph {size[1]} x {size[0]}; the official masks have the size of "
            "their photographs."
        )
    disc_mask, cup_mask = images.disc_and_cup_masks(grey)
    share = np.count_nonzero(disc_mask) / disc_mask.size
    # More than half: the mask's values are inverted.
    if not 0 < share <= 0.5:
        raise UserError(
            f"{mask.name} has {100 * share:.0f} % of its pixels inside the optic "
            "disc; the official masks have the values 0 cup, 128 rim, 255 background."
        )
    return disc_mask, cup_mask, images.count_other_values(grey)
