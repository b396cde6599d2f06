import hashlib
import json
import math
import os
import pathlib
import tempfile
import threading

import grain
import jax
import numpy as np
import pytest
from denial import denied

from mtl_jax import workdirs
from mtl_jax.errors import UserError
from mtl_jax.training.checkpoints import (
    DIGESTS,
    Absent,
    Checkpoints,
    Damaged,
    Unreadable,
)
from mtl_jax.training.state import TrainState

pytest_plugins = ("training_fixtures",)


def state_at(step, batch_stats=()):
    return TrainState(
        step=np.asarray(step, np.int32),
        params={"w": np.arange(3, dtype=np.float32) + step},
        batch_stats={name: np.full(2, step, np.float32) for name in batch_stats},
        opt_state=({"mu": np.full((4, 3), step / 7, np.float32)}, np.asarray(step)),
        key=jax.random.key(step),
    )


def data():
    return iter(grain.MapDataset.range(10).to_iter_dataset())


def save(workdir, scores, start=1):
    """Saves one checkpoint for each score, at the steps from `start` on."""
    checkpoints = Checkpoints(workdir)
    batches = data()
    for step, score in enumerate(scores, start=start):
        next(batches)
        checkpoints.save(state_at(step), batches, {"epoch": step}, score)
    checkpoints.close()


def test_no_checkpoints(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run")
    assert checkpoints.steps() == []
    assert checkpoints.latest() is None
    assert checkpoints.best() is None
    checkpoints.close()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("scores", "kept", "best"),
    [
        ([0.1, 0.9, 0.3, 0.2, 0.4], [2, 4, 5], 2),
        ([0.1, 0.2, 0.3, 0.4], [3, 4], 4),
        ([0.4, 0.3, 0.2], [1, 2, 3], 1),
        ([-3.0, -1.0, -2.0, -4.0], [2, 3, 4], 2),
        ([None, None, None], [2, 3], 3),
        ([0.0], [1], 1),
    ],
)
def test_the_best_is_kept_beside_the_latest_two(tmp_path, scores, kept, best):
    save(tmp_path, scores)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == kept
    assert checkpoints.best() == best
    assert checkpoints.latest() == len(scores)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        str(step) for step in kept
    ]


def test_the_best_outlives_a_resumed_run(tmp_path):
    save(tmp_path, [0.2, 0.9, 0.3])
    save(tmp_path, [0.5, 0.6, 0.4], start=4)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [2, 5, 6]
    assert checkpoints.best() == 2


@pytest.mark.parametrize("batch_stats", [(), ("mean", "var")])
def test_a_state_comes_back(tmp_path, batch_stats):
    checkpoints = Checkpoints(tmp_path)
    batches = data()
    assert [next(batches) for _ in range(3)] == [0, 1, 2]
    saved = state_at(5, batch_stats)
    metadata = {"epoch": 2, "validation": {"auc": None}, "x": 0.1}
    checkpoints.save(saved, batches, metadata, None)
    checkpoints.close()

    again, other = Checkpoints(tmp_path), data()
    assert again.restore_metadata(5) == metadata
    state = again.restore(5, state_at(0, batch_stats), other)
    assert next(other) == 3
    a, b = ((s.step, s.params, s.batch_stats, s.opt_state) for s in (state, saved))
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.random.key_data(state.key).tolist() == [0, 5]
    network = {
        "params": state_at(0).params,
        "batch_stats": state_at(0, batch_stats).batch_stats,
    }
    network = again.restore_model(5, network)
    np.testing.assert_array_equal(network["params"]["w"], saved.params["w"])
    again.close()


def test_a_step_that_is_not_there(tmp_path):
    save(tmp_path, [0.1])
    with pytest.raises(Absent, match="no checkpoint .*checkpoints/7; use another"):
        Checkpoints(tmp_path).restore_metadata(7)


@pytest.mark.parametrize("has_digests", [True, False])
def test_another_networks_variables(tmp_path, has_digests):
    save(tmp_path, [0.1])
    if not has_digests:
        (tmp_path / "checkpoints/1" / DIGESTS).unlink()
    other = {"params": {"v": np.zeros(3, np.float32)}, "batch_stats": {}}
    with pytest.raises(Unreadable) as caught:
        Checkpoints(tmp_path).restore_model(1, other)
    assert not isinstance(caught.value, Damaged)
    expected = "those that were written" if has_digests else "no digests"
    assert expected in str(caught.value)
    assert "delete" not in str(caught.value)


