"""Carries out the runs of an experiment, in any number of processes at once.

A process skips finished runs and continues interrupted ones from their checkpoints. It
claims each run with a lock, which ends with the process.
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
from mtl_jax.training.checkpoints import Damaged, Unreadable

_RECORD = "experiment.json"


class RunsFailed(UserError):
    """Some runs have failed; all others are finished."""


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
      directory: folder of the experiment. It gets `experiment.json`, `runs/NAME/` and,
        after each run, `results.csv` with the rows of all finished runs.
      kind: kind of the experiment, such as `cross_validation`.
      config: config from which the runs' configs were made.
      runs: runs to carry out here. Another call may add runs of more methods or seeds
        to the directory.
      redo_damaged: whether to train a network anew if all its checkpoints are damaged,
        which their digests prove.

    Returns:
      Number of runs that other processes were working on; they may be unfinished.

    Raises:
      UserError: if the directory holds another experiment, or a run cannot be trained
        or evaluated.
      RunsFailed: after all other runs, if some runs' numbers are not finite or their
        checkpoints cannot be read. The message names these runs.
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
    """Carries out runs; returns the number left to other processes, and failures."""
    skipped, failures = 0, {}
    for number, run in enumerate(runs, 1):
        workdir = _workdir(directory, run)
        with _claimed(workdir) as is_ours:
            is_finished = results.finished(workdir) is not None
            if is_finished:
                state = "finished"
            elif is_ours:
                state = "training"
            else:
                state, skipped = "another process is working on it", skipped + 1
            print(f"run {number} of {len(runs)}, {run.name}: {state}", flush=True)
            if is_finished or not is_ours:
                continue
            try:
                _carry_out(directory, run, redo_damaged)
            except (NotFinite, Unreadable) as failure:
                print(f"{run.name} has failed: {failure}", flush=True)
                failures[run.name] = failure
            _collect(directory)
            # The next run cannot use the compiled programs of this one.
            jax.clear_caches()
    return skipped, failures


def _workdir(directory: pathlib.Path, run: Run) -> pathlib.Path:
    return directory / "runs" / run.name


def _collect(directory: pathlib.Path) -> None:
    """Writes `results.csv` from the runs that are finished."""
    with _lock(directory):
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
                advice = "Or train that network anew with --redo_damaged."
                raise Damaged(f"{error} {advice}", error.path) from error
            # A second damage is not chance.
            if network in redone:
                raise
            # Not all of the folder: it holds the lock.
            shutil.rmtree(network / "checkpoints")
            redone.add(network)
    files.write_json(workdir / results.RESULT, rows)


def _train_and_evaluate(run: Run, workdir: pathlib.Path) -> list[results.Row]:
    workdirs.train(run.config, workdir, resume=True)
    evaluations = [
        evaluate.evaluate(
            workdir,
            resolution=resolution,
            # The data may have moved since the run began.
            data_dir=run.config.data.data_dir,
        )[1]
        for resolution in ("model", "native")
    ]
    return results.rows_of(run, workdir, evaluations)


def _check_data(config: configuration.Config) -> None:
    """Checks before the first training that the data set has a test split."""
    data = config.data
    pipeline.check_split(pipeline.open_dataset(data.data_dir, data.dataset), "test")


def _check_weights(directory: pathlib.Path, runs: Sequence[Run]) -> None:
    """Checks before the first training that every method can load its weights."""
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
    """Claims the directory for this experiment; refuses that of another one."""
    path = directory / _RECORD
    if not _is_ours(path, kind, config):
        # The record must not name a data set that does not exist.
        _check_data(config)
    try:
        (directory / "runs").mkdir(parents=True, exist_ok=True)
        with _lock(directory):
            if not path.exists():
                ours = json.loads(configuration.to_json(config))
                files.write_json(path, {"kind": kind, "config": ours})
    except OSError as error:
        raise UserError(
            f"{directory} cannot be used ({error}); name another directory."
        ) from error
    # Another process may have written the record first.
    _is_ours(path, kind, config)


def _is_ours(path: pathlib.Path, kind: str, config: configuration.Config) -> bool:
    """Whether the record exists; refuses the record of another experiment."""
    try:
        theirs = files.parse_json(path.read_text())
        their_kind = theirs["kind"]
        their_config = configuration.from_json(json.dumps(theirs["config"]), path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged or does not describe an experiment ({error}); name "
            "another directory."
        ) from error
    differing = configuration.differences(config, their_config)
    # Data may have moved, and the others train nothing else.
    free = {"checkpoint_every", "data.data_dir", *configuration.EXECUTION}
    fields = [field for field in differing if field not in free]
    if kind != their_kind or fields:
        what = f"its kind is {their_kind}"
        if kind == their_kind:
            what = f"its config differs in {', '.join(fields)}"
        raise UserError(
            f"{path.parent} holds another experiment ({what}); name another directory."
        )
    return True


@contextlib.contextmanager
def _claimed(workdir: pathlib.Path) -> Iterator[bool]:
    """Locks a run during the block; yields False if another process has locked it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(workdirs.locked(workdir))
        except workdirs.InUse:
            yield False
        else:
            yield True


def _lock(directory: pathlib.Path) -> filelock.FileLock:
    """Locks `results.csv` and the record of a directory."""
    return filelock.FileLock(directory / "lock")
