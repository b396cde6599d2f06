import json

import pytest

from mtl_jax import files
from mtl_jax.errors import UserError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fill(place, text):
    with files.whole_directory(place, ("marker", "more")) as folder:
        (folder / "marker").write_text(text)


def test_text_is_replaced_and_nothing_else_left(tmp_path):
    path = tmp_path / "new" / "a.txt"
    files.write_text(path, "one")
    files.write_text(path, "two")
    assert path.read_text() == "two"
    assert names(path.parent) == ["a.txt"]


def test_text_that_cannot_be_encoded_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        files.write_text(path, "new \ud800")
    assert path.read_text() == "old"


def test_json_comes_back(tmp_path):
    value = {"a": None, "b": [1, 0.1]}
    files.write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == value
    assert text.endswith("}\n")


def test_directory_appears_when_the_block_ends(tmp_path):
    place = tmp_path / "deep" / "out"
    with files.whole_directory(place, ("marker",)) as folder:
        (folder / "marker").write_text("x")
        assert not place.exists()
    assert names(place) == ["marker"]
    assert names(place.parent) == ["out"]
    assert place.stat().st_mode & 0o777 == 0o755


def test_earlier_output_is_replaced(tmp_path):
    place = tmp_path / "out"
    fill(place, "first")
    (place / "more").touch()
    fill(place, "second")
    assert names(place) == ["marker"]
    assert (place / "marker").read_text() == "second"


def test_earlier_output_stays_when_the_block_fails(tmp_path):
    place = tmp_path / "out"
    fill(place, "first")
    with pytest.raises(UnicodeEncodeError):
        fill(place, "second \ud800")
    assert (place / "marker").read_text() == "first"
    assert names(tmp_path) == ["out"]


def test_nothing_is_left_when_the_block_fails(tmp_path):
    with pytest.raises(KeyboardInterrupt), files.whole_directory(tmp_path / "a", ()):
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_empty_directory_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out", "x")
    assert names(tmp_path / "out") == ["marker"]


def test_what_somebody_else_made_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "marker").touch()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "out", tmp_path / "file"):
        with pytest.raises(UserError, match="something else.*another output folder"):
            fill(place, "x")
    assert names(tmp_path) == ["file", "out"]
    assert names(tmp_path / "out") == ["marker", "thesis.tex"]


def test_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written.*another output folder"):
        fill(tmp_path / "file" / "out", "x")


def test_somebody_elses_file_in_a_folder_of_ours_is_refused(tmp_path):
    (tmp_path / "out" / "masks").mkdir(parents=True)
    (tmp_path / "out" / "masks" / "a.png").touch()
    patterns = ("masks/*.png",)
    files.check_replaceable(tmp_path / "out", patterns)
    (tmp_path / "out" / "masks" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"something else.*notes\.txt"):
        files.check_replaceable(tmp_path / "out", patterns)
    assert (tmp_path / "out" / "masks" / "notes.txt").read_text() == "mine"
