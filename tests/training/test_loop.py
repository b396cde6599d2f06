import copy
import csv
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_files import (
    TIMES,
    assert_identical,
    metric_lines,
    saved,
    saved_position,
    saved_steps,
)
from training_fixtures import BATCH_SIZE, STEPS_PER_EPOCH, write_photographs

from mtl_jax import configuration, tasks, workdirs
from mtl_jax.data import batching, folder, pipeline
from mtl_jax.data.folds import Fold
from mtl_jax.errors import Interrupted, UserError
from mtl_jax.evaluation import calibrate, evaluate
from mtl_jax.training import interruption, loop, parallel
from mtl_jax.training import watch as watch_module
from mtl_jax.training.checkpoints import Checkpoints
from mtl_jax.training.watch import Watch, say_spikes

pytest_plugins = ("training_fixtures",)

ROOT = pathlib.Path(__file__).parents[2]


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "tensorboard" not in path.parts
    }


def test_what_a_run_leaves(tiny_run):
    assert sorted(path.name for path in tiny_run.workdir.iterdir()) == [
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "tensorboard",
    ]
    text = (tiny_run.workdir / "config.json").read_text()
    stored = configuration.from_json(text)
    assert configuration.differences(stored, tiny_run.config) == []


def test_metrics_of_a_run(tiny_run):
    rows = metric_lines(tiny_run.workdir)
    training = [row for row in rows if "train/loss_disc" in row]
    validation = [row for row in rows if "validation/auc" in row]
    assert [(row["step"], row["epoch"]) for row in training] == [
        (3 * epoch, epoch) for epoch in range(1, 17)
    ]
    assert [row["epoch"] for row in validation] == [4, 8, 12, 16]
    for name in ("disc", "cup", "fovea"):
        losses = [row[f"train/loss_{name}"] for row in training]
        assert losses[-1] < 0.5 * losses[0]
    for row in training:
        product = row["train/seconds_per_step"] * row["train/images_per_second"]
        assert product == pytest.approx(BATCH_SIZE)


def test_summary_of_an_epoch(tmp_path):
    """The losses of a task are averaged over the steps that had labels of it."""
    watch = Watch(tasks.build(), Checkpoints(tmp_path))
    for step, (loss, labels) in enumerate(
        [([1, 2, 0, 9], [4, 4, 0, 1]), ([2, 4, 0, 0], [4, 4, 0, 0])], start=1
    ):
        metrics = {
            "loss": np.array(loss) / 2,
            "num_labels": np.array(labels),
            "conflicts": np.array(step + 1),
            "weights": np.arange(4.0) / 2 + step,
        }
        watch.add(step, [metrics])
    summary = watch.summary(batch_size=4)
    assert summary["train/conflicts"] == 2.5
    weights = [summary[f"train/weights_{name}"] for name in tasks.TASKS]
    assert weights == [1.5, 2.0, 2.5, 3.0]
    losses = [summary[f"train/loss_{name}"] for name in tasks.TASKS]
    assert losses == [0.75, 1.5, None, 4.5]
    assert summary["train/images_per_second"] * summary[
        "train/seconds_per_step"
    ] == pytest.approx(4)


def test_seconds_per_step(tmp_path, monkeypatch):
    """Neither compiling nor saving counts, unless an epoch has nothing else."""
    now = 0.0
    monkeypatch.setattr(watch_module.time, "perf_counter", lambda: now)
    watch = Watch(tasks.build(), Checkpoints(tmp_path))
    good = {"loss": np.full(4, 0.5), "num_labels": np.full(4, 4)}
    found = []
    for seconds in (90, 6, 9, 12, 12):
        now += seconds
        watch.add(1, [good] * 3)
        found.append(watch.seconds_per_step())
        now += 100  # A save.
        watch.restart_clock()
    assert found == [30, 2, 2.5, 3, 3.5]
    watch.begin_epoch()
    now += 15
    watch.add(1, [good] * 3)
    assert watch.seconds_per_step() == 5


