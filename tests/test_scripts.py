"""The scripts as processes: what a user's mistakes look like, and a whole round.

Some mistakes are made through the program `mtl-jax`, too.
"""

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys

import forked_commands
import numpy as np
import pytest
import small_encoder
from PIL import Image

pytest_plugins = ("training_fixtures",)

ROOT = pathlib.Path(__file__).parents[1]


def train(workdir, *flags, config="configs/default.py"):
    return ["train", f"--config={config}", f"--workdir={workdir}", *flags]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("scripts")


@pytest.fixture(scope="module")
def mistakes(place, synthetic_data, glaucoma_run):
    """Commands that must fail, and what their messages must say, by name."""
    data_dir, dataset = synthetic_data
    data = [f"--config.data.data_dir={data_dir}", f"--config.data.dataset={dataset}"]
    (place / "empty").mkdir()
    (place / "given").mkdir()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(place / "given" / "a.png")
    Image.fromarray(np.full((40, 30), 255, np.uint8)).save(place / "given" / "m.png")
    for name, lines in {
        "absent.csv": ["image_id,image", "1,a.png", "2,b.png", "3,c.png"],
        "outside.csv": ["image_id,image,fovea_x,fovea_y", "1,a.png,40,3"],
        "mask.csv": ["image_id,image,disc_mask", "1,a.png,m.png"],
    }.items():
        (place / "given" / name).write_text("\n".join(lines))
    (place / "given" / "broken.jpg").write_text("not a picture")
    (place / "text").mkdir()
    (place / "text" / "x.jpg").write_text("not a picture")

    (place / "torn.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")

    new, finished = place / "new", glaucoma_run.workdir

    def prepare(dataset, *flags):
        return ["prepare_data", f"--dataset={dataset}", f"--data_dir={new}", *flags]

    def folder(manifest):
        source = f"--source={place / 'given'}"
        return prepare(
            "fundus_folder", source, f"--manifest={place / 'given' / manifest}"
        )

    def import_weights(source, architecture="vgg16"):
        return [
            "import_weights",
            f"--source={place / source}",
            f"--architecture={architecture}",
            f"--output={new}",
        ]

    def evaluate(workdir, *flags):
        return ["evaluate", f"--workdir={workdir}", *flags]

    def predict(workdir, images):
        return [
            "predict",
            f"--workdir={workdir}",
            f"--images={place / images}",
            f"--output={new}",
        ]

    return {
        "data_missing": (
            train(new, f"--config.data.data_dir={place / 'nowhere'}"),
            "There is no data set 'synthetic_fundus/256px'",
        ),
        "data_empty": (
            train(new, f"--config.data.data_dir={place / 'empty'}"),
            "none at all",
        ),
        "other_config": (
            train(finished, *data),
            "run of another config (it differs in",
        ),
        "encoder": (train(new, *data, "--config.model.encoder=vgg19"), "vgg13, vgg16"),
        "task": (train(new, *data, "--config.tasks=('disc','rim')"), "'rim'; choose"),
        "batch": (
            train(new, *data, "--config.batch_size=14"),
            "lower config.batch_size",
        ),
        "field": (
            train(new, *data, "--config.model.encodr=vgg13"),
            "--config.model.encodr names a field that the config does not have",
        ),
        "field_at_top": (train(new, "--config.epochs", "3"), "--config.epochs names"),
        "type": (
            train(new, *data, "--config.batch_size=abc"),
            "--config.batch_size=abc",
        ),
        "config_file": (
            train(new, config="configs/nothing.py"),
            "no config file 'configs/nothing.py'",
        ),
        "config_words": (
            train(new, config="configs/refuge.py:pcgard"),
            "This config has no word 'pcgard'; choose from single, independent",
        ),
        "config_methods": (
            train(new, config="configs/synthetic.py:study,pcgrad,vanilla"),
            "pcgrad and vanilla are two methods; choose one",
        ),
        "no_number": (train(new, "--coordinator=a:1"), "belong together; give all"),
        "no_port": (
            train(new, "--coordinator=a", "--num_processes=2", "--process_id=0"),
            "--coordinator is 'a'; give the host and a free port",
        ),
        "process": (
            train(new, "--coordinator=a:1", "--num_processes=2", "--process_id=2"),
            "--process_id is 2; number the 2 processes of --num_processes from 0 to 1",
        ),
        "two_ways": (
            train(
                new,
                *("--coordinator=a:1", "--num_processes=2", "--process_id=0"),
                "--distributed",
            ),
            "leave out one of them",
        ),
        "target": (["benchmark", "--target=v5e"], "give cpu, or tpu and a topology"),
        "alone": (["benchmark", "--aggregators=mgda", "--target=cpu"], "leave out --t"),
        "layers": (["benchmark", "--layers", "--devices=2"], "leave out --devices"),
        "both": (["benchmark", "--layers", "--aggregators=mgda"], "leave out --layers"),
        "no_file": (["benchmark", f"--output={place}"], "is a folder; name a file"),
        "no_folder": (
            ["benchmark", f"--output={place / 'torn.safetensors' / 'results.json'}"],
            "cannot be made (File exists); name another file",
        ),
        "shares": (["benchmark", "--devices=3"], "has 8, and --devices has 3; give"),
        "no_batch": (["benchmark", "--batch_sizes=0"], "has 0, and --devices has 1;"),
        "no_config": (["train", f"--workdir={new}"], "--config"),
        "flag": (train(new, "--wrokdir=x"), "Unknown command line flag 'wrokdir'"),
        "argument": (train(new, "fast"), "unknown argument 'fast'"),
        "pretrained": (
            train(new, *data, f"--config.model.pretrained={place / 'empty'}"),
            "no imported weights; make them by scripts/import_weights.py",
        ),
        "no_weights": (import_weights("nothing.pth"), "nothing.pth; name one"),
        "torn_weights": (
            import_weights("torn.safetensors"),
            "is damaged, incomplete, or not what its name says",
        ),
        "architecture": (
            import_weights("nothing.pth", "vgg19"),
            "--architecture=vgg19",
        ),
        "size": (prepare("synthetic_fundus", "--image_size=100"), "multiple of 16"),
        "shape": (prepare("synthetic_fundus", "--shape=round"), "--shape=round"),
        "number": (prepare("synthetic_fundus", "--num_images=1,x,3"), "whole numbers"),
        "data_set": (prepare("refuge9"), "--dataset=refuge9"),
        "no_source": (prepare("fundus_folder"), "--source is missing"),
        "files": (folder("absent.csv"), "has 2 problems"),
        "fovea": (folder("outside.csv"), "lies outside"),
        "mask": (folder("mask.csv"), "must fit pixel by pixel"),
        "manifest": (folder("nothing.csv"), "nothing.csv does not exist"),
        "run": (evaluate(place / "nowhere"), "There is no workdir"),
        "cache": (
            evaluate(
                place / "nowhere",
                f"--compilation_cache={place / 'torn.safetensors' / 'programs'}",
            ),
            "name another folder with --compilation_cache. error: There is no workdir",
        ),
        "no_checkpoint": (evaluate(place / "empty"), "holds no checkpoint"),
        "split": (evaluate(finished, "--split=tset"), "no split 'tset'; it has train"),
        "resolution": (evaluate(finished, "--resolution=4k"), "--resolution=4k"),
        "checkpoint": (evaluate(finished, "--checkpoint=7"), "no checkpoint '7'"),
        "no_images": (predict(finished, "empty"), "holds no image file"),
        "no_such_images": (predict(finished, "nowhere"), "nowhere"),
        "unreadable": (predict(finished, "text"), "No photograph could be read"),
        "program": (["mtl-jax", "tarin"], "'tarin' is not a command; choose from"),
        "program_flag": (
            ["mtl-jax", *train(new, "--wrokdir=x")],
            "Unknown command line flag 'wrokdir'",
        ),
        "program_data_missing": (
            ["mtl-jax", *train(new, f"--config.data.data_dir={place / 'nowhere'}")],
            "build it with mtl-jax prepare_data, or name another.",
        ),
        "program_pretrained": (
            ["mtl-jax", *train(new, *data, f"--config.model.pretrained={place}")],
            "no imported weights; make them by mtl-jax import_weights.",
        ),
    }


