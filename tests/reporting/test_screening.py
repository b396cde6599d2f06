"""Long predictions: continued after a kill, in parts, and what is made at their end."""

import contextlib
import csv
import json
import os
import pathlib
import signal
import threading
import time
import weakref

import forked_commands
import numpy as np
import pytest
from photograph_files import round_fundus
from PIL import Image

from mtl_jax import files
from mtl_jax.data import lookahead
from mtl_jax.errors import UserError
from mtl_jax.evaluation import predict
from mtl_jax.reporting import beginning, predictions, summary

pytest_plugins = ("training_fixtures", "untrained_network")

COUNT = 36


def fundus(index):
    """A photograph of its own, of which every third is too dark."""
    pixels = np.roll(round_fundus(90, 120), index % 7, axis=1)
    return pixels // 4 if index % 3 == 0 else pixels


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("screening")
    (place / "in").mkdir()
    for index in range(COUNT):
        Image.fromarray(fundus(index)).save(place / "in" / f"{index:03}.png")
    (place / "in" / "005.png").write_text("not a picture")
    Image.new("RGB", (64, 48), "blue").save(place / "in" / "=006.png")
    return place


@pytest.fixture(scope="module")
def ended(place, network_folder, compiled):
    def start(output, *flags, images="in"):
        return [
            "predict",
            f"--workdir={network_folder}",
            f"--images={place / images}",
            f"--output={place / output}",
            *flags,
        ]

    (place / "mine").mkdir()
    (place / "mine" / "thesis.tex").write_text("mine")
    with files.whole_directory(place / "other") as other:
        (other / "metrics.json").write_text("{}")
    commands = {
        "whole": start("whole", "--parquet"),
        "killed": start("killed"),
        "again": start("killed", "--resume"),
        "flags": start("killed", "--resume", "--nomasks"),
        "photographs": start("killed", "--resume", images="in/0*.png"),
        "shard": start("killed", "--resume", "--shard=1/2"),
        "network": start("killed", "--resume", "--tta"),
        "thesis": start("mine", "--resume"),
        "other output": start("other", "--resume"),
        "finished": start("whole", "--resume", "--parquet"),
        "first": start("first", "--shard=1/2", "--resume"),
        "second": start("second", "--shard=2/2", "--nopictures", "--nomasks"),
        "submission": start("submission", "--format=refuge"),
        "many": start("new", "--shard=1/99"),
        "report": start("new", "--report=pdf", "--nopictures"),
        "refuge": start("new", "--resume", "--format=refuge"),
    }
    for number, text in enumerate(MALFORMED):
        commands[f"malformed {number}"] = start("new", f"--shard={text}")
    signals = {
        "killed": (signal.SIGKILL, str(place / "killed/overlays/013.jpg")),
        "submission": (signal.SIGTERM, str(place / "submission/segmentation/013.bmp")),
    }
    (place / "said").mkdir()
    return forked_commands.run(commands, place / "said", compiled, signals=signals)


MALFORMED = ("2", "0/2", "3/2", "1/0", "a/b", "-1/2", "1/2/3", "1.5/2", " 1/2", "²/3")


def rows(output):
    with (output / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("[!.]*.*")
        if path.suffix != ".parquet"
    }


def test_a_killed_prediction_ends_as_one_that_was_not(place, ended):
    assert ended["killed"].code == -signal.SIGKILL
    assert ended["again"].code == ended["whole"].code == 1
    said = forked_commands.said(ended["again"].err)
    assert [line for line in said if "not an image" in line] != []
    assert contents(place / "killed") == contents(place / "whole")
    assert len(rows(place / "whole")) == 1 + COUNT
    # Fewer than all were read again.
    total = f"/{COUNT + 1} ["
    first = ended["again"].err.replace("\r", "\n").split(total)[0]
    assert int(first.rsplit(" ", 1)[-1]) > 5
    # Nothing was left to do.
    assert ended["finished"].code == 1
    assert contents(place / "whole") == contents(place / "killed")


def test_a_submission_is_not_to_be_continued(ended):
    assert ended["submission"].code == 128 + signal.SIGTERM
    (*_, said) = ended["submission"].err.splitlines()
    assert said == "interrupted by SIGTERM; repeat the command."


