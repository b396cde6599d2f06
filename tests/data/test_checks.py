"""Annotations that are hardly ever meant are named by kind."""

import io
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mask_files import CUP, DISC, SIZE, WRONG, circle, fundus, saved
from PIL import Image

from mtl_jax.data.sources import checks
from mtl_jax.data.sources.checks import KINDS
from mtl_jax.data.sources.masks import MaskFile
from mtl_jax.data.sources.rows import Contents, Row
from mtl_jax.errors import UserError


@pytest.fixture
def photograph(tmp_path):
    return saved(tmp_path / "eye.png", fundus())


def kinds_of(row, accept=()):
    problems = checks.examine(row, frozenset(accept)).problems
    assert all(problem.number == row.number for problem in problems)
    return [problem.kind for problem in problems]


@pytest.mark.parametrize("name", WRONG)
def test_wrong_masks_are_named_unless_they_are_meant(tmp_path, photograph, name):
    column, pixels, kind = WRONG[name]
    path = saved(tmp_path / "mask.png", pixels)
    reading = "refuge" if column == "mask" else "binary"
    row = Row(7, "a", photograph, **{column: MaskFile((path,), reading)})
    (problem,) = checks.examine(row).problems
    assert (problem.number, problem.kind) == (7, kind)
    assert str(path) in problem.text
    # Another kind may be found next.
    assert kind not in kinds_of(row, [kind])
    assert kinds_of(row, KINDS) == []


def test_swapped_masks(tmp_path, photograph):
    disc = MaskFile((saved(tmp_path / "d.png", 255 * DISC.astype(np.uint8)),))
    cup = MaskFile((saved(tmp_path / "c.png", 255 * CUP.astype(np.uint8)),))
    beside = MaskFile(
        (saved(tmp_path / "b.png", np.roll(255 * CUP.astype(np.uint8), 14, axis=1)),)
    )
    assert kinds_of(Row(1, "a", photograph, disc, cup)) == []
    assert kinds_of(Row(1, "a", photograph, cup, disc)) == ["cup_outside_disc"]
    assert kinds_of(Row(1, "a", photograph, disc, beside)) == ["cup_outside_disc"]
    # A cup that is nearly the whole disc, which then hides in it.
    nearly = circle(100, 60, 14)
    full = MaskFile((saved(tmp_path / "f.png", 255 * nearly.astype(np.uint8)),))
    assert kinds_of(Row(1, "a", photograph, disc, full)) == []
    assert kinds_of(Row(1, "a", photograph, full, disc)) == ["cup_outside_disc"]


@given(
    st.integers(6, 40),
    st.floats(0.3, 0.9),
    st.sampled_from(["binary", "labels 0 and 1", "refuge", "two greys"]),
    st.one_of(st.none(), st.integers(60, 95)),
    st.booleans(),
)
def test_right_masks_are_not_named(radius, ratio, values, quality, smooth):
    """Of any size, as PNG or JPEG, with sharp and with smooth edges."""
    disc = circle(90, 60, radius)
    cup = circle(90, 60, radius * ratio)
    reading = "refuge" if values == "refuge" else "binary"
    if values == "refuge":
        mask = np.select([cup, disc], [0, 128], 255).astype(np.uint8)
    else:
        outside, inside = {"binary": (0, 255), "two greys": (40, 200)}.get(
            values, (0, 1)
        )
        mask = np.where(disc, inside, outside).astype(np.uint8)
    picture, file = Image.fromarray(mask), io.BytesIO()
    if values != "labels 0 and 1":
        if smooth:
            small = picture.resize((80, 60), Image.Resampling.BILINEAR)
            picture = small.resize(SIZE[::-1], Image.Resampling.BILINEAR)
        if quality:
            picture.save(file, "JPEG", quality=quality)
            picture = Image.open(file)
            picture.load()
    grey = np.array(picture)
    where = MaskFile((pathlib.Path("mask"),), reading)
    found = checks.Mask("mask", where, picture, grey, fundus())
    assert [check.kind for check in checks.CHECKS if check.is_found(found)] == []


def test_all_kinds_are_listed_with_what_accepts_them(tmp_path, photograph):
    rows = []
    for number, (column, pixels, _) in enumerate(WRONG.values(), start=2):
        path = saved(tmp_path / f"{number}.png", pixels)
        reading = "refuge" if column == "mask" else "binary"
        mask = {column: MaskFile((path,), reading)}
        rows.append(Row(number, f"{number}", photograph, **mask))
    with pytest.raises(UserError) as caught:
        checks.check([Contents(rows, "all.csv", table="all.csv")])
    first, *lines, more, accept = str(caught.value).splitlines()
    assert first == f"all.csv has {len(WRONG)} problems:"
    assert [line.split(":")[0] for line in lines] == [
        f"  all.csv row {number}" for number in range(2, 12)
    ]
    assert more.strip() == f"and {len(WRONG) - 10} more"
    named = {kind for _, _, kind in WRONG.values()}
    assert accept == (
        f"If they are meant, say so by --accept={','.join(sorted(named))}."
    )
    checks.check([Contents(rows, "all.csv")], frozenset(KINDS))


