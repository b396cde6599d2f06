"""Carries out the runs of an experiment, by any number of processes at once.

What is finished is not done again, what was interrupted goes on from its checkpoint,
and each run is one process's at a time: a lock that ends with the process claims it.
"""

import contextlib
import itertools
import json
import pathlib
import shutil
from collections.abc import Iterator, Sequence

import filelock
import jax

from mtl_jax import configuration, files, workdirs
from mtl_jax.data import pipeline
from mtl_jax.errors import NotFinite, UserError
from mtl_jax.evaluation import evaluate
from mtl_jax.experiments import results
from mtl_jax.experiments.plan import Run
from mtl_jax.training.checkpoints import Damaged

_RECORD = "experiment.json"


class RunsFailed(UserError):
    """Some runs have failed; all others are done."""


def execute(
    directory: pathlib.Path,
    kind: str,
    config: configuration.Config,
    runs: Sequence[Run],
    *,
    redo_damaged: bool = False,
) -> int:
    """Trains and evaluates runs.

    Args:
      directory: of the experiment; gets `experiment.json`, `runs/NAME/` and, whenever
        runs are finished, `results.csv` with the rows of all that are.
      kind: of the experiment, such as `cross_validation`.
      config: that the runs' are made from.
      runs: those to carry out here. Others, of more methods or seeds, may be added to
        the directory by another call.
      redo_damaged: whether a network whose checkpoint cannot be read begins anew.

    Returns:
      How many of the runs other processes were at; they may not be finished.

    Raises:
      UserError: if the directory holds another experiment, or a run cannot be trained
        or evaluated.
      RunsFailed: naming runs whose numbers are not finite or whose checkpoint is
        damaged, when the others are done.
    """
    directory = pathlib.Path(directory)
    _check_weights(directory, runs)
    _claim_directory(directory, kind, config)
    skipped, failures = _execute(directory, runs, redo_damaged)
    _collect(directory)
    if failures:
        names = "; ".join(f"{name}: {error}" for name, error in failures.items())
        raise RunsFailed(f"{len(failures)} of {len(runs)} runs have failed. {names}")
    return skipped


def _execute(
    directory: pathlib.Path, runs: Sequence[Run], redo_damaged: bool
) -> tuple[int, dict[str, UserError]]:
    """Carries out what is to do; says how many others are at, and what failed."""
    skipped, failures = 0, {}
    for number, run in enumerate(runs, 1):
        with _claimed(directory, run) as is_ours:
            is_finished = results.finished(_workdir(directory, run)) is not None
            if is_finished:
                state = "finished"
            elif is_ours:
                state = "training"
            else:
                state, skipped = "another process is at it", skipped + 1
            print(f"run {number} of {len(runs)}, {run.name}: {state}", flush=True)
            if is_finished or not is_ours:
                continue
            try:
                _carry_out(directory, run, redo_damaged)
            except (NotFinite, Damaged) as failure:
                print(f"{run.name} has failed: {failure}", flush=True)
                failures[run.name] = failure
            _collect(directory)
            # The programs of this run are of no use to the next.
            jax.clear_caches()
    return skipped, failures


def _workdir(directory: pathlib.Path, run: Run) -> pathlib.Path:
    return directory / "runs" / run.name


def _collect(directory: pathlib.Path) -> None:
    """Writes `results.csv` from the runs that are finished."""
    with _lock(directory, "results"):
        folders = sorted((directory / "runs").iterdir())
        rows = [results.finished(folder) or [] for folder in folders]
        results.write(directory, itertools.chain(*rows))


def _carry_out(directory: pathlib.Path, run: Run, redo_damaged: bool) -> None:
    """Trains and evaluates a run."""
    _check_data(run.config)
    workdir, redone = _workdir(directory, run).absolute(), set()
    while True:
        try:
            rows = _train_and_evaluate(run, workdir)
            break
        except Damaged as error:
            # A run of several networks has a folder for each.
            network = error.path.parents[1]
            if not redo_damaged:
                advice = "Or let --redo_damaged begin that network anew."
                raise Damaged(f"{error} {advice}", error.path) from error
            # What is damaged again is not so by chance.
            if network in redone:
                raise
            shutil.rmtree(network)
            redone.add(network)
    files.write_json(workdir / results.RESULT, rows)


def _train_and_evaluate(run: Run, workdir: pathlib.Path) -> list[results.Row]:
    workdirs.train(run.config, workdir, resume=True)
    evaluations = [
        evaluate.evaluate(
            workdir,
            resolution=resolution,
            # Not where they were when the run began.
            data_dir=run.config.data.data_dir,
        )[1]
        for resolution in ("model", "native")
    ]
    return results.rows_of(run, workdir, evaluations)


def _check_data(config: configuration.Config) -> None:
    """Finds out before the first training what would be missing after it."""
    data = config.data
    pipeline.check_split(pipeline.open_dataset(data.data_dir, data.dataset), "test")


def _check_weights(directory: pathlib.Path, runs: Sequence[Run]) -> None:
    """Finds out before the first training what a method that comes later would lack."""
    unfinished = (
        run for run in runs if results.finished(_workdir(directory, run)) is None
    )
    for run in {run.method: run for run in unfinished}.values():
        try:
            workdirs.load_pretrained(run.config)
        except UserError as error:
            raise UserError(f"{run.method} cannot begin: {error}") from error


def _claim_directory(
    directory: pathlib.Path, kind: str, config: configuration.Config
) -> None:
    """Makes the directory this experiment's, unless it is another's."""
    path = directory / _RECORD
    if not _is_ours(path, kind, config):
        # A mistake in their name is not to become what the directory holds.
        _check_data(config)
    try:
        (directory / "runs").mkdir(parents=True, exist_ok=True)
        with _lock(directory, "results"):
            if not path.exists():
                ours = json.loads(configuration.to_json(config))
                files.write_json(path, {"kind": kind, "config": ours})
    except OSError as error:
        raise UserError(
            f"{directory} cannot be used ({error}); name another directory."
        ) from error
    # Another process may have been first.
    _is_ours(path, kind, config)


def _is_ours(path: pathlib.Path, kind: str, config: configuration.Config) -> bool:
    """False if there is no record yet; that of another experiment is refused."""
    try:
        theirs = json.loads(path.read_text())
        their_kind = theirs["kind"]
        their_config = configuration.from_json(json.dumps(theirs["config"]), path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not of an experiment, or damaged ({error}); name another "
            "directory."
        ) from error
    differing = configuration.differences(config, their_config)
    # Data that have moved are the same data.
    fields = [field for field in differing if field != "data.data_dir"]
    if kind != their_kind or fields:
        what = f"of the kind {their_kind}"
        if kind == their_kind:
            what = f"its config differs in {', '.join(fields)}"
        raise UserError(
            f"{path.parent} holds another experiment ({what}); name another directory."
        )
    return True


@contextlib.contextmanager
def _claimed(directory: pathlib.Path, run: Run) -> Iterator[bool]:
    """Whether this process may carry out the run while it is in the block."""
    try:
        lock = _lock(directory, run.name).acquire(blocking=False)
    except filelock.Timeout:
        yield False
    else:
        with lock:
            yield True


def _lock(directory: pathlib.Path, name: str) -> filelock.FileLock:
    (directory / "locks").mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(directory / "locks" / name)