def test_shards_are_the_whole(place, ended):
    assert (ended["first"].code, ended["second"].code) == (1, 0)
    first, second, whole = map(rows, map(place.joinpath, ("first", "second", "whole")))
    # One of the first half cannot be read.
    assert (len(first), len(second)) == (COUNT // 2, COUNT // 2 + 2)
    assert second[0] == whole[0] == first[0]
    pictures = [whole[0].index(name) for name in ("mask", "overlay")]
    assert {row[column] for row in second[1:] for column in pictures} == {""}
    assert not (place / "second" / "masks").exists()
    assert not (place / "second" / "overlays").exists()

    def numbers(rows):
        return [
            [cell for at, cell in enumerate(row) if at not in pictures] for row in rows
        ]

    assert numbers(first + second[1:]) == numbers(whole)


@pytest.mark.parametrize("names", range(5), ids=str)
def test_shards_share_out_every_list(names):
    for count in range(1, 8):
        parts = [predictions.Shard(k + 1, count).of(range(names)) for k in range(count)]
        assert [one for part in parts for one in part] == [*range(names)]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


SENTENCES = {
    "report": "--report shows the pictures; leave out --nopictures",
    "flags": "killed was begun with other flags; repeat the first command with",
    "photographs": "killed was begun with other photographs, or another --shard;",
    "shard": "killed was begun with other photographs, or another --shard;",
    "network": "killed was begun with another network, checkpoint, calibration or",
    "thesis": "mine holds something else than earlier output (thesis.tex, and no",
    "other output": "other holds no prediction that --resume can continue; leave the",
    "many": "The shard 1/99 of 37 photographs is empty; ask for fewer",
    "refuge": "--format=refuge has no --resume; leave it out",
}


def test_mistakes_get_one_sentence(place, ended):
    wrong = {
        f"malformed {number}": f"--shard={text} is no part of a whole; write 2/8"
        for number, text in enumerate(MALFORMED)
    }
    for name, sentence in (wrong | SENTENCES).items():
        code, out, err = ended[name]
        (line,) = err.splitlines()
        assert code == 1
        assert line.startswith("error: ")
        assert sentence in line
        assert out == ""
    assert [path.name for path in (place / "mine").iterdir()] == ["thesis.tex"]
    assert not (place / "new").exists()


def test_the_summary_counts_the_rows(place, ended):
    found = json.loads((place / "whole" / "summary.json").read_text())
    table = [
        dict(zip(rows(place / "whole")[0], row, strict=True))
        for row in rows(place / "whole")[1:]
    ]
    assert found["photographs"] == len(table) == sum(found["decision"].values())
    (skipped,) = found["skipped"]
    assert "005.png is not an image" in skipped
    for name in ("underexposed", "not a fundus", "no disc found"):
        count = sum(f"{name}: " in row["quality"] for row in table)
        assert found["quality"].get(name, 0) == count
    assert found["quality"]["not a fundus"] == found["decision"]["no diagnosis"] > 0
    probabilities = [float(row["probability"]) for row in table if row["probability"]]
    wanted, _ = np.histogram(probabilities, 10, (0, 1))
    assert found["histogram"] == wanted.tolist()
    assert f"photographs: {COUNT}, and 1 skipped" in ended["whole"].out


def test_a_reason_with_a_semicolon_is_no_other_doubt():
    cell = (
        "implausible: the fovea is 9.0 disc diameters from the disc, usual 1.8-3.1; one"
        " of them is something else; blurred: its sharpness is 0.1%, usual 1.0-4.5%"
    )
    assert summary.doubts(cell) == ["implausible", "blurred"]
    assert summary.doubts("") == []


def test_parquet_is_the_table(place, ended):
    pandas = pytest.importorskip("pandas")
    found = pandas.read_parquet(place / "whole" / "predictions.parquet")
    header, *table = rows(place / "whole")
    assert [*found.columns] == header
    assert len(found) == len(table)
    for name, cells in zip(header, zip(*table, strict=True), strict=True):
        for value, cell in zip(found[name], cells, strict=True):
            if cell == "":
                assert pandas.isna(value)
            elif isinstance(value, str):
                assert value == cell.removeprefix("'")
            else:
                assert value == float(cell)
    assert "=006" in set(found["image"])


def test_a_file_that_changes_is_said(network_folder, place, tmp_path, monkeypatch):
    """Another program writes to the second photograph after it was opened."""
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(fundus(1)).save(tmp_path / name)
    opened = predict.images.open_photograph

    def open_and_change(path):
        photograph = opened(path)
        if path.name == "b.png":
            with path.open("ab") as file:
                file.write(b"more")
        return photograph

    monkeypatch.setattr(predict.images, "open_photograph", open_and_change)
    written = predictions.write(network_folder, str(tmp_path), place / "changing")
    (failure,) = written.failures
    assert failure == (
        f"{tmp_path / 'b.png'} changed while it was read; predict on it again when "
        "nothing writes to it any more."
    )
    assert len(rows(place / "changing")) == 3


def test_a_tilde_is_the_users_folder(network_folder, place, tmp_path, monkeypatch):
    """Shells leave it as it is in --output=~/out."""
    monkeypatch.setenv("HOME", str(tmp_path))
    output = pathlib.Path("~/out")
    for images in ("00[1-3].png", "00[1-4].png"):
        with contextlib.suppress(UserError):
            predictions.write(
                network_folder, str(place / "in" / images), output, resume=True
            )
        assert len(rows(tmp_path / "out")) == 1 + 3
    assert (tmp_path / "out" / "summary.json").is_file()


def test_an_output_among_the_photographs_is_continued(
    network_folder, place, tmp_path, monkeypatch
):
    """By another path to them, and after one was replaced."""
    photographs = tmp_path / "in"
    photographs.mkdir()
    for index in (1, 2, 4):
        Image.fromarray(fundus(index)).save(photographs / f"{index}.png")
    output = photographs / "out"

    def write(pattern, **options):
        written = predictions.write(network_folder, pattern, output, **options)
        assert [row[0] for row in rows(output)[1:]] == ["1", "2", "4"]
        return [note for note in written.notes if "changed" in note]

    assert write(f"{photographs}/**") == []
    table = (output / "predictions.csv").read_bytes()
    Image.fromarray(fundus(5)).save(photographs / "2.png")
    os.utime(photographs / "2.png", (0, 0))
    monkeypatch.chdir(tmp_path)
    output = pathlib.Path("in/out")
    for _ in range(2):
        (note,) = write("./in/**", resume=True)
        assert note.startswith("1 photograph has changed since the prediction began, ")
        assert "(in/2.png);" in note
        assert (output / "predictions.csv").read_bytes() == table
    assert write("in/**") == []
    assert (output / "predictions.csv").read_bytes() != table
    # Of another folder, whose photographs have the same relative paths.
    (tmp_path / "elsewhere" / "in").mkdir(parents=True)
    for index in (1, 2, 4):
        Image.fromarray(fundus(index)).save(tmp_path / f"elsewhere/in/{index}.png")
    output = output.absolute()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="was begun with other photographs"):
        write("in/**", resume=True)


