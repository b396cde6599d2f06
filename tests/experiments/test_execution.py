"""Who does the runs of an experiment, and what comes of it."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from training_fixtures import once

from mtl_jax import configuration, files, workdirs
from mtl_jax.data import pipeline
from mtl_jax.errors import UserError
from mtl_jax.experiments import execution, plan, results
from mtl_jax.training.checkpoints import Damaged, Unreadable

pytest_plugins = ("training_fixtures",)

METHODS = ("independent", "vanilla")


@pytest.fixture(scope="module")
def config(make_config):
    """The encoder alone, one epoch."""
    return make_config(tasks=("glaucoma",), num_epochs=1, validate_every=1)


@pytest.fixture(scope="module")
def experiment(config, shared_dir):
    """Two methods on two folds; nobody writes to it."""
    directory = shared_dir / "experiment"
    runs = plan.cross_validation(config, METHODS, 2)
    # Of several workers one carries it out.
    with once(directory / "results.csv", shared_dir / "experiment.lock") as first:
        if first:
            execution.execute(directory, "cross_validation", config, runs)
    return directory


def logs(directory):
    """What was trained, with the seconds it took."""
    return {path: path.read_text() for path in directory.rglob("metrics.jsonl")}


@pytest.mark.slow
def test_a_row_for_every_run_and_metric(experiment, config):
    rows = results.read(experiment)
    test = {
        (row["method"], row["fold"]): row["value"]
        for row in rows
        if (row["split"], row["resolution"], row["metric"]) == ("test", "native", "auc")
    }
    assert set(test) == {(method, fold) for method in METHODS for fold in ("0", "1")}
    for (method, fold), value in test.items():
        name = f"{method}-fold_{fold}-seed_{fold}-lr_0.01"
        evaluation = experiment / "runs" / name / "evaluation/test-native/metrics.json"
        metrics = json.loads(evaluation.read_text())
        assert metrics["auc"] == value
        assert metrics["fold"] == fold
    kinds = {(row["split"], row["metric"]) for row in rows}
    assert ("validation", "loss_glaucoma") in kinds
    assert ("", "num_parameters") in kinds
    # What this network does not predict has no row.
    assert not any(metric in ("dice_disc", "fovea_error") for _, metric in kinds)


@pytest.mark.slow
def test_what_is_finished_is_not_done_again(experiment, config, capsys):
    before = logs(experiment)
    runs = plan.cross_validation(config, METHODS, 2)
    execution.execute(experiment, "cross_validation", config, runs)
    assert logs(experiment) == before
    assert capsys.readouterr().out.count(": finished") == 4


@pytest.mark.slow
def test_killed_in_the_second_run_it_comes_to_the_same_csv(
    experiment, config, killed, tmp_path
):
    directory, methods = tmp_path / "cv", METHODS[:1]
    killed(directory, config, methods, folds=2, last=3)
    assert {(r["method"], r["fold"]) for r in results.read(directory)} == {
        ("independent", "0")
    }
    runs = plan.cross_validation(config, methods, 2)
    assert execution.execute(directory, "cross_validation", config, runs) == 0
    rows, expected = (
        [
            row
            for row in results.read(place)
            if row["metric"] != "seconds_per_step" and row["method"] in methods
        ]
        for place in (directory, experiment)
    )
    assert rows == expected


@pytest.mark.slow
def test_another_experiments_directory_is_refused(experiment, config, make_config):
    runs = plan.cross_validation(config, METHODS, 2)
    with pytest.raises(UserError, match="its kind is cross_validation.*name another"):
        execution.execute(experiment, "repeats", config, runs)
    fields = {"num_epochs": 2, "validate_every": 1, "checkpoint_every": 1}
    other = make_config(tasks=("glaucoma",), **fields)
    runs = plan.cross_validation(other, METHODS, 2)
    with pytest.raises(UserError, match=r"config differs in num_epochs\)"):
        execution.execute(experiment, "cross_validation", other, runs)


@pytest.mark.parametrize("text", ["[]", "{}", '{"kind": "repeats", "config": 3}', "{"])
def test_another_program_s_experiment_json_is_not_touched(text, config, tmp_path):
    (tmp_path / "experiment.json").write_text(text)
    reason = "does not describe an experiment|has 3 where a config is expected"
    with pytest.raises(UserError, match=f"({reason}).*name another"):
        execution.execute(tmp_path, "repeats", config, [])
    assert (tmp_path / "experiment.json").read_text() == text
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_a_run_is_one_process_s_until_that_ends(experiment, config, tmp_path):
    directory = tmp_path / "cv"
    shutil.copytree(experiment, directory)
    runs = plan.cross_validation(config, METHODS, 2)[:1]
    workdir = directory / "runs" / runs[0].name
    (workdir / results.RESULT).unlink()
    code = (
        "import filelock, sys, time\n"
        "lock = filelock.FileLock(sys.argv[1])\n"
        "lock.acquire()\n"
        "print('locked', flush=True)\n"
        "time.sleep(600)\n"
    )
    lock = workdir / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", code, lock], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "locked\n"
        assert execution.execute(directory, "cross_validation", config, runs) == 1
        assert results.finished(workdir) is None
        names = {row["method"] + row["fold"] for row in results.read(directory)}
        assert names == {"independent1", "vanilla0", "vanilla1"}
        os.kill(other.pid, signal.SIGKILL)
    # Only evaluated: its training is finished.
    before = logs(directory)
    assert execution.execute(directory, "cross_validation", config, runs) == 0
    assert logs(directory) == before
    assert len(results.read(directory)) == len(results.read(experiment))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "tries"), [(Damaged, 2), (Unreadable, 1)])
def test_what_is_damaged_again_is_not_redone_for_ever(
    experiment, config, tmp_path, monkeypatch, kind, tries
):
    """As on a full disk, where whatever is written cannot be read back.

    What is not proven damaged is not deleted.
    """
    directory = tmp_path / "cv"
    shutil.copytree(experiment, directory)
    runs = plan.cross_validation(config, METHODS, 2)[:1]
    workdir = (directory / "runs" / runs[0].name).absolute()
    (workdir / results.RESULT).unlink()
    tried = []

    def fail(*arguments, **options):
        tried.append(arguments)
        raise kind("is damaged", workdir / "checkpoints/3")

    monkeypatch.setattr(workdirs, "train", fail)
    with pytest.raises(UserError, match="1 of 1 runs have failed.* is damaged"):
        execution.execute(
            directory, "cross_validation", config, runs, redo_damaged=True
        )
    assert len(tried) == tries
    assert (workdir / "checkpoints").exists() == (kind is Unreadable)


@pytest.mark.slow
def test_data_may_move_between_training_and_evaluation(config, tmp_path, compiled):
    """As those that each job of a cluster copies to a folder of its own."""
    first, second = tmp_path / "job1", tmp_path / "job2"
    first.symlink_to(config.data.data_dir)
    moved = configuration.from_json(configuration.to_json(config))
    moved.data.data_dir = str(first)
    (run,) = plan.cross_validation(moved, METHODS[:1], 2)[:1]
    workdirs.train(run.config, tmp_path / "cv/runs" / run.name)
    first.rename(second)
    moved.data.data_dir = str(second)
    runs = plan.cross_validation(moved, METHODS[:1], 2)[:1]
    assert execution.execute(tmp_path / "cv", "cross_validation", moved, runs) == 0


def test_a_data_set_without_test_split_is_refused_before_the_training(
    config, tmp_path, monkeypatch
):
    builder = pipeline.open_dataset(config.data.data_dir, config.data.dataset)
    place = tmp_path / "data" / config.data.dataset
    shutil.copytree(builder.data_dir, place / "3.0.0")
    info = json.loads((place / "3.0.0/dataset_info.json").read_text())
    info["splits"] = [one for one in info["splits"] if one["name"] != "test"]
    (place / "3.0.0/dataset_info.json").write_text(json.dumps(info))
    other = configuration.from_json(configuration.to_json(config))
    other.data.data_dir = str(tmp_path / "data")
    runs = plan.cross_validation(other, METHODS, 2)
    with pytest.raises(UserError, match="has no split 'test'; it has train, validat"):
        execution.execute(tmp_path / "cv", "cross_validation", other, runs)
    # Nor is the directory now that of a config with a mistake in it.
    assert not (tmp_path / "cv").exists()


def test_missing_weights_are_refused_before_the_training(make_config, tmp_path):
    config = make_config(
        {
            "model.pretrained": str(tmp_path / "vgg13"),
            "method.two_stage_pretrained": str(tmp_path / "resnet34"),
        }
    )
    runs = plan.cross_validation(config, ["two_stage"], 2)
    directory = tmp_path / "cv"
    with pytest.raises(UserError, match="two_stage cannot begin.*resnet34, where"):
        execution.execute(directory, "cross_validation", config, runs)
    assert not directory.exists()
    # What is finished does not need them any more.
    (*_, run) = runs
    files.write_json(directory / "runs" / run.name / results.RESULT, [])
    assert execution.execute(directory, "cross_validation", config, [run]) == 0