def reported(rows, accept=()):
    """Lines of the report, without the first."""
    contents = Contents(rows, "t.csv", table="t.csv")
    try:
        checks.check([contents], frozenset(accept))
    except UserError as error:
        return str(error).splitlines()[1:]
    return []


@pytest.mark.parametrize(
    ("fovea", "kind"),
    [
        ((60.0, 64.0), None),
        ((23.5, 60.0), None),
        ((0.0, 0.0), "fovea_at_origin"),
        ((0.0, 1.0), "fovea_outside_field"),
        ((12.0, 60.0), "fovea_outside_field"),
        ((38.0, 14.0), "fovea_outside_field"),
    ],
)
def test_foveas_that_no_eye_has(photograph, fovea, kind):
    row = Row(3, "a", photograph, fovea_xy=fovea)
    assert kinds_of(row) == ([kind] if kind else [])
    assert kinds_of(row, KINDS) == []


@given(st.randoms(use_true_random=False), st.integers(5, 30))
def test_a_fovea_with_x_and_y_swapped(random, count):
    """It lies below or above its disc, as no other does; or all of them do."""
    found = []
    for number in range(count):
        beside, below = 2.6 + random.uniform(-0.5, 0.5), random.uniform(0, 0.7)
        found.append((Contents([], "t"), examined(number, (beside, below))))
    assert list(checks._far_foveas(found)) == []
    found[2] = (found[2][0], examined(2, (0.4, -2.2)))
    ((_, problem),) = checks._far_foveas(found)
    assert (problem.number, problem.kind) == (2, "fovea_far")
    swapped = [(c, examined(e.row.number, e.fovea[::-1])) for c, e in found[3:]]
    if len(swapped) >= 5:
        assert len(list(checks._far_foveas(swapped))) == len(swapped)


def examined(number, fovea):
    row = Row(number, str(number), pathlib.Path("x"), fovea_xy=(1.0, 2.0))
    return checks.Examined(row, [], fovea=fovea)


def test_where_a_fovea_lies_is_measured_in_disc_diameters(tmp_path, photograph):
    disc = MaskFile((saved(tmp_path / "d.png", 255 * DISC.astype(np.uint8)),))
    found = checks.examine(Row(1, "a", photograph, disc, fovea_xy=(40.0, 66.0)))
    # The disc of radius 15 is around (100, 60).
    np.testing.assert_allclose(found.fovea, (2, 0.2), atol=0.01)


def test_the_same_pixels_in_two_splits_or_with_two_diagnoses(tmp_path, photograph):
    copy = tmp_path / "copy.bmp"
    Image.open(photograph).save(copy)
    other = saved(tmp_path / "other.png", fundus(1))
    first = Row(2, "a", photograph, split="train", glaucoma=1.0)
    assert reported([first, Row(3, "b", other, split="test", glaucoma=0.0)]) == []
    assert reported([first, Row(3, "b", copy, split="train", glaucoma=1.0)]) == []
    assert reported([first, Row(3, "b", copy, split="train")]) == []
    both = [first, Row(3, "b", copy, split="test", glaucoma=0.0)]
    splits, diagnoses, accept = reported(both)
    for line, what in ((splits, "split (test, not train)"), (diagnoses, "diagnosis (")):
        assert line.strip().startswith(f"t.csv row 3: {copy} has the pixels of ")
        assert f"{photograph} (t.csv row 2)" in line
        assert f"another {what}" in line
    assert accept.endswith("--accept=two_diagnoses,two_splits.")
    assert len(reported(both, ["two_splits"])) == 2
    assert reported(both, ["two_splits", "two_diagnoses"]) == []


def test_the_same_pixels_in_two_sources(tmp_path, photograph):
    copy = saved(tmp_path / "copy.png", fundus())
    one = Contents([Row(1, "a", photograph, split="train")], "one")
    two = Contents([Row(1, "b", copy, split="test")], "two")
    with pytest.raises(UserError, match=rf"two has 1 .*\n.*of {photograph} \(a\) and"):
        checks.check([one, two])


def test_the_flag_and_the_page_name_all_kinds():
    root = pathlib.Path(__file__).parents[2]
    page = (root / "docs/datasets.md").read_text()
    flag = (root / "mtl_jax/commands/prepare_data.py").read_text()
    for kind in KINDS:
        assert f"`{kind}`" in page
        assert kind in flag