def test_pictures_of_an_earlier_output_are_no_photographs(tmp_path):
    with files.growing_directory(tmp_path / "out") as folder:
        folder.write("masks/1.png", b"")
    with pytest.raises(UserError, match=r"All 1 images were written into .*/out by an"):
        predictions.write(tmp_path, f"{tmp_path}/**", tmp_path / "out")


def test_a_changed_beginning_gets_a_sentence(tmp_path):
    begun = beginning.Start({"network": "1"}, {"a": [1, 2]})
    (tmp_path / beginning.NAME).write_bytes(begun.content())
    assert beginning.read(tmp_path, begun) == begun
    with pytest.raises(UserError, match=r"begun\.json is damaged; leave out --resume"):
        beginning.read(tmp_path, begun._replace(states={"a": [1, 2], "b": None}))


def killed_in_an_empty_folder(output):
    output.mkdir()
    (output / ".mtl_jax.partial").write_text('{"note":')


def killed_before_the_first_file(output):
    output.mkdir()
    with files.growing_directory(output) as folder:
        folder.write(beginning.NAME, b"{}")
    (output / beginning.NAME).rename(output / ".mtl_jax.partial")


def killed_amid_an_earlier_output(output):
    with files.growing_directory(output) as folder:
        for name in (beginning.NAME, "masks/1.png", "masks/2.png"):
            folder.write(name, b"{}")
    (output / beginning.NAME).unlink()


@pytest.mark.parametrize(
    "leave",
    [
        killed_in_an_empty_folder,
        killed_before_the_first_file,
        killed_amid_an_earlier_output,
    ],
)
def test_what_a_kill_leaves_before_the_beginning_is_replaced(leave, tmp_path):
    leave(output := tmp_path / "out")
    assert not beginning.exists(output)
    with files.growing_directory(output) as folder:
        folder.write("new", b"")
    assert [path.name for path in output.rglob("[!.]*")] == ["new"]


