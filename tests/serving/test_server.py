"""What the page's program answers, and the folder of corrections."""

import base64
import csv
import http.client
import io
import pathlib
import re
import signal
import subprocess
import sys
import zipfile

import full_disk
import jax
import numpy as np
import photograph_files
import pytest
from PIL import Image
from served_page import Client
from serving_masks import disc_at, png_of

from mtl_jax.annotations import LABELS
from mtl_jax.data import folder, images, pipeline
from mtl_jax.errors import UserError
from mtl_jax.reporting import predictions
from mtl_jax.serving import address, corrections, session
from mtl_jax.training import parallel

pytest.importorskip("uvicorn", reason="the extra serve is not installed")

pytest_plugins = ("untrained_network", "served_page")

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corrected(tmp_path_factory):
    return tmp_path_factory.mktemp("corrected") / "mine"


@pytest.fixture(scope="module")
def page(serve, corrected):
    with serve(corrected, upload_limit=2_000_000) as client:
        yield client


@pytest.fixture(scope="module")
def left(page, photographs):
    status, one = page.upload(photographs / "left.png")
    assert status == 200, one
    return one


def rows_of(text):
    return {row["file"]: row for row in csv.DictReader(io.StringIO(text))}


def test_it_says_what_predict_writes(page, left, photographs, network_folder, tmp_path):
    assert page.upload(photographs / "right.jpg")[0] == 200
    (tmp_path / "in").mkdir()
    for name in ("left.png", "right.jpg"):
        (tmp_path / "in" / name).write_bytes((photographs / name).read_bytes())
    output = tmp_path / "out"
    predictions.write(network_folder, str(tmp_path / "in"), output)
    expected = rows_of((output / "predictions.csv").read_text())
    expected = {path.rpartition("/")[2]: row for path, row in expected.items()}
    found = rows_of(page.ask("predictions.csv")[1].decode())
    assert found.keys() == expected.keys()
    for name, row in found.items():
        row.pop("file")
        for column, text in row.items():
            if re.fullmatch(r"[-\d.e]+", text):
                assert float(text) == pytest.approx(
                    float(expected[name][column]), rel=1e-4, abs=1e-5
                ), column
            else:
                assert text == expected[name][column], column
    one = page.ask(f"photographs/{left['id']}")[1]
    for name, value in one["numbers"].items():
        assert ("" if value is None else str(value)) == found["left.png"][name], name
    with zipfile.ZipFile(io.BytesIO(page.ask("masks.zip")[1])) as file:
        packed = {name.partition("-")[0]: file.read(name) for name in file.namelist()}
    assert packed.keys() == {"left", "right"}
    for name, content in packed.items():
        ours = np.array(Image.open(io.BytesIO(content)))
        theirs = images.read_mask(output / f"masks/{name}.png")
        assert (ours != theirs).mean() < 1e-3


FORMATS = {
    "left.dcm": lambda path, pixels: photograph_files.write_dicom(path, pixels),
    "left.heic": lambda path, pixels: photograph_files.write_heic(path, pixels),
    "deep.png": lambda path, pixels: path.write_bytes(
        photograph_files.png_bytes((pixels * np.uint16(257)).astype(">u2"), 16)
    ),
    "deep.tiff": lambda path, pixels: path.write_bytes(
        photograph_files.tiff16_bytes(pixels * np.uint16(257))
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_shows_the_same(name, page, left, photographs, tmp_path):
    """The same pixels in a file that no browser can show."""
    pixels = np.array(Image.open(photographs / "left.png"))
    FORMATS[name](tmp_path / name, pixels)
    status, one = page.upload(tmp_path / name)
    assert (status, one["name"], one["size"]) == (200, name, left["size"])
    assert one["id"] != left["id"]
    shown = [
        np.array(
            Image.open(io.BytesIO(page.ask(f"photographs/{x['id']}/view.jpg")[1]))
        ).astype(int)
        for x in (one, left)
    ]
    if name.endswith("heic"):
        # Its colours are rounded to YCbCr.
        assert abs(shown[0] - shown[1]).mean() < 2
        assert one["numbers"].keys() == left["numbers"].keys()
    else:
        np.testing.assert_array_equal(*shown)
        assert one["numbers"] == left["numbers"]
    half = tmp_path / f"half.{name}"
    half.write_bytes((tmp_path / name).read_bytes()[: len(pixels) * 9])
    status, said = page.upload(half)
    assert (status, half.name in said["error"]) == (422, True)


def test_a_photograph_is_one_image_to_every_member(
    network_folder, photographs, tmp_path, monkeypatch
):
    shapes, map_evaluation = [], parallel.map_evaluation

    def mapped(function):
        real = map_evaluation(function)

        def note(variables, batch):
            shapes.append(batch["image"].shape[:2])
            said = jax.eval_shape(real, variables, batch)
            return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), said)

        return note

    monkeypatch.setattr(parallel, "map_evaluation", mapped)
    averaging = session.Session([network_folder, network_folder], tmp_path)
    shapes.clear()
    averaging.add("left.png", (photographs / "left.png").read_bytes())
    assert shapes == [(jax.local_device_count(), 1)] * 2


