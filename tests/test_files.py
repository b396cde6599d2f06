import contextlib
import csv
import errno
import json
import os
import shutil
import subprocess
import sys

import full_disk
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mtl_jax import files
from mtl_jax.errors import UserError
from mtl_jax.training import checkpoints


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def contents(folder):
    """What a person sees in a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name[0] != "."
    }


def fill(place, text, *more, used=()):
    with files.whole_directory(place, used) as folder:
        (folder / "masks").mkdir()
        (folder / "masks" / "a.png").write_text(text)
        for name in more:
            (folder / name).write_text(text)


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
    assert names(tmp_path) == ["a.txt"]


def test_json_comes_back(tmp_path):
    value = {"a": None, "b": [1, 0.1]}
    files.write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == value
    assert text.endswith("}\n")


def test_directory_appears_when_the_block_ends(tmp_path):
    place = tmp_path / "deep" / "out"
    with files.whole_directory(place) as folder:
        (folder / "a.txt").write_text("x")
        assert not place.exists()
    assert contents(place.parent) == {"out/a.txt": "x"}
    assert names(place.parent) == ["out"]


def test_earlier_output_is_replaced(tmp_path):
    place = tmp_path / "out"
    fill(place, "first", "b", "c")
    # Somebody may take files away, and neither empty folders nor what file managers
    # leave behind hold work.
    (place / "b").unlink()
    (place / ".DS_Store").write_text("positions of icons")
    (place / "empty").mkdir()
    shutil.copytree(place, tmp_path / "copy")
    for folder in (place, tmp_path / "copy"):
        fill(folder, "second")
        assert contents(folder) == {"masks/a.png": "second"}
    assert names(tmp_path) == ["copy", "out"]


def test_earlier_output_stays_when_the_block_fails(tmp_path):
    place = tmp_path / "out"
    fill(place, "first")
    with pytest.raises(UnicodeEncodeError):
        fill(place, "second \ud800")
    assert contents(place) == {"masks/a.png": "first"}
    assert names(tmp_path) == ["out"]
    fill(place, "third")


def save_picture(folder):
    noise = np.random.default_rng(0).integers(256, size=(100, 100, 3))
    Image.fromarray(noise.astype(np.uint8)).save(folder / "a.png")


def save_tensors(folder):
    safetensors.numpy.save_file({"a": np.zeros(9999)}, folder / "a.safetensors")


def save_rows(folder):
    files.write_csv(folder / "a.csv", ["a"], ({"a": i} for i in range(9999)))


def save_json(folder):
    files.write_json(folder / "a.json", [*range(9999)])


def save_within(folder):
    fill(folder / "within", "x" * 9999)


def save_checkpoint(folder):
    with contextlib.closing(checkpoints.Checkpoints(folder)) as opened:
        opened.save_network({"params": {"a": np.arange(9999.0)}}, {"a": 1})
        opened.wait()


@pytest.mark.parametrize(
    "save",
    [
        save_picture,
        save_tensors,
        save_rows,
        save_json,
        save_within,
        save_checkpoint,
    ],
)
def test_a_full_disk_is_said_and_the_earlier_output_stays(save, tmp_path):
    place = tmp_path / "out"
    fill(place, "first")
    with (
        full_disk.limit(4000),
        pytest.raises(UserError, match=r"out.* cannot be written \(File too large\)"),
        files.whole_directory(place) as folder,
    ):
        save(folder)
    assert contents(place) == {"masks/a.png": "first"}
    assert names(tmp_path) == ["out"]


def test_a_text_that_does_not_fit_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with full_disk.limit(99), pytest.raises(OSError, match="File too large") as caught:
        files.write_text(path, "x" * 100)
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_nothing_is_left_when_the_block_fails(tmp_path):
    with pytest.raises(KeyboardInterrupt), files.whole_directory(tmp_path / "a"):
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_empty_directory_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out", "x")
    assert contents(tmp_path / "out") == {"masks/a.png": "x"}


def write_own(place):
    (place / "masks" / "own.png").write_text("x")


def edit(place):
    (place / "masks" / "a.png").write_text("X")


def link_file(place):
    (place / "b").symlink_to(place / "masks" / "a.png")


def link_folder(place):
    (place / "more").symlink_to(place / "masks")


def lose_record(place):
    (place / ".mtl_jax.json").unlink()


def spoil_record(place):
    (place / ".mtl_jax.json").write_text("[]")


def grow(place, *names, text="x"):
    with files.growing_directory(place) as folder:
        for name in names:
            folder.write(f"pictures/{name}", text.encode())
            folder.add_row("table.csv", ["name", "more"], {"name": name})


def test_a_growing_folder_holds_what_is_made_so_far(tmp_path):
    place = tmp_path / "deep" / "out"
    fill(place, "earlier")
    with files.growing_directory(place) as folder:
        assert contents(place) == {"masks/a.png": "earlier"}
        folder.write("pictures/ä", b"1")
        assert contents(place) == {"pictures/ä": "1"}
        folder.add_row("table.csv", ["a", "b"], {"b": "=1", "c": 2})
        assert (place / "table.csv").read_text() == "a,b\n,'=1\n"
        folder.add_row("table.csv", ["a", "b"], {"a": 0})
        assert (place / "table.csv").read_text() == "a,b\n,'=1\n0,\n"
        with pytest.raises(UserError, match="rename the file that it is made from"):
            folder.write("x" * 300, b"2")
        for another in (fill, grow):
            with pytest.raises(UserError, match="Another process writes to .*out; w"):
                another(place, "x")
    assert contents(place).keys() == {"pictures/ä", "table.csv"}
    grow(place, "b")
    assert contents(place) == {"pictures/b": "x", "table.csv": "name,more\nb,\n"}
    fill(place, "whole again")
    assert contents(place) == {"masks/a.png": "whole again"}
    assert names(place.parent) == ["out"]


def test_rows_of_several_tables_come_together(tmp_path):
    def rows(*names):
        return {name: (["number"], {"number": 1}) for name in names}

    with files.growing_directory(tmp_path / "out") as folder:
        folder.add_rows(rows("a.csv", "b.csv"))
        (tmp_path / "out/c.csv").write_text("mine")
        with pytest.raises(UserError, match=r"c\.csv is there already"):
            folder.add_rows(rows("a.csv", "c.csv"))
        folder.add_rows(rows("b.csv"))
    assert contents(tmp_path / "out") == {
        "a.csv": "number\n1\n",
        "b.csv": "number\n1\n1\n",
        "c.csv": "mine",
    }


def test_a_table_that_ended_before_its_first_row_is_continued_with_a_head(
    tmp_path, monkeypatch
):
    append, row = files._append, ("table.csv", ["name"], {"name": "a"})

    def on_a_full_disk(*lines):
        if any(b"name\r\n" in line for _, line in lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(*lines)

    monkeypatch.setattr(files, "_append", on_a_full_disk)
    with (
        pytest.raises(UserError, match="make room"),
        files.growing_directory(tmp_path / "out") as folder,
    ):
        folder.add_row(*row)
    assert contents(tmp_path / "out") == {"table.csv": ""}
    monkeypatch.undo()
    with files.growing_directory(tmp_path / "out", continues=True) as folder:
        folder.add_row(*row)
    assert contents(tmp_path / "out") == {"table.csv": "name\na\n"}


def test_a_folder_in_which_nothing_grew_is_not_there(tmp_path):
    grow(tmp_path / "new")
    fill(tmp_path / "old", "x")
    grow(tmp_path / "old")
    assert contents(tmp_path) == {"old/masks/a.png": "x"}
    assert names(tmp_path) == ["old"]


KILLED = r"""
import itertools, os, pathlib, signal, sys
from mtl_jax import files