@pytest.mark.parametrize("kept", [3, len("a,b\r\n"), len("a,b\r\n1")])
def test_a_first_row_that_a_kill_has_torn_is_written_again(kept, tmp_path):
    row = {"table.csv": (("a", "b"), {"a": 1, "b": 2})}
    with files.growing_directory(tmp_path) as folder:
        folder.add_rows(row)
    table = tmp_path / "table.csv"
    whole = table.read_bytes()
    table.write_bytes(whole[:kept])
    with files.growing_directory(tmp_path, continues=True) as folder:
        folder.add_rows(row)
    assert table.read_bytes() == whole


@pytest.mark.parametrize(("form", "count"), [("table", 0), ("table", 1), ("refuge", 1)])
def test_what_has_not_begun_is_not_to_be_continued(
    network_folder, place, tmp_path, monkeypatch, form, count
):
    def interrupted(*arguments):
        yield from [(place, files.Part({"a": b""}, {}))] * count
        raise KeyboardInterrupt

    monkeypatch.setattr(predictions, "predict", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        predictions.write(
            network_folder, str(place / "in"), tmp_path / "out", form=form
        )
    wanted = ["continue with --resume"] if form == "table" and count else []
    assert getattr(caught.value, "__notes__", []) == wanted


def test_a_report_needs_the_overlays(network_folder, place, tmp_path):
    images, output = str(place / "in" / "00[1-3].png"), tmp_path / "out"
    predictions.write(network_folder, images, output)
    (output / "overlays" / "002.jpg").unlink()
    with pytest.raises(UserError, match=r"002\.jpg is missing, and the report shows"):
        predictions.write(network_folder, images, output, resume=True, report="html")
    assert not (output / "report.html").exists()


def test_a_changed_table_is_not_continued(network_folder, place, tmp_path):
    output = tmp_path / "out"
    images = str(place / "in" / "00[1-3].png")
    predictions.write(network_folder, images, output)
    table = output / "predictions.csv"
    before = table.read_bytes()
    # As of a process that was killed while it wrote the last row.
    table.write_bytes(before[:-9])
    predictions.write(network_folder, images, output, resume=True)
    assert table.read_bytes() == before
    table.write_bytes(before.replace(b"003", b"004"))
    with pytest.raises(UserError, match=r"predictions\.csv was changed since mtl_jax"):
        predictions.write(network_folder, images, output, resume=True)


def test_work_is_in_order_and_not_far_ahead():
    taken, running, most = [], 0, 0
    lock = threading.Lock()

    def items():
        for item in range(40):
            taken.append(item)
            yield item

    def work(item):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002 * (item % 3))
        with lock:
            running -= 1
        return item * item

    with lookahead.threads(4) as pool:
        for count, (item, result) in enumerate(
            lookahead.in_order(pool, work, items(), 5), 1
        ):
            assert len(taken) - count <= 5
            assert result.result() == item * item == (count - 1) ** 2
    assert count == 40
    assert most > 1


def test_what_has_not_begun_is_dropped_when_the_block_ends():
    begun = []

    def work(item):
        begun.append(item)
        time.sleep(0.05)

    with lookahead.threads(1) as pool:
        for item in range(100):
            pool.submit(work, item)
    assert len(begun) < 100


def test_memory_does_not_grow_with_the_photographs(tmp_path, monkeypatch):
    """So many photographs at most are in memory, while the last steps are slow."""
    count, size, cores = 90, 4, 2
    for index in range(count):
        Image.fromarray(fundus(index)).save(tmp_path / f"{index:03}.png")
    paths = {path.stem: path for path in sorted(tmp_path.iterdir())}
    alive, most, lock = 0, 0, threading.Lock()

    def add(number):
        nonlocal alive, most
        with lock:
            alive += number
            most = max(most, alive)

    def seen(network, picture, conversion=""):
        pixels = np.array(picture)
        add(1)
        weakref.finalize(pixels, add, -1)
        return predict.Photograph(pixels, conversion, None, pixels[:32, :32], None)

    class Network:
        batch_size, image_size = size, 32

        def outputs(self, batch):
            return batch["image"][:, 0, 0, 0]

    monkeypatch.setattr(predict, "as_seen", seen)
    monkeypatch.setattr(predict, "interpret", lambda *_: time.sleep(0.01))
    monkeypatch.setattr(predict.machine, "num_cores", lambda: cores)
    tally = predict.Tally()
    results = predict.predict(Network(), paths, lambda one: one.name, tally)
    assert [name for _, name in results] == [*paths]
    # Read ahead; three batches on their way; and those that are being finished.
    assert most <= size + 3 * size + 2 * cores + 5
    assert len(tally.busy) == -(-count // size)
