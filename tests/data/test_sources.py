import re
import shutil

import numpy as np
import pytest
import refuge_trees
import source_trees
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from source_trees import SIZE, TREES

from mtl_jax.data import folder, pipeline, sources
from mtl_jax.data.folds import Fold
from mtl_jax.data.schema import SPLITS
from mtl_jax.data.sources import checks, masks, rows
from mtl_jax.errors import UserError


def as_written(root):
    return root


def another_level(root):
    """As an archive that is unpacked twice, with what systems leave behind."""
    inner = root / "unpacked/again"
    inner.mkdir(parents=True)
    for path in list(root.iterdir()):
        if path.name != "unpacked":
            path.rename(inner / path.name)
    (root / "__MACOSX").mkdir()
    for path in list(inner.rglob("*.*")):
        if path.is_file():
            (root / "__MACOSX" / path.name).write_bytes(b"\0\5\26\7")
    (inner / ".DS_Store").write_bytes(b"\0")
    (inner / "README.txt").write_text("published")
    return root


def upper_case(root):
    for path in sorted(root.rglob("*"), key=lambda p: -len(p.parts)):
        path.rename(path.with_name(path.name.upper()))
    return root


ARRANGEMENTS = [as_written, another_level, upper_case]


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Each tree with what it says; nobody writes to it."""
    base = tmp_path_factory.mktemp("trees")
    return {name: (base / name, write(base / name)) for name, write in TREES.items()}


def assert_mask(found, expected):
    assert (found is None) == (expected is None)
    if expected is not None:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("arrange", ARRANGEMENTS)
@pytest.mark.parametrize("name", TREES)
def test_rows_are_what_the_files_say(trees, tmp_path, name, arrange):
    root, truths = trees[name]
    if arrange is not as_written:
        root = arrange(shutil.copytree(root, tmp_path / "copy"))
    contents = sources.read(name, root)
    assert contents.missing == []
    checks.check([contents])
    found = {row.image_id.lower(): row for row in contents.rows}
    assert set(found) == {image_id.lower() for image_id in truths}
    for image_id, truth in truths.items():
        row = found[image_id.lower()]
        assert row.source == name
        disc, cup = rows.read_masks(row, SIZE)
        assert_mask(disc, truth.disc)
        assert_mask(cup, truth.cup)
        assert row.fovea_xy == truth.fovea
        assert row.glaucoma == truth.glaucoma
        if truth.split is not None:
            assert row.split == truth.split
        else:
            assert row.split in SPLITS
        assert (row.patient, row.eye) == (truth.patient, truth.eye)
        assert row.labels == tuple(
            label is not None
            for label in (truth.glaucoma, truth.disc, truth.cup, truth.fovea)
        )
    assert not rows.divided_patients(contents.rows)


@pytest.mark.parametrize("name", ["drishti_gs1", "idrid", "rim_one_dl", "origa"])
def test_validation_is_drawn_from_the_official_training_split(trees, name):
    root, truths = trees[name]
    by_split = {split: set() for split in SPLITS}
    for row in sources.read(name, root).rows:
        by_split[row.split].add(row.image_id)
    official = {image_id for image_id, t in truths.items() if t.split == "test"}
    assert by_split["test"] == official
    assert by_split["train"]
    assert by_split["validation"]


def test_a_photograph_of_both_parts_of_idrid_is_one(trees):
    root, _ = trees["idrid"]
    (note,) = sources.read("idrid", root).notes
    assert "also in the localisation part are one with those: 1" in note
    assert "(idrid_segmentation_02)" in note


def test_copies_within_idrid(trees, tmp_path):
    root = shutil.copytree(trees["idrid"][0], tmp_path / "copy")
    images = root / "C. Localization/1. Original Images"
    train, test = images / "a. Training Set", images / "b. Testing Set"
    # Recompressed: the same look, other bytes.
    Image.open(train / "IDRiD_001.jpg").save(train / "IDRiD_004.jpg", quality=97)
    shutil.copy(train / "IDRiD_003.jpg", test / "IDRiD_001.jpg")
    contents = sources.read("idrid", root)
    found = {row.image_id: row for row in contents.rows}
    assert "idrid_train_003" not in found
    assert found["idrid_test_001"].split == "test"
    assert any(
        "that are also in the test split are left out: 1 (idrid_train_003)" in n
        for n in contents.notes
    )
    copies = found["idrid_train_001"], found["idrid_train_004"]
    assert copies[0].patient == copies[1].patient == "idrid_train_001"
    assert copies[0].split == copies[1].split


def test_copies_within_the_segmentation_part_of_idrid(trees, tmp_path):
    root = shutil.copytree(trees["idrid"][0], tmp_path / "copy")
    images = root / "A. Segmentation/1. Original Images"
    train, test = images / "a. Training Set", images / "b. Testing Set"
    # One in both splits, and two of a photograph of the localisation part, of which the
    # second has no mask.
    shutil.copy(train / "IDRiD_01.jpg", test / "IDRiD_56.jpg")
    Image.open(train / "IDRiD_02.jpg").save(train / "IDRiD_03.jpg", quality=97)
    contents = sources.read("idrid", root)
    found = {row.image_id: row for row in contents.rows}
    assert "idrid_segmentation_01" not in found
    assert found["idrid_segmentation_56"].split == "test"
    assert any("left out: 1 (idrid_segmentation_01)" in n for n in contents.notes)
    assert "idrid_segmentation_03" not in found
    assert found["idrid_test_002"].disc_mask is not None


def test_idrid_parts_alone(trees, tmp_path):
    for part, count in (("C. Localization", 7), ("A. Segmentation", 3)):
        root = tmp_path / part[0]
        shutil.copytree(trees["idrid"][0] / part, root / part)
        contents = sources.read("idrid", root)
        assert len(contents.rows) == count
        assert not contents.missing


def test_the_grading_part_of_idrid_is_left_out(trees, tmp_path):
    root = shutil.copytree(trees["idrid"][0], tmp_path / "copy")
    grading = root / "B. Disease Grading/1. Original Images/a. Training Set"
    grading.mkdir(parents=True)
    shutil.copy(
        root / "C. Localization/1. Original Images/a. Training Set/IDRiD_001.jpg",
        grading,
    )
    contents = sources.read("idrid", root)
    assert len(contents.rows) == len(trees["idrid"][1])
    assert contents.missing == []


@pytest.mark.parametrize(
    ("name", "pattern", "sentence"),
    [
        ("drishti_gs1", "*drishtiGS_002_ODseg*", "no disc for 1 of 7 photographs"),
        ("drishti_gs1", "*diagnosis.xlsx", "no glaucoma for 7 of 7 photographs"),
        ("idrid", "*Fovea_Center_Testing*", "no fovea for 2 of 7 photographs (idrid_t"),
        ("idrid", "*IDRiD_55_OD.tif", "no disc for 1 of 3 photographs (idrid_seg"),
        ("rim_one_dl", "*-Cup-T.png", "no cup for 5 of 5 photographs (r1_Im002"),
        ("papila", "*RET002OD_cup_exp*", "no cup for 1 of 10 photographs (RET002OD)"),
        ("papila", "*patient_data_os.xlsx", "no diagnosis for 5 of 10 photographs"),
        ("origa", "Masks/002.png", "no disc for 1 of 6 photographs (origa_002)"),
        ("g1020", "G1020.csv", "no glaucoma for 6 of 6 photographs"),
    ],
)
def test_missing_annotations(trees, tmp_path, name, pattern, sentence):
    root = shutil.copytree(trees[name][0], tmp_path / "copy")
    gone = list(root.rglob(pattern))
    assert gone
    for path in gone:
        path.unlink()
    missing = sources.read(name, root).missing
    assert any(sentence in text for text in missing), missing


def test_missing_annotations_are_refused_or_allowed(trees, tmp_path, capsys):
    root = shutil.copytree(trees["origa"][0], tmp_path / "copy")
    (root / "ORIGA/Masks/001.png").unlink()
    options = {"source": f"origa:{root}", "image_size": 32, "name": "o"}
    with pytest.raises(
        UserError,
        match="no disc for 1 of 6 photographs \\(origa_001\\).*\n.*\n.*allow_missing",
    ):
        folder.build(tmp_path / "data", **options)
    assert not (tmp_path / "data").exists()
    version_dir = folder.build(tmp_path / "data", **options, allow_missing=True)
    assert "no disc for 1 of 6 photographs (origa_001)" in capsys.readouterr().err
    has_disc = [record["has_label"][1] for record in records(version_dir).values()]
    assert sum(has_disc) == 5


def test_photographs_outside_of_the_official_folders(trees, tmp_path):
    root = shutil.copytree(trees["drishti_gs1"][0], tmp_path / "copy")
    source_trees.write_photograph(root / "new/drishtiGS_099.png", 99)
    (text,) = sources.read("drishti_gs1", root).missing
    assert "photographs in no folder of the published set" in text
    assert ": 1 (new/drishtiGS_099.png)" in text


def test_a_file_that_is_there_twice(trees, tmp_path):
    root = shutil.copytree(trees["origa"][0], tmp_path / "copy")
    shutil.copytree(root / "ORIGA/Masks", root / "old/Masks")
    missing = sources.read("origa", root).missing
    assert (
        "old/Masks/001.png and ORIGA/Masks/001.png are the same by name" in missing[0]
    )


def test_a_photograph_in_both_official_splits(trees, tmp_path):
    root = shutil.copytree(trees["drishti_gs1"][0], tmp_path / "copy")
    (path,) = root.rglob("drishtiGS_002.png")
    (test,) = root.rglob("drishtiGS_001.png")
    shutil.copy(path, test.with_name(path.name))
    with pytest.raises(
        UserError, match=r"drishtiGS_002 is in \w+ and \w+ \(.*keep one"
    ):
        checks.check([sources.read("drishti_gs1", root)])


def test_a_table_of_smdg_that_names_what_is_not_there(trees, tmp_path):
    root = shutil.copytree(trees["smdg"][0], tmp_path / "copy")
    (root / "optic-disc/optic-disc/PAPILA-1.png").unlink()
    (root / "full-fundus/full-fundus/PAPILA-2.png").unlink()
    source_trees.write_photograph(root / "full-fundus/full-fundus/FIVES-1.png", 0)
    (root / "metadata.csv").write_text("names,types,fundus\nBEH-1,1,/x.png\n")
    contents = sources.read("smdg", root)
    assert len(contents.rows) == len(trees["smdg"][1]) - 1
    assert [p.text.split(" names ")[1] for p in contents.problems] == [
        "/optic-disc/papila-1.png, which is not there.",
        "/full-fundus/papila-2.png, which is not there.",
    ]
    (text,) = contents.missing
    assert "not in the table: 1 (full-fundus/full-fundus/FIVES-1.png)" in text


def test_a_name_of_smdg_that_no_file_can_have(trees, tmp_path):
    root = shutil.copytree(trees["smdg"][0], tmp_path / "copy")
    (table,) = root.rglob("metadata*standardized.csv")
    text = table.read_text()
    table.write_text(text.replace(",PAPILA-1,", ",../PAPILA-1,"))
    with pytest.raises(UserError, match=r"'\.\./PAPILA-1' cannot be a file name"):
        checks.check([sources.read("smdg", root)])


@pytest.mark.parametrize("other", ["g1020", "rim_one_dl", "idrid"])
def test_files_of_two_data_sets(trees, tmp_path, other):
    shutil.copytree(trees["origa"][0], tmp_path, dirs_exist_ok=True)
    shutil.copytree(trees[other][0], tmp_path, dirs_exist_ok=True)
    sentence = f"holds photographs of {other} \\(.*not only of origa; name the folder"
    with pytest.raises(UserError, match=sentence):
        sources.read("origa", tmp_path)
    # One of them has a folder of its own.
    assert len(sources.read("origa", tmp_path / "ORIGA").rows) == 6


def test_refuge_is_a_source_too(tmp_path):
    root = refuge_trees.write(refuge_trees.official(), tmp_path / "refuge")
    contents = sources.read("refuge", root)
    assert len(contents.missing) == 11
    found = {row.image_id: row for row in contents.rows}
    assert set(found) == set(refuge_trees.eyes())
    for stem, eye in refuge_trees.eyes().items():
        row = found[stem]
        assert (row.split, row.glaucoma, row.fovea_xy) == (
            eye.split,
            eye.glaucoma,
            eye.fovea_xy,
        )
        disc, cup = rows.read_masks(row, eye.size)
        np.testing.assert_array_equal(disc, eye.mask < 255)
        np.testing.assert_array_equal(cup, eye.mask == 0)
    packed = refuge_trees.write(refuge_trees.archived(), tmp_path / "packed")
    with pytest.raises(UserError, match="holds nothing of refuge: .*unpack"):
        sources.read("refuge", packed)
    source_trees.write_photograph(packed / "T0002.jpg", 0)
    with pytest.raises(UserError, match=r"\.zip holds .*; unpack it to read"):
        sources.read("refuge", packed)


def test_refuge_beside_another_data_set(trees, tmp_path):
    root = shutil.copytree(trees["g1020"][0], tmp_path / "copy")
    source_trees.write_photograph(root / "REFUGE/test/Images/T0001.jpg", 0)
    with pytest.raises(UserError, match=r"photographs of refuge \(REFUGE/test/Imag"):
        sources.read("g1020", root)


def test_nothing_found_tells_what_was_looked_for(tmp_path):
    (tmp_path / "ORIGA.zip").write_bytes(b"PK")
    for name in sources.LAYOUTS:
        with pytest.raises(UserError, match=f"holds nothing of {name}: .*unpack") as e:
            sources.read(name, tmp_path)
        assert sources.LAYOUTS[name].looked_for in str(e.value)


def test_damaged_tables_and_contours(trees, tmp_path):
    root = shutil.copytree(trees["papila"][0], tmp_path / "copy")
    (contour,) = root.rglob("RET002OD_cup_exp1.txt")
    contour.write_text("1 2\n3 4\n")
    (other,) = root.rglob("RET002OD_disc_exp2.txt")
    other.write_text("one two\n")
    with pytest.raises(UserError) as caught:
        checks.check([sources.read("papila", root)])
    assert "RET002OD_cup_exp1.txt is no contour of three points" in str(caught.value)
    assert "RET002OD_disc_exp2.txt is no contour (could not convert" in str(
        caught.value
    )
    (table,) = root.rglob("patient_data_od.xlsx")
    table.write_bytes(b"PK")
    with pytest.raises(UserError, match="is a damaged table"):
        sources.read("papila", root)


def test_a_table_with_other_columns(trees, tmp_path):
    root = shutil.copytree(trees["origa"][0], tmp_path / "copy")
    (root / "ORIGA/OrigaList.csv").write_text("file,label\n001.jpg,1\n")
    with pytest.raises(UserError, match=r"OrigaList\.csv has no columns filename,"):
        sources.read("origa", root)
    (root / "ORIGA/OrigaList.csv").write_text("Filename,Glaucoma\n001.jpg,yes\n")
    with pytest.raises(UserError, match="row 2 has 'yes' for glaucoma"):
        sources.read("origa", root)


def test_class_masks_have_three_values(trees, tmp_path):
    root = shutil.copytree(trees["g1020"][0], tmp_path / "copy")
    disc, _ = source_trees.structures(0)
    source_trees.write_values(root / "G1020/Masks/image_0.png", 128 * disc)
    with pytest.raises(UserError, match="image_0.png has the value 128; its val"):
        checks.check([sources.read("g1020", root)])


def test_without_a_set_origa_is_divided_by_name(trees, tmp_path):
    root = shutil.copytree(trees["origa"][0], tmp_path / "copy")
    table = root / "ORIGA/OrigaList.csv"
    table.write_text(re.sub(r"Set|,[AB],", ",,", table.read_text()))
    found = [row.split for row in sources.read("origa", root).rows]
    assert set(found) == set(SPLITS)


def test_patients_that_an_official_split_divides_are_told(trees, tmp_path):
    root, _ = trees["drishti_gs1"]
    root = shutil.copytree(root, tmp_path / "copy")
    table = [["Drishti-GS File", "Patient ID", "Total"]]
    names = ("001", "002", "003", "004", "008", "010", "012")
    table += [[f"drishtiGS_{n}", f"P{i // 2}", "Normal"] for i, n in enumerate(names)]
    source_trees.write_book(root / "Drishti-GS1_diagnosis.xlsx", table)
    contents = sources.read("drishti_gs1", root)
    assert (
        "training and in test by the official split, which is kept: 2"
        in contents.notes[0]
    )
    by_name = {row.image_id: row.split for row in contents.rows}
    assert by_name["drishtiGS_001"] == by_name["drishtiGS_003"] == "test"


# Polygons.

corner = st.tuples(*[st.floats(-8, 40, width=32).map(lambda v: v + 0.0371)] * 2)


@given(st.lists(corner, min_size=3, max_size=9))
def test_polygons_are_filled_by_the_even_odd_rule(points):
    """By another way: the parity of the winding number, from angles."""
    centres = np.stack(np.meshgrid(np.arange(33), np.arange(21)), -1).reshape(-1, 1, 2)
    to_corner = np.array(points) - centres
    direction = np.arctan2(to_corner[..., 1], to_corner[..., 0])
    turns = np.roll(direction, -1, axis=1) - direction
    turns = (turns + np.pi) % (2 * np.pi) - np.pi
    winding = np.rint(turns.sum(axis=1) / (2 * np.pi)).astype(int)
    # On an edge an angle is half a turn, and either is right.
    on_edge = (np.pi - np.abs(turns) < 1e-6).any(axis=1)
    found = masks.fill_polygon(np.array(points), (21, 33)).ravel()
    np.testing.assert_array_equal(found[~on_edge], winding[~on_edge] % 2)


def test_a_polygon_of_whole_numbers_has_half_of_its_edge():
    square = np.array([(2, 1), (5, 1), (5, 4), (2, 4)], float)
    expected = np.zeros((6, 8), np.uint8)
    expected[1:4, 2:5] = 1
    np.testing.assert_array_equal(masks.fill_polygon(square, (6, 8)), expected)


# Whole data sets.


def records(version_dir):
    data = tfds.builder_from_directory(version_dir)
    return {
        record["image_id"].decode(): {**record, "split": split}
        for split in data.info.splits
        for record in data.as_data_source(split)
    }


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with a manifest: two patients of two clinics."""
    root = tmp_path_factory.mktemp("own") / "clinic"
    lines = ["image_id,image,fovea_x,fovea_y,patient,source,split"]
    for i in range(4):
        source_trees.write_photograph(root / f"{i}.jpg", 50 + i)
        place = ("north", "")[i // 2]
        split = ("train", "test")[i // 2]
        lines.append(f"own{i},{i}.jpg,{i + 5},7.5,{i // 2},{place},{split}")
    (root / "manifest.csv").write_text("\n".join(lines))
    return root


def named(trees, *names):
    return [f"{name}:{trees[name][0]}" for name in names]


def test_one_data_set_of_all_sources(trees, own, tmp_path, capsys):
    names = [name for name in TREES if name != "smdg"]
    source = ",".join([*named(trees, *names), f"mine:{own}"])
    options = {"image_size": 32, "name": "all"}
    # The trees have the same photographs.
    with pytest.raises(
        UserError, match="(?s)origa has .*accept=two_diagnoses,two_splits"
    ):
        folder.build(tmp_path, source, **options)
    accept = ["two_splits", "two_diagnoses"]
    version_dir = folder.build(tmp_path, source, **options, accept=accept)
    assert version_dir.relative_to(tmp_path).parts[:2] == ("fundus_folder", "all-32px")
    found = records(version_dir)
    assert len(found) == 4 + sum(len(trees[name][1]) for name in names)
    for name in names:
        for image_id, truth in trees[name][1].items():
            record = found[image_id]
            assert record["source"].decode() == name
            patient = f"{name}/{truth.patient}" if truth.patient else ""
            assert record["patient"].decode() == patient
            assert record["eye"].decode() == truth.eye
            labels = (truth.glaucoma, truth.disc, truth.cup, truth.fovea)
            assert record["has_label"].tolist() == [v is not None for v in labels]
            for key, mask in (("disc", truth.disc), ("cup", truth.cup)):
                native = record[f"native_{key}_mask"][..., 0]
                np.testing.assert_array_equal(
                    native, np.zeros(SIZE) if mask is None else mask
                )
            if truth.fovea is not None:
                np.testing.assert_array_equal(record["native_fovea_xy"], truth.fovea)
    assert [found[f"own{i}"]["source"] for i in range(4)] == [
        b"north",
        b"north",
        b"mine",
        b"mine",
    ]
    assert found["own0"]["patient"] == b"mine/0"
    out, err = capsys.readouterr()
    table = {line.rsplit(maxsplit=5)[0]: line.split()[-5:] for line in out.splitlines()}
    # Images, glaucoma, disc, cup, fovea.
    assert table["idrid test"] == ["3", "0", "2", "0", "2"]
    assert table["mine test"] == ["2", "0", "0", "0", "2"]
    assert "are one with those: 1 (idrid_segmentation_02)" in err
    # The folds of this data set keep patients together.
    builder = pipeline.open_dataset(str(tmp_path), "fundus_folder/all-32px")
    for number in range(3):
        train, validation = (
            set(pipeline.open_split(builder, split, Fold(number, 3)).patients()) - {""}
            for split in ("train", "validation")
        )
        assert not train & validation
        assert train
    table = pipeline.open_split(builder, "test")
    assert {table.details(i)["source"] for i in range(len(table))} == {*names, "mine"}
    # The same command again finds it built.
    assert folder.build(tmp_path, source, **options) == version_dir


def test_a_bare_folder_may_have_commas_and_colons(own, tmp_path):
    odd = shutil.copytree(own, tmp_path / "a,b:c")
    version_dir = folder.build(tmp_path / "data", odd, image_size=32)
    assert version_dir.parent.name == "a_b_c-32px"
    assert records(version_dir)["own2"]["source"].decode() == "a,b:c"


def test_a_folder_that_is_alone_may_move(own, tmp_path):
    first = shutil.copytree(own, tmp_path / "first")
    table = first / "manifest.csv"
    lines = [
        line.replace("source", "").split(",") for line in table.read_text().split()
    ]
    table.write_text("\n".join(",".join([*x[:5], x[6]]) for x in lines))
    version_dir = folder.build(tmp_path / "data", first, image_size=32, name="x")
    assert {r["source"] for r in records(version_dir).values()} == {b""}
    second = first.rename(tmp_path / "second")
    folder.build(tmp_path / "data", second, image_size=32, name="x")
    with pytest.raises(UserError, match="built from other contents of north:"):
        # Its photographs would be of a source with a name.
        folder.build(tmp_path / "data", f"north:{second}", image_size=32, name="x")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("idrd:{own}/..", "no manifest.csv, and 'idrd' is none of .*idrid, rim_one_dl"),
        ("origa:{own}/nowhere", "nowhere is not a directory"),
        ("mine:{own},mine:{own}", "Two sources of .* have one name"),
        ("mine:{own},yours:{own}", "both have an image_id own0"),
        ("{smdg},{origa}", "smdg has the photographs of origa too; leave one"),
    ],
)
def test_unsuitable_sources(trees, own, tmp_path, source, sentence):
    places = dict(zip(TREES, named(trees, *TREES), strict=True))
    with pytest.raises(UserError, match=sentence):
        folder.build(tmp_path, source.format(own=own, **places), image_size=32)
    assert not any(tmp_path.iterdir())


def test_one_manifest_for_several_sources(trees, own, tmp_path):
    source = ",".join([*named(trees, "origa"), f"mine:{own}"])
    with pytest.raises(UserError, match="--manifest names the table of one source"):
        folder.build(tmp_path, source, manifest=own / "manifest.csv")