def snapshot(folder):
    return {
        path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()
    }


def test_mistakes_get_a_sentence(mistakes, place, compiled, glaucoma_run):
    (place / "output").mkdir()
    before = snapshot(place), snapshot(glaucoma_run.workdir)
    commands = {name: command for name, (command, _) in mistakes.items()}
    ended = forked_commands.run(commands, place / "output", compiled)
    wrong = {}
    for name, (_, expected) in mistakes.items():
        code, out, err = ended[name]
        lines = forked_commands.said(err)
        said = " ".join(lines)
        if (
            code not in (1, 2)
            or expected not in said
            or "Traceback" in said + out
            or len(lines) > (4 if name in ("files", "fovea", "mask") else 2)
            or out
        ):
            wrong[name] = (code, out, err[-2000:])
    assert wrong == {}
    written = place / "output"
    after = {p: t for p, t in snapshot(place).items() if written not in p.parents}
    assert (after, snapshot(glaucoma_run.workdir)) == before
    assert not (place / "new").exists()
    # A manifest's problems are all named.
    text = ended["files"].err
    named = ("row 3", "b.png does not exist", "row 4", "c.png does not exist")
    assert [one for one in named if one not in text] == []


def script(name, *flags, env=None):
    return subprocess.run(
        [
            sys.executable,
            small_encoder.__file__,
            str(ROOT / f"scripts/{name}.py"),
            *map(str, flags),
        ],
        cwd=ROOT,
        env=env,
        capture_output=True,
        check=False,
        text=True,
    )


