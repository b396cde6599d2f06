"""The contents of the official REFUGE set.

References:
  Orlando et al., REFUGE Challenge, Medical Image Analysis 59:101570, 2020.
"""

import dataclasses
import re

_NAME = re.compile(r"\s*([gnvt])(\d{4})(\.\w+)?\s*", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class OfficialSplit:
    """One of the three splits, each of 400 photographs.

    Attributes:
      series: initials of the photographs' names, each with its number of photographs.
      camera: the camera that took them.
      photographs: archive with the photographs.
      annotations: archive with masks and spreadsheet.
      spreadsheet: file with the foveas, and the labels if the names do not tell them.
      columns: columns of the spreadsheet.
    """

    series: tuple[tuple[str, int], ...]
    camera: str
    photographs: str
    annotations: str
    spreadsheet: str
    columns: tuple[str, ...]

    @property
    def stems(self) -> list[str]:
        """The names of all photographs without their extension, in order."""
        return [f"{x}{i:04d}" for x, count in self.series for i in range(1, count + 1)]

    @property
    def range(self) -> str:
        """The names of all photographs, in words."""
        return " and ".join(f"{x}0001.jpg to {x}{n:04d}.jpg" for x, n in self.series)


SPLITS = {
    "train": OfficialSplit(
        (("g", 40), ("n", 360)),
        "Zeiss Visucam 500",
        "REFUGE-Training400.zip",
        "Annotation-Training400.zip",
        "Fovea_location.xlsx",
        ("ID", "ImgName", "Fovea_X", "Fovea_Y"),
    ),
    "validation": OfficialSplit(
        (("V", 400),),
        "Canon CR-2",
        "REFUGE-Validation400.zip",
        "REFUGE-Validation400-GT.zip",
        "Fovea_locations.xlsx",
        ("ID", "ImgName", "Glaucoma Label", "Fovea_X", "Fovea_Y"),
    ),
    "test": OfficialSplit(
        (("T", 400),),
        "Canon CR-2",
        "REFUGE-Test400.zip",
        "REFUGE-Test-GT.zip",
        "Glaucoma_label_and_Fovea_location.xlsx",
        ("ID", "ImgName", "Label(Glaucoma=1)", "Fovea_X", "Fovea_Y"),
    ),
}

# Number of photographs with glaucoma in each split.
GLAUCOMA = 40

_SPLIT_OF = {stem: name for name, split in SPLITS.items() for stem in split.stems}


def stem_of(name: str) -> str | None:
    """The official stem of a file name.

    Args:
      name: name of a photograph or mask, in upper or lower case, with or without
        extension.

    Returns:
      A stem such as `g0001` or `T0400`, or None for any other name. Names of REFUGE2,
      with higher numbers, give a stem without a split.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    initial = match[1].lower()
    return (initial if initial in "gn" else initial.upper()) + match[2]


def split_of(stem: str) -> str | None:
    """The split of an official stem; None if REFUGE1 does not have it."""
    return _SPLIT_OF.get(stem)


def label_of(stem: str) -> float | None:
    """The glaucoma label in the name: g or n in the training split, else None."""
    return {"g": 1.0, "n": 0.0}.get(stem[0])