def test_the_digests_are_those_of_sha256sum(tmp_path):
    save(tmp_path, [0.1, 0.2])
    for folder in (tmp_path / "checkpoints").iterdir():
        listed = json.loads((folder / DIGESTS).read_text())
        files = {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()}
        later = {DIGESTS, "_CHECKPOINT_METADATA", "commit_success.txt"}
        assert set(listed) == {str(path) for path in files} - later
        for name, digest in listed.items():
            assert digest == hashlib.sha256((folder / name).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "part", ["", "1", "1/model", "1/model/manifest.ocdbt", "1/metadata/metadata"]
)
@pytest.mark.parametrize("has_digests", [True, False])
def test_what_may_not_be_read_is_not_called_damaged(part, has_digests):
    # The folder of `tmp_path` may not be entered by others.
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder).chmod(0o755)
        save(pathlib.Path(folder), [0.1])
        checkpoints = pathlib.Path(folder, "checkpoints")
        if not has_digests:
            (checkpoints / "1" / DIGESTS).unlink()
        with (
            denied(checkpoints / part),
            pytest.raises(UserError, match=r"cannot be read \(Permission denied") as e,
        ):
            Checkpoints(pathlib.Path(folder), read_only=True).latest()
    assert not isinstance(e.value, Damaged)
    assert "delete" not in str(e.value)


def test_reading_while_a_run_saves(tmp_path):
    """What is read is what was saved, or was deleted meanwhile; nothing is damaged."""
    save(tmp_path, [0.5])
    saver = threading.Thread(target=save, args=(tmp_path, [0.1] * 9, 2))
    saver.start()
    read = 0
    while saver.is_alive():
        checkpoints = Checkpoints(tmp_path, read_only=True)
        for choose in (checkpoints.latest, checkpoints.best):
            step = choose()
            state = state_at(0)
            network = {"params": state.params, "batch_stats": state.batch_stats}
            try:
                network = checkpoints.restore_model(step, network)
            except Absent:
                continue
            np.testing.assert_array_equal(
                network["params"]["w"], state_at(step).params["w"]
            )
            read += 1
    saver.join()
    assert read > 5
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["1", "10", "9"]


@pytest.mark.parametrize("name", ["a[1]", "a*", "a?", "a\\b"])
def test_a_folder_that_orbax_misreads(tmp_path, name):
    with pytest.raises(UserError, match="has the character .* can be saved; rename"):
        Checkpoints(tmp_path / name)
    if "\\" in name:
        with pytest.raises(UserError, match="has the character .* can be read; rename"):
            Checkpoints(tmp_path / name, read_only=True)
    else:
        save(tmp_path / "run", [0.1])
        (tmp_path / "run").rename(tmp_path / name)
        checkpoints = Checkpoints(tmp_path / name, read_only=True)
        assert checkpoints.restore_metadata(1) == {"epoch": 1}


def test_what_a_killed_save_left_is_not_a_checkpoint(tmp_path):
    save(tmp_path, [0.1, 0.2])
    left = tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp"
    left.mkdir()
    reader = Checkpoints(tmp_path, read_only=True)
    assert reader.steps() == [1, 2]
    assert reader.best() == 2
    assert reader.unfinished() == [3]
    reader.close()
    # It could belong to a run that is saving right now; the next run clears it away.
    assert left.exists()
    save(tmp_path, [0.3], start=4)
    assert Checkpoints(tmp_path).steps() == [2, 4]
    assert not left.exists()


def test_waiting_for_a_save(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_at(1), data(), {}, None)
    checkpoints.wait()
    assert checkpoints.latest() == 1
    checkpoints.close()


# Damage to the checkpoint of a real run.


def step_folder(workdir):
    return max((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))


