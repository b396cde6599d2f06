"""Lots of runs that are trained at once, each with several networks."""

import functools
import json
import shutil

import pytest
from training_fixtures import once

from mtl_jax.errors import UserError
from mtl_jax.experiments import execution, plan, results

pytest_plugins = ("training_fixtures",)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def of_two_networks(make_config):
    """The config of runs that train a network for each of two tasks."""
    # Not Adam, which makes steps of full size of rounding noise.
    fields = {
        "method.name": "single",
        "optimizer.name": "sgd",
        "model.norm_momentum": 0.99,
    }
    return make_config(
        fields, tasks=("glaucoma", "fovea"), num_epochs=2, validate_every=1
    )


@pytest.fixture(scope="module")
def one_by_one(of_two_networks, shared_dir, compiled):
    """Two folds of such runs, one after the other; nobody writes to it."""
    directory = shared_dir / "one_by_one"
    runs = plan.cross_validation(of_two_networks, ["single"], 2)
    with once(directory / "results.csv", shared_dir / "one_by_one.lock") as first:
        if first:
            execution.execute(directory, "cross_validation", of_two_networks, runs)
    return directory


def test_they_have_the_results_that_each_has_alone(
    of_two_networks, one_by_one, killed, tmp_path, capsys
):
    """Even if killed in between."""
    runs = plan.cross_validation(of_two_networks, ["single"], 2)
    # Two runs of two steps an epoch: in the second epoch of the second network.
    last = 8 + 4 + 2
    killed(
        tmp_path, of_two_networks, ["single"], folds=2, last=last, runs_per_program=2
    )
    steps = [
        (path.parent.name, json.loads(path.read_text().splitlines()[-1])["step"])
        for path in sorted(tmp_path.rglob("metrics.jsonl"))
    ]
    assert steps == [("fovea", 2), ("glaucoma", 4)] * 2
    execution.execute(
        tmp_path, "cross_validation", of_two_networks, runs, runs_per_program=2
    )
    shown = capsys.readouterr()
    assert shown.out.count(": training") == 2
    assert "training 2 runs" in shown.err
    found, expected = (
        {
            tuple(row[key] for key in results.COLUMNS[:-1]): row["value"]
            for row in results.read(directory)
            if row["metric"] != "seconds_per_step"
        }
        for directory in (tmp_path, one_by_one)
    )
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


def damage(workdir):
    for path in (workdir / "checkpoints").rglob("*"):
        if path.is_file() and path.stat().st_size > 2000:
            path.write_bytes(path.read_bytes()[:1000])


def test_damaged_checkpoints_are_named_or_done_again(
    of_two_networks, one_by_one, tmp_path
):
    directory = tmp_path / "cv"
    shutil.copytree(one_by_one, directory)
    runs = plan.cross_validation(of_two_networks, ["single"], 2)
    both = [directory / "runs" / run.name for run in runs]
    for workdir in both:
        (workdir / results.RESULT).unlink()
    execute = functools.partial(
        execution.execute,
        directory,
        "cross_validation",
        of_two_networks,
        runs,
        runs_per_program=2,
    )
    damage(both[1] / "fovea")
    with pytest.raises(UserError, match="1 of 2 runs.* is damaged.*--redo_damaged"):
        execute()
    # It is not in the other's way.
    assert [results.finished(workdir) is None for workdir in both] == [False, True]
    # Now both networks of the run.
    damage(both[1] / "glaucoma")
    assert execute(redo_damaged=True) == 0
    found, expected = (
        [row for row in results.read(place) if row["metric"] != "seconds_per_step"]
        for place in (directory, one_by_one)
    )
    assert found == expected