@pytest.mark.parametrize("loss", [np.nan, np.inf, -np.inf])
def test_the_task_of_a_loss_that_is_not_finite_is_named(tmp_path, loss):
    watch = Watch(tasks.build(), Checkpoints(tmp_path))
    losses = np.array([0.5, 0.5, loss, 0.5])
    with pytest.raises(UserError, match=f"The cup loss of step 8 is {loss};.*: none"):
        watch.add(8, [{"loss": losses, "num_labels": np.array([4, 4, 4, 4])}])


def test_ten_skipped_steps_in_a_row_stop_the_run(tmp_path):
    """Also if the run was continued among them."""
    good = {"loss": np.full(4, 0.5), "num_labels": np.full(4, 4), "skipped": False}
    bad = {**good, "loss": np.array([np.nan, 0.5, 0.5, 0.5]), "skipped": True}
    watch = Watch(tasks.build(), Checkpoints(tmp_path))
    for step, metrics in enumerate([*[bad] * 9, good, *[bad] * 5]):
        watch.add(step, [metrics])
    summary = watch.summary(batch_size=4)
    assert (summary["train/skipped"], summary["train/loss_glaucoma"]) == (14, 0.5)
    position = json.loads(json.dumps(watch.position()))
    watch = Watch(tasks.build(), Checkpoints(tmp_path), position)
    watch.begin_epoch()
    for step in range(4):
        watch.add(step, [bad])
    with pytest.raises(UserError, match="glaucoma loss of step 5.*last of 10 steps"):
        watch.add(5, [bad])


def test_spikes_of_a_loss_are_counted_and_told(tmp_path, capsys):
    """Compared with the epoch's steps that had labels, also after a resumption."""
    labels = np.full(4, 4)
    watch = Watch(tasks.build(), Checkpoints(tmp_path))

    def add(step, *loss):
        watch.add(step, [{"loss": np.array(loss), "num_labels": labels}])

    for step in range(1, 6):
        add(step, 1.0, 30.0 if step == 4 else 2.0, 0.0, step)
    add(6, 9.9, 2.0, 50.0, 30.0)
    # The cup had no label but once, and too few fovea losses were before.
    assert watch.spikes == {}
    position = json.loads(json.dumps(watch.position()))
    watch = Watch(tasks.build(), Checkpoints(tmp_path), position)
    add(7, 10.1, 2.0, 50.0, 30.0)
    add(8, 1.0, 21.0, 0.0, 36.0)
    add(9, 11.0, 2.0, 0.0, 1.0)
    assert watch.spikes == {"glaucoma": [7, 9], "disc": [8]}
    summary = watch.summary(batch_size=4)
    counts = {k: v for k, v in summary.items() if "spikes" in k}
    assert counts == {"train/spikes_glaucoma": 2, "train/spikes_disc": 1}
    watch.begin_epoch()
    add(10, 1e9, 1e9, 1e9, 1e9)
    say_spikes(watch.spikes)
    said = capsys.readouterr().err
    assert "so far: glaucoma 2 (first, step 7), disc 1 (first, step 8); look" in said
    say_spikes({})
    assert capsys.readouterr().err == ""


KILLED_RUN = """
import os, pathlib, signal, sys, time
import small_encoder
from mtl_jax import configuration
from mtl_jax.training import watch
from mtl_jax import workdirs
config = configuration.from_json(pathlib.Path(sys.argv[1]).read_text())
workdir = pathlib.Path(sys.argv[2])
whole = watch.Watch.add
def add(self, step, metrics):
    if step == 38:
        while not (workdir / "checkpoints/36").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
    whole(self, step, metrics)
watch.Watch.add = add
workdirs.train(config, workdir)
"""


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(tiny_run, compiled, interrupt, tmp_path):
    """Killed in the middle of epoch 13 of 16; the last checkpoint is of epoch 12.

    Then told to end in the middle of epoch 14.
    """
    workdir = tmp_path / "run"
    command = [sys.executable, "-c", KILLED_RUN]
    finished = subprocess.run(
        [*command, str(tiny_run.workdir / "config.json"), str(workdir)],
        cwd=ROOT,
        env=compiled,
        capture_output=True,
        check=False,
    )
    assert finished.returncode == -signal.SIGKILL, finished.stderr
    assert saved_steps(workdir)[-1] == 36
    assert (workdir / "lock").exists()
    # What such a kill may leave besides: a line cut short.
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2')

    interrupt(tiny_run.config, workdir, 40, signal.SIGTERM)
    workdirs.train(tiny_run.config, workdir, resume=True)
    assert not (workdir / "lock").exists()
    assert {*saved_steps(workdir)} - {41} <= {*saved_steps(tiny_run.workdir)}
    for step in {*saved_steps(workdir)} - {41}:
        for item in ("model", "optimizer"):
            assert_identical(
                saved(workdir, step, item), saved(tiny_run.workdir, step, item)
            )
        assert saved_position(workdir, step) == saved_position(tiny_run.workdir, step)
    assert metric_lines(workdir, TIMES) == metric_lines(tiny_run.workdir, TIMES)
    assert (workdir / "config.json").read_text() == (
        tiny_run.workdir / "config.json"
    ).read_text()