def largest(folder):
    return max(
        (path for path in folder.rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "truncated weights": lambda folder: truncate(largest(folder / "model")),
    "emptied manifest": lambda folder: (folder / "model/manifest.ocdbt").write_bytes(
        b""
    ),
    "no weights": lambda folder: largest(folder / "model").unlink(),
    "no record": lambda folder: (folder / "metadata/metadata").unlink(),
    "garbage in the record": lambda folder: (folder / "metadata/metadata").write_text(
        '{"config": '
    ),
    "binary in the record": lambda folder: (folder / "metadata/metadata").write_bytes(
        b"\xff\xfe\x00"
    ),
}


# TensorStore goes on reading the other arrays, for an event loop that is closed.
still_reading = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_not_used(
    glaucoma_run, tmp_path, damage, capsys
):
    workdir = glaucoma_run.copy(tmp_path / "run")
    folder = step_folder(workdir)
    DAMAGE[damage](folder)
    with pytest.raises(Damaged) as caught:
        workdirs.load(workdir, "18")
    assert f"{folder} is damaged" in str(caught.value)
    assert "delete that folder" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert workdirs.load(workdir, "latest").checkpoint == "15"
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith(f"note: The checkpoint {folder} is damaged (")
    assert note.endswith("); another one is used.")


def test_a_damaged_best_checkpoint_is_not_used(glaucoma_run, tmp_path, capsys):
    workdir = glaucoma_run.copy(tmp_path / "run")
    steps = Checkpoints(workdir).steps()
    best = Checkpoints(workdir).best()
    (workdir / f"checkpoints/{best}/metrics/metrics").write_text('{"score": 9}')
    assert workdirs.load(workdir, "best").checkpoint in map(str, {*steps} - {best})
    assert (
        f"{best} is damaged ('metrics/metrics' is not what" in capsys.readouterr().err
    )


@still_reading
@pytest.mark.parametrize("damage", DAMAGE)
def test_nothing_is_said_of_damage_without_digests(glaucoma_run, tmp_path, damage):
    workdir = glaucoma_run.copy(tmp_path / "run")
    folder = step_folder(workdir)
    DAMAGE[damage](folder)
    (folder / DIGESTS).unlink()
    with pytest.raises(Unreadable, match=f"{folder} cannot be read.* no digests") as e:
        workdirs.load(workdir, "latest")
    assert not isinstance(e.value, Damaged)
    assert "delete" not in str(e.value)
    assert "\n" not in str(e.value)


def test_if_all_checkpoints_are_damaged_no_run_goes_on(glaucoma_run, tmp_path):
    workdir = glaucoma_run.copy(tmp_path / "run")
    for folder in (workdir / "checkpoints").iterdir():
        (folder / "metadata/metadata").unlink()
    for use in (
        lambda: workdirs.load(workdir),
        lambda: workdirs.train(glaucoma_run.config, workdir, resume=True),
    ):
        with pytest.raises(Damaged, match="'metadata/metadata' is missing") as caught:
            use()
        # The command train has no such flag.
        assert "--checkpoint" not in str(caught.value)
    assert len(Checkpoints(workdir).steps()) > 1


def test_going_on_from_the_checkpoint_before_a_damaged_one(
    glaucoma_run, tmp_path, capsys
):
    workdir = glaucoma_run.copy(tmp_path / "run")
    folder = step_folder(workdir)
    truncate(largest(folder / "optimizer"))
    workdirs.train(glaucoma_run.config, workdir, resume=True)
    assert f"{folder} is damaged" in capsys.readouterr().err
    # It is set aside, and not deleted.
    assert (workdir / "checkpoints/18.damaged/model").is_dir()
    a, b = (workdirs.load(w, "latest") for w in (workdir, glaucoma_run.workdir))
    assert a.checkpoint == b.checkpoint == "18"
    variables = [network.networks[0][1] for network in (a, b)]
    jax.tree.map(np.testing.assert_array_equal, *variables)


# Which checkpoint of a run.


def test_best_and_latest_of_a_run(glaucoma_run):
    text = (glaucoma_run.workdir / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    scores = {r["step"]: r["validation/score"] for r in rows if "validation/score" in r}
    assert sorted(scores) == [3, 6, 9, 12, 15, 18]
    for row in rows:
        if "validation/score" in row:
            assert row["validation/score"] == -row["validation/loss_glaucoma"]
    best = max(scores, key=scores.get)
    checkpoints = Checkpoints(glaucoma_run.workdir)
    assert set(checkpoints.steps()) == {best, 15, 18}
    for name, step in (("best", best), ("latest", 18), ("15", 15)):
        network = workdirs.load(glaucoma_run.workdir, name)
        assert network.checkpoint == str(step)
        assert network.metadata["epoch"] == step // 3
        assert math.isclose(network.metadata["validation"]["score"], scores[step])


@pytest.mark.parametrize("name", ["16", "worst", "-1", ""])
def test_a_checkpoint_that_does_not_exist(glaucoma_run, name):
    with pytest.raises(UserError, match="no checkpoint.*best, latest or one of.* 18"):
        workdirs.load(glaucoma_run.workdir, name)


def test_a_checkpoint_of_another_version(glaucoma_run, tmp_path):
    """Its config has a field that ours has not."""
    workdir = glaucoma_run.copy(tmp_path / "run")
    for path in (workdir / "checkpoints").glob("*/metadata/metadata"):
        metadata = json.loads(path.read_text())
        config = json.loads(metadata["config"])
        config["loss"]["magic"] = 1
        path.write_text(json.dumps({**metadata, "config": json.dumps(config)}))
        (path.parents[1] / DIGESTS).unlink()
    with pytest.raises(UserError, match="another version.*loss.magic is unknown"):
        workdirs.load(workdir)


def test_workdirs_without_checkpoints(tmp_path):
    with pytest.raises(UserError, match="There is no workdir"):
        workdirs.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no checkpoint"):
        workdirs.load(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "checkpoints/3.orbax-checkpoint-tmp").mkdir(parents=True)
    with pytest.raises(UserError, match="first checkpoint of .* is being written"):
        workdirs.load(tmp_path)