def grow(place, *names):
    with files.growing_directory(place) as folder:
        for name in names:
            folder.write(f"pictures/{name}", name.encode() * 9)
            folder.add_row("table.csv", ["name"], {"name": name})

def kill(frame, event, argument):
    if frame.f_code.co_filename == files.__file__:
        if event == "line" and next(count) == line:
            os.kill(os.getpid(), signal.SIGKILL)
        return kill

# A process for every third line that is executed.
for line in itertools.count(step=3):
    place, count = pathlib.Path(sys.argv[1], str(line)), itertools.count()
    grow(place, "x", "y")
    if (child := os.fork()) == 0:
        sys.settrace(kill)
        grow(place, "a", "b")
        os._exit(0)
    if os.WIFEXITED(os.waitpid(child, 0)[1]):
        break
"""


def test_a_process_killed_anywhere_leaves_what_is_whole_and_ours(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=True)
    tables = set()
    for place in tmp_path.iterdir():
        left = contents(place)
        table = left.pop("table.csv", "").split()
        for path, text in left.items():
            assert text == path[-1] * 9
        tables.add(tuple(table))
        # A row comes after its picture.
        assert {f"pictures/{name}" for name in table[1:] if name in "ab"} <= left.keys()
        grow(place, "new")
        assert contents(place).keys() == {"pictures/new", "table.csv"}
        (place / "own").write_text("x")
        with pytest.raises(UserError, match="own, which mtl_jax did not write"):
            grow(place, "new")
    rows = {(), ("x", "y"), ("a",), ("a", "b")}
    assert tables == {("name", *row) if row else row for row in rows}
    assert len(names(tmp_path)) > 70


def make_file(place):
    shutil.rmtree(place)
    place.write_text("x")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (write_own, "masks/own.png, which mtl_jax did not write"),
        (edit, "masks/a.png, which was changed since mtl_jax wrote it"),
        (link_file, "b, which mtl_jax did not write"),
        (link_folder, "more, which mtl_jax did not write"),
        (
            lose_record,
            "masks/a.png, and no .mtl_jax.json that lists it; earlier versions left",
        ),
        (spoil_record, "and no .mtl_jax.json that lists it"),
        (make_file, "it is a file"),
    ],
)
def test_what_somebody_else_made_is_refused(change, reason, tmp_path):
    place = tmp_path / "out"
    fill(place, "x")
    change(place)
    before = contents(tmp_path)
    with pytest.raises(UserError, match="something else.*another output") as caught:
        fill(place, "new")
    assert reason in str(caught.value)
    assert contents(tmp_path) == before
    assert names(tmp_path) == ["out"]


def test_what_somebody_adds_meanwhile_stays(tmp_path):
    place = tmp_path / "out"
    fill(place, "old")
    with (
        pytest.raises(UserError, match="own.png, which mtl_jax did not write"),
        files.whole_directory(place),
    ):
        write_own(place)
    assert contents(place) == {"masks/a.png": "old", "masks/own.png": "x"}


def test_folders_in_use_are_refused(tmp_path, monkeypatch):
    place = tmp_path / "out"
    fill(place, "x")
    for used in (place, place / "masks", place / "masks" / ".." / "new.png"):
        with pytest.raises(UserError, match="is or holds .*used here"):
            fill(place, "y", used=[used])
    fill(place, "y", used=[tmp_path, tmp_path / "out2"])
    monkeypatch.chdir(place / "masks")
    for output in (".", "..", place):
        with pytest.raises(UserError, match="is the current folder or holds it"):
            files.check_replaceable(output)
    with pytest.raises(UserError, match="a whole file system"):
        files.check_replaceable("/")
    assert contents(place) == {"masks/a.png": "y"}


def test_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written.*another output folder"):
        fill(tmp_path / "file" / "out", "x")


def test_output_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        fill(tmp_path / "deep" / "out", "x")
    finally:
        os.umask(before)
    modes = {
        path.relative_to(tmp_path).as_posix(): path.stat().st_mode & 0o777
        for path in tmp_path.rglob("*")
    }
    assert modes == {
        "deep": 0o750,
        "deep/out": 0o750,
        "deep/out/masks": 0o750,
        "deep/out/masks/a.png": 0o640,
        "deep/out/.mtl_jax.json": 0o640,
    }


WRITE = r"""
import pathlib, sys
from mtl_jax import files
assert sys.getfilesystemencoding() == "ascii"
with files.whole_directory(pathlib.Path(sys.argv[1])) as folder:
    files.inside(folder, "\N{GREEK SMALL LETTER MU}.txt").touch()
    rows = [{"name": name, "size": 1} for name in sys.argv[2:]]
    files.write_csv(folder / "a.csv", ["name", "size", "more"], rows)