@pytest.fixture
def interrupt(monkeypatch):
    """Sends this process a signal once a training has the metrics of a step."""
    whole, signals = Watch.add, {}

    def add(self, step, metrics):
        whole(self, step, metrics)
        if step in signals:
            os.kill(os.getpid(), signals.pop(step))

    monkeypatch.setattr(Watch, "add", add)

    def train(config, workdir, step, number):
        signals[step] = number
        before = [signal.getsignal(one) for one in interruption.SIGNALS]
        with pytest.raises(Interrupted, match="the training is saved") as caught:
            workdirs.train(config, workdir, resume=True)
        assert caught.value.signal == number
        assert [signal.getsignal(one) for one in interruption.SIGNALS] == before
        # Its metrics are fetched while the next dispatch, of one step, is under way.
        assert max(saved_steps(workdir)) == step + config.steps_per_dispatch

    return train


def assert_same_training(workdir, other, step):
    """Compares two runs, but for rounding."""
    a, b = (saved(w, step, "model") for w in (workdir, other))
    assert a.keys() == b.keys()
    for (path, ours), theirs in zip(
        jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        # A bias in front of batch normalisation has the gradient 0, but for rounding.
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not name.endswith(("conv/bias", "norm/mean")):
            np.testing.assert_allclose(ours, theirs, atol=1e-5, err_msg=name)
    rows, expected = (metric_lines(w, TIMES) for w in (workdir, other))
    assert [row.keys() for row in rows] == [row.keys() for row in expected]
    name = "train/loss_glaucoma"
    losses, theirs = (
        [r[name] for r in lines if name in r] for lines in (rows, expected)
    )
    assert losses == pytest.approx(theirs, rel=1e-5)


def test_several_steps_per_dispatch(glaucoma_run, interrupt, tmp_path):
    """At first, two of the three steps of an epoch are one dispatch, later all."""
    workdir, config = tmp_path / "run", copy.deepcopy(glaucoma_run.config)
    config.steps_per_dispatch = 2
    interrupt(config, workdir, 4, signal.SIGTERM)
    # A run may go on with another number, and with images on the device.
    config.steps_per_dispatch, config.data.memory = 3, "device"
    workdirs.train(config, workdir, resume=True)
    assert_same_training(workdir, glaucoma_run.workdir, 18)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"data.batches": "per_task", "data.fold": "1", "interference_every": 2},
    ],
)
def test_images_on_the_device(make_config, tmp_path, monkeypatch, fields):
    """A step gets places of images, and does as one that gets images."""
    seen, shard = set(), parallel.shard

    def note(batch):
        seen.add(frozenset(batch))
        return shard(batch)

    monkeypatch.setattr(parallel, "shard", note)
    config = make_config(fields, tasks=("glaucoma",), num_epochs=2, validate_every=1)
    for memory in ("host", "device"):
        config.data.memory = memory
        seen.clear()
        workdirs.train(config, tmp_path / memory)
        is_places = [keys == {"index"} for keys in seen if "weight" not in keys]
        assert is_places == [memory == "device"]
    assert_same_training(tmp_path / "device", tmp_path / "host", 6)