def test_pictures_have_the_size_of_the_view(page, left):
    place = f"photographs/{left['id']}"
    assert left["view"] == left["size"] == [240, 300]
    names = ["view.jpg", "gradient.png", *(f"masks/{m}.png" for m in left["masks"])]
    assert {"masks/disc.png", "masks/cup.png"} <= {*names}
    for name in names:
        status, content = page.ask(f"{place}/{name}")
        assert status == 200, name
        assert Image.open(io.BytesIO(content)).size == (300, 240)
    gradient = np.array(Image.open(io.BytesIO(page.ask(f"{place}/gradient.png")[1])))
    assert gradient[..., 3].max() > 200
    assert len(np.unique(gradient[..., 3])) > 20


def test_the_same_file_is_there_once(page, left, photographs):
    before = page.ask("photographs")[1]
    assert page.upload(photographs / "left.png") == (200, left)
    assert page.ask("photographs")[1] == before


@pytest.mark.parametrize(
    ("path", "method", "body", "headers", "status", "sentence"),
    [
        ("photographs?name=a.jpg", "POST", b"text", {}, 422, "a.jpg is not an image"),
        ("photographs?name=a.jpg", "POST", b"", {}, 422, "a.jpg is not an image"),
        ("photographs?name=..%2Fa.jpg", "POST", b"", {}, 400, "no name of a file"),
        ("photographs?name=..", "POST", b"", {}, 400, "no name of a file"),
        ("photographs", "POST", b"", {}, 400, "no name of a file"),
        ("photographs?name=a", "POST", bytes(2_000_001), {}, 413, "larger than 2,000"),
        ("photographs/000000000000", "GET", None, {}, 404, "drop it again"),
        ("photographs/..%2Fview.jpg", "GET", None, {}, 404, "drop it again"),
        ("..%2f..%2fetc%2fpasswd", "GET", None, {}, 404, "There is no"),
        ("page.css/../page.html", "GET", None, {}, 404, "There is no"),
        ("photographs/{id}/masks/lens.png", "GET", None, {}, 404, "no mask of 'lens'"),
        ("photographs/{id}/masks/upload.png", "GET", None, {}, 404, "no mask of"),
        ("network", "POST", b"", {}, 405, "does not take POST"),
        ("network", "GET", None, {"host": "evil.org"}, 403, "not at 'evil.org'"),
        ("network", "GET", None, {"host": "["}, 403, "not at '['"),
        ("network", "GET", None, {"origin": "http://evil.org"}, 403, "may not ask"),
        ("photographs/{id}/correction", "PUT", b"{", {}, 400, "is no JSON"),
        ("photographs/{id}/correction", "PUT", b"[]", {}, 400, "no JSON object"),
        ("photographs/{id}/correction", "PUT", b"{}", {}, 422, "malformed ('version')"),
    ],
)
def test_bad_requests_get_a_sentence(
    path, method, body, headers, status, sentence, page, left
):
    found, said = page.ask(path.format(id=left["id"]), method, body, headers)
    assert found == status
    assert said.keys() == {"error"}
    assert sentence in said["error"]
    assert said["error"].endswith(".")
    # It goes on.
    assert page.ask("network")[0] == 200


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"fovea": [300, 3]}, "outside the photograph"),
        ({"fovea": ["x", 3]}, "could not convert"),
        ({"fovea": [float("nan"), 3]}, "outside the photograph"),
        ({"glaucoma": 2}, "glaucoma must be"),
        ({"masks": {"lens": None}}, "'lens' is none of disc, cup"),
        ({"masks": {"disc": "!"}}, "no PNG in base64"),
        ({"masks": {"disc": base64.b64encode(b"text").decode()}}, "no PNG"),
        ({"masks": {"disc": png_of(np.ones((9, 9)))}}, "must have (300, 240) pixels"),
    ],
)
def test_malformed_corrections(changes, sentence, page, left, corrected):
    status, said = page.correct(left, **changes)
    assert (status, "malformed" in said["error"]) == (422, True)
    assert sentence in said["error"]
    assert not (corrected / "manifest.csv").exists()