def test_a_truncated_checkpoint(glaucoma_run, tmp_path, compiled):
    """In a process of its own: what follows the failure may speak until the end."""
    workdir = glaucoma_run.copy(tmp_path / "run")
    for step in (workdir / "checkpoints").iterdir():
        files = [path for path in (step / "model").rglob("*") if path.is_file()]
        largest = max(files, key=lambda path: path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    finished = script("evaluate", f"--workdir={workdir}", env=compiled)
    assert finished.returncode == 1
    (line,) = finished.stderr.splitlines()
    assert line.startswith(f"error: The checkpoint {workdir / 'checkpoints'}")
    assert "is damaged" in line
    assert "delete that folder" in line
    assert finished.stdout == ""
    assert not (workdir / "evaluation").exists()


def test_prepare_and_train(glaucoma_run, tmp_path, compiled):
    """The flags that are printed go into the next command; --resume begins a run."""
    prepared = script(
        "prepare_data",
        "--dataset=synthetic_fundus",
        f"--data_dir={tmp_path / 'data'}",
        "--image_size=32",
        "--num_images=4,2,2",
        "--glaucoma_fraction=0.5",
        f"--example={tmp_path / 'example'}",
    )
    assert prepared.returncode == 0, prepared.stderr
    assert "train 4, validation 2, test 2 images" in prepared.stdout
    table = {x[:33].strip(): x[33:].split() for x in prepared.stdout.splitlines()}
    assert table["with glaucoma"] == ["2", "1", "1"]
    flags = [word for word in prepared.stdout.split() if word.startswith("--config.")]
    assert len(flags) == 2
    assert len(list((tmp_path / "example" / "images").iterdir())) == 6
    # The network and step of `glaucoma_run`, compiled already.
    command = [
        "train",
        "--config=configs/default.py",
        f"--workdir={tmp_path / 'run'}",
        *flags,
        "--config.tasks=('glaucoma',)",
        "--config.model.encoder=small",
        "--config.model.width=0.0625",
        "--config.model.norm_momentum=0.5",
        "--config.optimizer.learning_rate=1e-2",
        "--config.batch_size=4",
        "--config.num_epochs=1",
        "--resume",
    ]
    trained = script(*command, env=compiled)
    assert trained.returncode == 0, trained.stderr
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["1"]
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["tasks"] == ["glaucoma"]
    assert stored["model"]["width"] == 0.0625


def test_evaluate_prints_table_and_paths(glaucoma_run, tmp_path, compiled):
    workdir = glaucoma_run.copy(tmp_path / "run")
    finished = script("evaluate", f"--workdir={workdir}", env=compiled)
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    metrics = json.loads((workdir / "evaluation/test-model/metrics.json").read_text())
    (auc,) = (line for line in lines if line.startswith("AUC, averaged"))
    assert f"{metrics['auc']:.3f}" in auc
    assert "n = 6" in auc
    (dice,) = (line for line in lines if line.startswith("optic disc Dice"))
    assert dice.split()[3:] == ["-", "n", "=", "0"]
    for path in lines[-4:]:
        assert pathlib.Path(path).exists()


@pytest.fixture(scope="module")
def signalled(glaucoma_run, compiled, tmp_path_factory):
    """Commands that get a signal in the midst of their work, and one after them."""
    place = tmp_path_factory.mktemp("signalled")
    workdir = glaucoma_run.copy(place / "run")
    (place / "in").mkdir()
    for index in range(300):
        picture = Image.fromarray(np.full((40, 50, 3), index % 256, np.uint8))
        picture.save(place / "in" / f"{index:03}.png")
    (place / "in" / "000.png").write_text("not a picture")
    commands, signals = {}, {}
    for one in ENDING:
        name = one.name
        commands[name] = predict = [
            "predict",
            f"--workdir={workdir}",
            f"--images={place / 'in'}",
            f"--output={place / name / 'out'}",
        ]
        signals[name] = one, str(place / name / "out" / "overlays" / "005.jpg")
    commands["after"] = [*predict[:2], f"--images={place / 'in/00[1-3].png'}"]
    commands["after"].append(f"--output={place / 'SIGKILL' / 'out'}")
    commands["evaluate"] = ["evaluate", f"--workdir={workdir}"]
    pattern = workdir / "evaluation" / ".test-model.*" / "new" / "metrics.json"
    signals["evaluate"] = signal.SIGTERM, str(pattern)
    before = sorted(workdir.rglob("*"))
    ended = forked_commands.run(commands, place, compiled, signals=signals)
    assert sorted(workdir.rglob("*")) == sorted([*before, workdir / "evaluation"])
    return place, ended


ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL)


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_what_was_predicted_before_a_signal_stays(number, signalled):
    place, ended = signalled[0] / number.name, signalled[1][number.name]
    assert [path.name for path in place.iterdir()] == ["out"]
    said = forked_commands.said(ended.err)
    assert said[0].startswith(f"error: {signalled[0] / 'in/000.png'} is not an image")
    if number == signal.SIGKILL:
        assert ended.code == -number
        assert len(said) == 1
        # The next command has replaced what was left.
        assert signalled[1]["after"].code == 0, signalled[1]["after"].err
        wanted = ["001", "002", "003"]
    else:
        assert ended.code == 128 + number
        name = "" if number == signal.SIGINT else f" by {number.name}"
        assert said[1:] == [f"interrupted{name}; continue with --resume."]
        wanted = [f"{index:03}" for index in range(1, 5)]
    with (place / "out" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [row["image"] for row in rows]
    assert names[: len(wanted)] == wanted
    assert len(names) < 299
    for row in rows:
        with Image.open(place / "out" / row["overlay"]) as picture:
            picture.load()
    pictures = {path.stem for path in (place / "out" / "overlays").iterdir()}
    assert pictures >= {*names}
    assert len(pictures) <= len(names) + 1


def test_an_evaluation_that_gets_a_signal_leaves_nothing(signalled):
    ended = signalled[1]["evaluate"]
    assert ended.code == 128 + signal.SIGTERM
    said = forked_commands.said(ended.err)
    assert said == ["interrupted by SIGTERM; repeat the command."]
    assert list((signalled[0] / "run" / "evaluation").iterdir()) == []


def test_predict_counts_what_it_skipped_and_converted(glaucoma_run, tmp_path, compiled):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(folder / "a.png")
    (folder / "b.jpg").write_text("not a picture")
    for name in ("c", "d"):
        Image.new("CMYK", (50, 40)).save(folder / f"{name}.jpg")
    flags = [f"--workdir={glaucoma_run.workdir}", f"--images={folder}"]
    finished = script("predict", *flags, f"--output={tmp_path / 'out'}", env=compiled)
    assert finished.returncode == 1
    assert finished.stderr.count("b.jpg is not an image") == 1
    assert "Photographs skipped: 1." in finished.stderr
    notes = [x for x in finished.stderr.splitlines() if x.startswith("note: ")]
    assert len(notes) == 2
    assert notes[0].startswith("note: 2 photographs in CMYK without a colour profile")
    assert notes[1].startswith("note: 3 of 3 photographs are of doubtful quality")
    assert "Traceback" not in finished.stderr
    with (tmp_path / "out" / "predictions.csv").open() as file:
        assert [row["image"] for row in csv.DictReader(file)] == ["a", "c", "d"]
