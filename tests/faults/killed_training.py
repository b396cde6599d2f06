"""Trains a network whole, and again by processes that are killed at random moments.

usage: killed_training.py PLACE KILLS SEED, with the config in PLACE/config.json. It
writes the runs PLACE/whole and PLACE/killed, the batches of their steps in
PLACE/whole.txt and PLACE/killed.txt, and in PLACE/kills.txt the phase that each kill
hit.

A program of its own: it imports everything once, and forks for each process that trains
before JAX has started any device.
"""

import collections
import contextlib
import hashlib
import os
import pathlib
import random
import select
import signal
import statistics
import sys
import time
import traceback

import jax
import orbax.checkpoint as ocp
import small_encoder  # noqa: F401
import tensorboardX  # noqa: F401
from orbax.checkpoint._src.path import deleter

from mtl_jax import configuration, tasks, workdirs
from mtl_jax.training import checkpoints, parallel
from mtl_jax.workdirs import _train

# A second task of the encoder alone, which compiles in seconds.
tasks.register(
    tasks.Task(
        "healthy",
        "health",
        "classification",
        labels=("glaucoma",),
        target=lambda annotations: 1 - annotations["glaucoma"],
    )
)

# Kills are aimed at each in turn: at the time-th entry, and a random moment later.
TIMES = {
    "start-up": 1,
    "compilation": 1,
    "step": 4,
    "validation": 1,
    "saving": 2,
    "deletion": 1,
}
# It takes many times as long as all others, and nothing is written meanwhile.
LONGEST_COMPILATION = 3.0


def train(config, workdir, batches, pipe, cold):
    """Trains in this process, and tells the pipe where a phase begins and ends."""

    @contextlib.contextmanager
    def phase(name):
        os.write(pipe, f"+{name}\n".encode())
        yield
        os.write(pipe, f"-{name}\n".encode())

    def within(name, function, is_one=lambda *args: True):
        def wrapped(*args, **kwargs):
            with phase(name) if is_one(*args) else contextlib.nullcontext():
                return function(*args, **kwargs)

        return wrapped

    def begin_saving(*args, **kwargs):
        os.write(pipe, b"+saving\n")
        save(*args, **kwargs)

    def end_saving(*args, **kwargs):
        finalize(*args, **kwargs)
        os.write(pipe, b"-saving\n")

    def fit(training, *args, **kwargs):
        names.append("+".join(task.name for task in training.tasks))
        whole_fit(training, *args, **kwargs)

    def map_step(step):
        mapped, name = whole_map(step), names[-1]
        phases = iter(["compilation"])

        def noted(state, batch, records):
            number = int(parallel.unreplicate(state.step)) + 1
            digest = hashlib.sha256()
            for key in sorted(batch):
                digest.update(batch[key].tobytes())
            with batches.open("a") as file:
                file.write(f"{name} {number} {digest.hexdigest()}\n")
            with phase(next(phases, "step")):
                return mapped(state, batch, records)

        return noted

    def validation(*args):
        return within("validation", whole_validation(*args))

    names, one = [], checkpoints.Checkpoints
    save, finalize = one.save, ocp.CheckpointManager._finalize
    one.save, ocp.CheckpointManager._finalize = begin_saving, end_saving
    of_orbax = deleter.StandardCheckpointDeleter
    of_orbax.delete_steps = within(
        "deletion", of_orbax.delete_steps, lambda _, steps: len(steps) > 0
    )
    one._empty_deleted = within(
        "deletion",
        one._empty_deleted,
        lambda self: (self.path(0).parent / "deleted").exists(),
    )
    whole_fit, whole_map, whole_validation = (
        _train.fit,
        parallel.map_step,
        _train._validation,
    )
    _train.fit, parallel.map_step = fit, map_step
    _train._validation = validation
    if cold:
        jax.config.update("jax_compilation_cache_dir", None)
    workdirs.train(config, workdir, resume=True)


def run(place, name, target=None, time_of=0, delay=0.0):
    """Trains in a process of its own, and kills it a while after it enters a phase.

    Returns:
      The exit code, the phase at the end, and seconds that each phase took.
    """
    config = configuration.from_json((place / "config.json").read_text())
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        log = os.open(place / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        try:
            cold = target == "compilation"
            train(config, place / name, place / f"{name}.txt", write, cold)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(write)
    due, left = float("inf"), time_of
    # When each phase was entered that has not been left: saving goes on during steps.
    entered, seconds, rest = collections.defaultdict(list), {}, ""
    lines = ["+start-up"]
    while True:
        for line in lines:
            sign, phase = line[0], line[1:]
            if sign == "-":
                took = time.monotonic() - entered[phase].pop(0)
                seconds.setdefault(phase, []).append(took)
                continue
            if phase == "compilation":
                for moment in entered.pop("start-up", ()):
                    seconds["start-up"] = [time.monotonic() - moment]
            entered[phase].append(time.monotonic())
            left -= phase == target
            if phase == target and left == 0:
                due = time.monotonic() + delay
        timeout = None if due == float("inf") else max(0, due - time.monotonic())
        if not select.select([read], [], [], timeout)[0]:
            os.kill(child, signal.SIGKILL)
            due = float("inf")
            lines = []
            continue
        received = os.read(read, 65536).decode()
        if not received:
            break
        *lines, rest = (rest + received).split("\n")
    os.close(read)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    # The phase entered last; in none, the loop is at its metrics and data.
    open_phases = {phase: moments[-1] for phase, moments in entered.items() if moments}
    last = max(open_phases, key=open_phases.get, default="between steps")
    return code, last, seconds


def main():
    place, kills, seed = pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:])
    code, _, seconds = run(place, "whole")
    if code:
        sys.exit((place / "whole.log").read_text())
    spans = {phase: statistics.median(found) for phase, found in seconds.items()}
    spans["compilation"] = min(spans["compilation"], LONGEST_COMPILATION)
    rng = random.Random(seed)
    targets = [t for _ in range(kills) for t in rng.sample(sorted(TIMES), len(TIMES))]
    for target in targets[:kills]:
        delay = rng.uniform(0, spans[target])
        code, phase, _ = run(
            place, "killed", target, rng.randint(1, TIMES[target]), delay
        )
        if code == 0:
            break
        if code != -signal.SIGKILL:
            sys.exit((place / "killed.log").read_text())
        with (place / "kills.txt").open("a") as file:
            file.write(f"{phase}\n")
    code, _, _ = run(place, "killed")
    if code:
        sys.exit((place / "killed.log").read_text())


if __name__ == "__main__":
    main()