def test_an_endless_upload_ends(page):
    host = page.address.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=60)
    connection.request(
        "POST",
        "/photographs?name=a.jpg",
        iter([b"x" * 500_000] * 5),
        {"Transfer-Encoding": "chunked"},
        encode_chunked=True,
    )
    assert connection.getresponse().status == 413
    connection.close()


def test_corrections_are_a_data_set(serve, photographs, tmp_path):
    place = tmp_path / "mine"
    expected = {}
    with serve(place) as page:
        for index, name in enumerate(("left.png", "right.jpg")):
            one = page.upload(photographs / name)[1]
            height, width = one["size"]
            disc = disc_at(one["size"], (0.4 * width, 0.5 * height), 30)
            cup = disc_at(one["size"], (0.4 * width, 0.5 * height), 12)
            fovea = [0.4 * width + 80.25, 0.5 * height + 10.5]
            masks = {"disc": png_of(disc), "cup": png_of(cup)}
            said = {"fovea": fovea, "glaucoma": index, "masks": masks}
            status, after = page.correct(one, **said)
            assert (status, after["version"] != "") == (200, True)
            assert after["correction"] == {
                "glaucoma": index,
                "fovea": fovea,
                "masks": ["disc", "cup"],
            }
            expected[one["id"]] = disc, cup, fovea, index
            shown = page.ask(f"photographs/{one['id']}/masks/cup.png")[1]
            shown = np.array(Image.open(io.BytesIO(shown)))[..., 1]
            np.testing.assert_array_equal(shown >= 128, cup > 0)
    version_dir = folder.build(tmp_path / "data", place, image_size=64)
    builder = pipeline.open_dataset(
        str(tmp_path / "data"), f"fundus_folder/{version_dir.parent.name}"
    )
    found = {}
    for split in builder.info.splits:
        table = pipeline.open_split(builder, split)
        for index in range(len(table)):
            key = table.details(index)["image_id"][-12:]
            found[key] = table.native(index, LABELS)
    assert found.keys() == expected.keys()
    for key, (disc, cup, fovea, glaucoma) in expected.items():
        np.testing.assert_array_equal(found[key]["disc_mask"], disc)
        np.testing.assert_array_equal(found[key]["cup_mask"], cup)
        np.testing.assert_allclose(found[key]["fovea_xy"], fovea, atol=0.006)
        assert found[key]["glaucoma"] == glaucoma


def test_saving_on_top_of_another_window(serve, photographs, tmp_path):
    with serve(tmp_path) as page:
        one = page.upload(photographs / "left.png")[1]
        # What is not changed stays as it was found.
        before = page.ask(f"photographs/{one['id']}/masks/disc.png")[1]
        status, first = page.correct(one, glaucoma=1)
        assert status == 200
        assert page.ask(f"photographs/{one['id']}/masks/cup.png")[0] == 200
        status, said = page.correct(one, glaucoma=0)
        assert status == 409
        assert said["error"].startswith("Another window has saved a correction of this")
        assert page.ask(f"photographs/{one['id']}")[1] == first
        assert first["correction"]["glaucoma"] == 1
        # From the new version it goes, and files that nobody names leave.
        empty = {"disc": None, "cup": None}
        status, second = page.correct(first, glaucoma=0, masks=empty, fovea=None)
        assert (status, second["masks"], second["fovea"]) == (200, [], None)
        assert [*(tmp_path / "masks").iterdir()] == []
        withdraw = f"photographs/{one['id']}/correction?version="
        assert page.ask(withdraw + first["version"], "DELETE")[0] == 409
        status, last = page.ask(withdraw + second["version"], "DELETE")
        assert (status, last) == (200, one)
        assert page.ask(f"photographs/{one['id']}/masks/disc.png")[1] == before
        assert [*(tmp_path / "photographs").iterdir()] == []


def test_corrections_stay_and_rows_of_others_too(serve, photographs, tmp_path):
    with serve(tmp_path) as page:
        one = page.upload(photographs / "left.png")[1]
        saved = page.correct(one, glaucoma=1)[1]
    path = tmp_path / "manifest.csv"
    header, row = path.read_text().splitlines()
    others = [f"b-{n},b{n}.png,,,,,1,Anna" for n in (1, 2)]
    path.write_text("\n".join([f"{header},patient", f"{row},Eva", *others]) + "\n")
    with serve(tmp_path) as page:
        again = page.upload(photographs / "left.png")[1]
        assert again["correction"] == saved["correction"]
        assert again["version"] == saved["version"]
        assert page.correct(again, glaucoma=0)[0] == 200
        lines = path.read_text().splitlines()
        assert (lines[0], lines[2:]) == (f"{header},patient", others)
        assert lines[1].endswith(",0,Eva")
        path.write_text(path.read_text().replace("masks/", "../masks/"))
        status, said = page.ask(f"photographs/{one['id']}")
        assert status == 422
        assert "which is outside its folder" in said["error"]