def test_images_that_do_not_fit_as_a_whole(make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "MEMORY_SHARE", 0.0)
    config = make_config({"data.memory": "device"})
    with pytest.raises(UserError, match="split train does not fit .* to 'host'"):
        workdirs.train(config, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@given(
    size=st.integers(1, 9),
    per_epoch=st.integers(1, 12),
    every=st.tuples(st.integers(0, 7), st.integers(0, 7)),
)
def test_dispatches(size, per_epoch, every):
    training = loop.Training(
        *[None] * 5,
        batch_size=1,
        steps_per_epoch=per_epoch,
        num_epochs=4,
        validate_every=1,
        checkpoint_every=every[0],
        interference_every=every[1],
        steps_per_dispatch=size,
    )
    found = list(loop._dispatches(training, 0))
    steps = [step for first, last in found for step in range(first, last + 1)]
    assert steps == list(range(1, 4 * per_epoch + 1))
    for first, last in found:
        assert last - first + 1 in (1, size)
        assert not any(n % k == 0 for n in range(first, last) for k in training.pauses)
    # A resumed run has the dispatches of one that was never stopped.
    for number, (_, last) in enumerate(found, 1):
        assert list(loop._dispatches(training, last)) == found[number:]


def test_more_steps_per_dispatch_than_fit(glaucoma_run, tmp_path):
    config = copy.deepcopy(glaucoma_run.config)
    config.steps_per_dispatch = STEPS_PER_EPOCH + 1
    with pytest.raises(
        UserError, match="dispatch is 4, but .* multiple of 3; .* most 3"
    ):
        workdirs.train(config, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_no_more_than_the_patience(glaucoma_run, tmp_path, capsys):
    """A finished run is to go on, but no longer than its score rises."""
    workdir = glaucoma_run.copy(tmp_path / "run")
    config = copy.deepcopy(glaucoma_run.config)
    config.num_epochs, config.patience = 200, 2
    workdirs.train(config, workdir, resume=True)
    scores = [
        row["validation/score"]
        for row in metric_lines(workdir)
        if "validation/score" in row
    ]
    stale = [n - int(np.argmax(scores[: n + 1])) for n in range(len(scores))]
    assert 6 <= len(scores) < 200
    assert [n for n in range(5, len(scores)) if stale[n] >= 2] == [len(scores) - 1]
    # It stays ended, until it is given more patience.
    before = contents(workdir)
    ended = capsys.readouterr().err
    workdirs.train(config, workdir, resume=True)
    assert contents(workdir) == before
    for said in (ended, capsys.readouterr().err):
        assert said.count(f"best score: {stale[-1]}; config.patience ends") == 1


def test_patience_without_validation_images(make_config, folder_data, tmp_path):
    data_dir, dataset = folder_data
    config = make_config({"data.data_dir": data_dir, "data.dataset": dataset})
    config.patience = 2
    with pytest.raises(UserError, match="patience is 2, but there are no validation"):
        workdirs.train(config, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_seed_fixes_the_run(glaucoma_run, interrupt, tmp_path):
    """Though it is stopped within an epoch, and with the last step of another."""
    workdir, config = tmp_path / "again", copy.deepcopy(glaucoma_run.config)
    config.num_epochs = 2
    interrupt(config, workdir, 4, signal.SIGTERM)
    # More epochs than at first are wanted.
    config.num_epochs, config.checkpoint_every = glaucoma_run.config.num_epochs, 7
    interrupt(config, workdir, 8, signal.SIGUSR1)
    assert saved_steps(workdir)[-2:] == [7, 9]
    workdirs.train(config, workdir, resume=True)
    assert saved_steps(workdir)[-2:] == [15, 18]
    assert_identical(
        saved(tmp_path / "again", 18, "model"), saved(glaucoma_run.workdir, 18, "model")
    )
    a, b = (metric_lines(w, TIMES) for w in (tmp_path / "again", glaucoma_run.workdir))
    assert a == b


HOLDER = """
import filelock, os, pathlib, sys, time
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
pathlib.Path(sys.argv[1]).write_text(f"{os.getpid()}\\nelsewhere\\n")
print("locked", flush=True)
time.sleep(60)
"""


def test_resuming_a_finished_run_changes_nothing(glaucoma_run, tmp_path):
    """Nor does it while another process has the workdir, until that one dies."""
    workdir = glaucoma_run.copy(tmp_path / "run")
    before = contents(workdir)
    command = [sys.executable, "-c", HOLDER, workdir / "lock"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        named = f"Process {other.pid} on elsewhere, since 20.*another workdir"
        with pytest.raises(UserError, match=named):
            workdirs.train(glaucoma_run.config, workdir, resume=True)
        workdirs.load(workdir)
        other.kill()
    workdirs.train(glaucoma_run.config, workdir, resume=True)
    assert contents(workdir) == before


def test_other_data_of_the_same_name_are_refused(glaucoma_run, tmp_path):
    """They may have moved, but two splits of the same size may not be exchanged."""
    workdir = glaucoma_run.copy(tmp_path / "run")
    config = glaucoma_run.config.copy_and_resolve_references()
    place = tmp_path / "data" / config.data.dataset
    shutil.copytree(pathlib.Path(config.data.data_dir, config.data.dataset), place)
    config.data.data_dir = str(tmp_path / "data")
    workdirs.train(config, workdir, resume=True)
    test, validation = (
        next(place.glob(f"*/*-{split}.array_record-*"))
        for split in ("test", "validation")
    )
    test.rename(place / "x")
    validation.rename(test)
    (place / "x").rename(validation)
    before = contents(workdir)
    moved = {"split": "none", "data_dir": config.data.data_dir}
    for use in (
        lambda: workdirs.train(config, workdir, resume=True),
        lambda: evaluate.evaluate(workdir, **moved),
        lambda: calibrate.calibrate(workdir, **moved),
    ):
        with pytest.raises(UserError, match=r"other records.*--accept_other_data"):
            use()
    accepted = {"accept_other_data": True}
    workdirs.train(config, workdir, resume=True, **accepted)
    for use in (evaluate.evaluate, calibrate.calibrate):
        # The next check is reached.
        with pytest.raises(UserError, match="no split 'none'"):
            use(workdir, **moved, **accepted)
    assert contents(workdir) == before


def test_a_lock_is_against_other_processes_only(tmp_path):
    attempt = "import filelock, sys; filelock.FileLock(sys.argv[1], 0).acquire()"
    command = [sys.executable, "-c", attempt, tmp_path / "run/lock"]
    with workdirs.locked(tmp_path / "run"):
        with workdirs.locked(tmp_path / "run"):
            pass
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "filelock._error.Timeout" in refused.stderr
        assert (tmp_path / "run/lock").read_text().startswith(f"{os.getpid()}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("resume", [True, False])
def test_a_workdir_of_another_config_is_refused(glaucoma_run, tmp_path, resume):
    workdir = glaucoma_run.copy(tmp_path / "run")
    before = contents(workdir)
    config = glaucoma_run.config.copy_and_resolve_references()
    config.optimizer.learning_rate = 0.5
    config.seed = 1
    with pytest.raises(UserError) as caught:
        workdirs.train(config, workdir, resume=resume)
    assert f"{workdir} holds a run of another config" in str(caught.value)
    assert "optimizer.learning_rate, seed)" in str(caught.value)
    assert contents(workdir) == before


def test_a_workdir_of_this_config_needs_resume(glaucoma_run, tmp_path):
    workdir = glaucoma_run.copy(tmp_path / "run")
    before = contents(workdir)
    with pytest.raises(UserError, match="already holds.*--resume"):
        workdirs.train(glaucoma_run.config, workdir)
    assert contents(workdir) == before
    with (
        jax.default_prng_impl("rbg"),
        pytest.raises(UserError, match="began with JAX_DEFAULT_PRNG_IMPL=threefry2x32"),
    ):
        workdirs.train(glaucoma_run.config, workdir, resume=True)
    path = workdir / "config.json"
    path.write_text("")
    for use in (
        lambda: workdirs.train(glaucoma_run.config, workdir, resume=True),
        lambda: workdirs.load(workdir),
    ):
        with pytest.raises(UserError, match="json cannot be read.*move it away"):
            use()
    path.unlink()
    with pytest.raises(UserError, match="already holds.*--resume"):
        workdirs.train(glaucoma_run.config, workdir)
    assert workdirs.load(workdir).checkpoint


def test_a_workdir_that_is_a_file(make_config, tmp_path):
    (tmp_path / "run").write_text("x")
    with pytest.raises(UserError, match="run cannot be written.*another workdir"):
        workdirs.train(make_config(tasks=("glaucoma",)), tmp_path / "run")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"data.data_dir": "/nowhere"}, "There is no data set"),
        ({"data.dataset": "fundus_folder/nothing"}, "There is no data set"),
        ({"batch_size": 14}, "fewer than one batch of 14"),
        ({"model.encoder": "vgg11"}, "vgg13, vgg16"),
    ],
)
def test_what_cannot_be_trained_leaves_no_workdir(
    make_config, tmp_path, fields, reason
):
    with pytest.raises(UserError, match=reason):
        workdirs.train(make_config(fields), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_the_devices_cannot_share(make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 3)
    with pytest.raises(UserError, match="batch_size is 4, which 3 devices.*multiple"):
        workdirs.train(make_config(), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def epoch_indices(table, epochs):
    """The training images of each step, by their index in the split."""
    everything = table.take(range(len(table)))["image"]
    places = {image.tobytes(): i for i, image in enumerate(everything)}
    batches = batching.training_batches(table, BATCH_SIZE, 0)
    return [
        {places[image.tobytes()] for image in next(batches)["image"]}
        for _ in range(epochs * STEPS_PER_EPOCH)
    ]


def test_a_loss_that_is_not_finite_stops_the_run(
    make_config, tmp_path, monkeypatch, capfd
):
    """One image has a broken annotation, and its turn comes after the first epoch."""
    config = make_config(tasks=("fovea",), num_epochs=8, validate_every=1)
    table = pipeline.open_split(
        pipeline.open_dataset(config.data.data_dir, config.data.dataset), "train"
    )
    used = epoch_indices(table, 8)
    (broken,) = set(range(len(table))) - set.union(*used[:STEPS_PER_EPOCH])
    stop = 1 + next(i for i, members in enumerate(used) if broken in members)
    last = (stop - 1) // STEPS_PER_EPOCH * STEPS_PER_EPOCH
    assert 3 <= last < stop < 24
    whole = pipeline.Split.take

    def take(self, indices):
        batch = whole(self, indices)
        if self.name.endswith("train"):
            batch["fovea_xy"][np.asarray(indices) == broken] = np.nan
        return batch

    monkeypatch.setattr(pipeline.Split, "take", take)
    workdir = tmp_path / "run"
    with pytest.raises(UserError) as caught:
        workdirs.train(config, workdir)
    message = str(caught.value)
    assert message.startswith(f"The fovea loss of step {stop} is nan;")
    assert f"last good checkpoint: {workdir / 'checkpoints' / str(last)})" in message
    assert saved_steps(workdir)[-1] == last
    for step in saved_steps(workdir):
        for leaf in jax.tree.leaves(saved(workdir, step, "model")):
            assert np.isfinite(leaf).all()
    assert {row["step"] for row in metric_lines(workdir)} == set(range(3, last + 1, 3))

    # Told to skip, the run goes on from there.
    config.on_nonfinite = "skip"
    workdirs.train(config, workdir, resume=True)
    assert saved_steps(workdir)[-1] == 24
    for leaf in jax.tree.leaves(
        [saved(workdir, 24, item) for item in ("model", "optimizer")]
    ):
        assert np.isfinite(leaf).all()
    skipped = sum(row.get("train/skipped", 0) for row in metric_lines(workdir))
    assert skipped == sum(broken in members for members in used[last:]) > 0
    assert (
        f"The fovea loss of step {stop} is nan; it is skipped" in capfd.readouterr().err
    )
    assert [row["step"] for row in metric_lines(workdir)] == [
        step for step in range(3, 25, 3) for _ in ("train", "validation")
    ]


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_parameters_that_are_not_finite_are_not_saved(make_config, tmp_path):
    """The only step of the epoch has a finite loss and spoils the network."""
    config = make_config(
        {"optimizer.name": "sgd", "optimizer.learning_rate": 1e39},
        tasks=("glaucoma",),
        batch_size=13,
    )
    config.validate_every = 1
    with pytest.raises(UserError, match=r"after step 1 are not finite.*checkpoint: no"):
        workdirs.train(config, tmp_path / "run")
    assert saved_steps(tmp_path / "run") == []


def test_tasks_without_labels_are_left_out_and_no_validation_split(
    make_config, tmp_path, capsys
):
    """Photographs with diagnoses alone, and a config of all four tasks."""
    write_photographs(tmp_path / "source")
    rows = [f"eye{i},p{i}.png,{i % 2},train" for i in range(4)]
    manifest = "\n".join(["image_id,image,glaucoma,split", *rows])
    (tmp_path / "source/manifest.csv").write_text(manifest)
    built = folder.build(
        tmp_path / "data", tmp_path / "source", image_size=32, shape="stretch"
    )
    fields = {"data.data_dir": str(tmp_path / "data")}
    fields["data.dataset"] = f"fundus_folder/{built.parent.name}"
    # The network and step of `glaucoma_run`, compiled already.
    config = make_config(fields, num_epochs=6, validate_every=2)
    workdir = tmp_path / "run"
    workdirs.train(config, workdir)
    said = capsys.readouterr().err
    assert "split train has no image annotated for disc, cup, fovea; the" in said
    # Four images are one batch. Without scores, the last two checkpoints stay.
    assert saved_steps(workdir) == [4, 6]
    checkpoints = Checkpoints(workdir)
    assert checkpoints.best() == checkpoints.latest() == 6
    metadata = checkpoints.restore_metadata(6)
    checkpoints.close()
    assert metadata["vcdr_classifier"] is None
    assert metadata["validation"] == {}

    rows = metric_lines(workdir)
    assert len(rows) == 6
    losses = {key for row in rows for key in row if key.startswith("train/loss_")}
    assert losses == {"train/loss_glaucoma"}
    # What predicts and evaluates has this task alone, and the run is that of the same
    # config.
    assert tuple(workdirs.load(workdir).config.tasks) == ("glaucoma",)
    workdirs.train(config, workdir, resume=True)


def test_interrupted_before_its_first_checkpoint(make_config, tmp_path):
    """Such a workdir holds no work yet: the same command may be given again."""
    config = make_config(tasks=("glaucoma",), num_epochs=1)
    (tmp_path / "run").mkdir()
    text = configuration.to_json(config)
    (tmp_path / "run" / "config.json").write_text(text)
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "epoch": 1}\n')
    workdirs.train(config, tmp_path / "run")
    assert [row["step"] for row in metric_lines(tmp_path / "run")] == [3, 3]
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["3"]


def test_a_fold_is_trained_validated_and_evaluated(make_config, compiled, tmp_path):
    """13 and 6 images, merged and divided by three."""
    config = make_config(
        {"data.fold": "1", "data.num_folds": 3},
        tasks=("glaucoma",),
        num_epochs=1,
        validate_every=1,
    )
    workdirs.train(config, tmp_path)
    dataset = pipeline.open_dataset(config.data.data_dir, config.data.dataset)
    train, validation = pipeline.open_training_splits(dataset, Fold(1, 3))
    output, metrics = evaluate.evaluate(tmp_path, split="validation")
    assert metrics["fold"] == "1"
    assert metrics["num_images"]["auc"] == len(validation) in (6, 7)
    with (output / "per_image.csv").open(newline="") as file:
        assert [r["image_id"] for r in csv.DictReader(file)] == validation.image_ids()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    (during,) = (json.loads(x) for x in lines if "validation/auc" in x)
    assert during["validation/auc"] == metrics["auc"]
    assert workdirs.load(tmp_path).metadata["num_training_images"] == len(train)
    # The test split stays whole.
    assert evaluate.evaluate(tmp_path)[1]["num_images"]["auc"] == 6