"""


def test_names_are_utf8_in_any_locale(tmp_path):
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    names = ["œil".encode(), b"bad\xff"]
    place = tmp_path / "out"
    subprocess.run([sys.executable, "-c", WRITE, place, *names], env=env, check=True)
    assert contents(place) == {
        "μ.txt": "",
        "a.csv": "name,size,more\nœil,1,\nbad\\xff,1,\n",
    }
    fill(place, "In another locale, the files are ours all the same.")


TEXTS = st.text(st.sampled_from("=+-@' \t\r\n1,aä"), max_size=5)


@given(texts=st.lists(TEXTS, min_size=1, max_size=9))
def test_no_text_is_a_formula(texts, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "texts.csv"
    rows = [{"text": text, "number": -index} for index, text in enumerate(texts)]
    files.write_csv(path, ["text", "number"], rows)
    with path.open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert [files.text_of(row["text"]) for row in read] == texts
    assert [row["number"] for row in read] == [str(-i) for i in range(len(texts))]
    for text, row in zip(texts, read, strict=True):
        assert row["text"].strip()[:1] not in {*"=+-@"}
        # All others are as they are.
        assert row["text"] in (text, f"'{text}")
        assert row["text"] == text or text.strip(" \t\r\n'")[0] in "=+-@"