def test_a_full_disk_leaves_the_last_correction(serve, photographs, tmp_path):
    with serve(tmp_path) as page:
        one = page.upload(photographs / "left.png")[1]
        saved = page.correct(one, glaucoma=1)[1]
        before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
        noise = np.random.default_rng(0).integers(0, 2, one["view"])
        with full_disk.limit(1000):
            status, said = page.correct(saved, masks={"disc": png_of(noise)})
        assert status == 507
        assert "cannot be used (File too large)" in said["error"]
        assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
        assert page.correct(saved, masks={"disc": png_of(noise)})[0] == 200


def test_without_a_folder_nothing_is_saved(serve, photographs):
    with serve() as page:
        one = page.upload(photographs / "left.png")[1]
        assert page.ask("network")[1]["can_correct"] is False
        status, said = page.correct(one)
        assert (status, "--corrections=DIR" in said["error"]) == (409, True)


@pytest.mark.slow
def test_fifty_megapixels(serve, tmp_path):
    height, width = 5800, 8700
    rows, columns = np.ogrid[:height, :width]
    field = (rows - height / 2) ** 2 + (columns - width / 2) ** 2 < (0.48 * height) ** 2
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[field] = (180, 90, 40)
    Image.fromarray(pixels).save(tmp_path / "large.jpg")
    with serve(tmp_path / "mine") as page:
        status, one = page.upload(tmp_path / "large.jpg")
        assert (status, one["size"]) == (200, [height, width])
        assert max(one["view"]) == 1600
        disc = disc_at(one["view"], (500, 500), 90)
        status, after = page.correct(one, masks={"disc": png_of(disc), "cup": None})
        assert (status, after["masks"]) == (200, ["disc"])
    (path,) = (tmp_path / "mine" / "masks").iterdir()
    native = images.read_mask(path)
    assert native.shape == (height, width)
    share = (native > 0).sum() / (disc.sum() * (width / 1600) ** 2)
    assert share == pytest.approx(1, abs=0.01)


def test_folders_that_cannot_be_used(tmp_path):
    (tmp_path / "manifest.csv").write_text("name,size\na,3\n")
    with (
        pytest.raises(UserError, match="not a manifest that this page wrote"),
        corrections.opened(tmp_path),
    ):
        pass
    (tmp_path / "manifest.csv").unlink()
    program = (
        "import pathlib, sys; from mtl_jax import files\n"
        "with files.locked(pathlib.Path(sys.argv[1])): print('locked', flush=True); "
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout.readline() == b"locked\n"
        with (
            pytest.raises(UserError, match="Another process saves corrections to"),
            corrections.opened(tmp_path),
        ):
            pass
        other.stdin.close()
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"file cannot be used \(File exists\)"),
        corrections.opened(tmp_path / "file"),
    ):
        pass


def test_a_port_in_use_gets_a_sentence(monkeypatch):
    with address.listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        program = "from mtl_jax import commands; commands.run('serve')"
        finished = subprocess.run(
            [sys.executable, "-c", program, f"--port={port}"],
            capture_output=True,
            check=False,
            text=True,
        )
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr == (
        f"error: The page cannot be served at 127.0.0.1, port {port} (Address already "
        "in use); name another by --port or --host.\n"
    )
    with pytest.raises(UserError, match=r"served at no\.such\.host\.invalid, port 0 "):
        address.listen("no.such.host.invalid", 0)


@pytest.mark.slow
def test_the_command_serves_until_ctrl_c(network_folder, photographs, compiled):
    program = [sys.executable, "tests/small_encoder.py", "scripts/serve.py"]
    with subprocess.Popen(
        [*program, f"--workdir={network_folder}", "--port=0"],
        cwd=ROOT,
        env=compiled,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as serving:
        try:
            place, said = serving.stdout.readline().split(maxsplit=1)
            assert said == "For research only, no medical device; Ctrl-C ends.\n"
            client = Client(place)
            status, one = client.upload(photographs / "left.png")
            assert (status, one["name"]) == (200, "left.png")
            assert b"no medical device" in client.ask("")[1]
            serving.send_signal(signal.SIGINT)
            assert serving.wait(60) == 0
            assert serving.stderr.read() == ""
        finally:
            # Its end would be waited for.
            serving.kill()


def test_only_this_machine_reaches_it():
    with address.listen("127.0.0.1", 0) as ours, address.listen("0.0.0.0", 0) as all_:
        assert address.is_local(ours)
        assert not address.is_local(all_)
