"""A training that is killed and resumed, again and again, ends with the same bits.

A kill is a SIGKILL at a random moment. The long form kills each of four methods twenty
times and prints a table: pytest tests/faults --every_kill -s.
"""

import collections
import json
import pathlib
import subprocess
import sys
import time

import pytest
from run_files import (
    TIMES,
    assert_identical,
    metric_lines,
    saved,
    saved_position,
    saved_steps,
)

from mtl_jax import configuration
from mtl_jax.training.checkpoints import Checkpoints

pytest_plugins = ("training_fixtures",)
# Other processes train.
pytestmark = pytest.mark.slow

PHASES = (
    "start-up",
    "compilation",
    "step",
    "between steps",
    "validation",
    "saving",
    "deletion",
)
PROGRAM = pathlib.Path(__file__).with_name("killed_training.py")
SHORT, LONG = 2, 20
# The short form is aimed at saving and deletion.
SEED = 7
METHODS = ("independent", "pcgrad", "gradnorm", "single")


def train(config, place, kills, env):
    """Trains a config whole, and killed so often; returns the phases of the kills."""
    place.mkdir()
    (place / "config.json").write_text(configuration.to_json(config))
    finished = subprocess.run(
        [sys.executable, str(PROGRAM), str(place), str(kills), str(SEED)],
        cwd=PROGRAM.parents[2],
        env={
            **env,
            # Small programs too are compiled once for all processes.
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return (place / "kills.txt").read_text().splitlines()


def batches(file):
    """The digests of a run's batches by network and step; all of a repeated step."""
    found = collections.defaultdict(set)
    for line in file.read_text().splitlines():
        name, step, digest = line.split()
        found[name, int(step)].add(digest)
    return found


def record(workdir, step):
    """What a checkpoint says of itself, without times."""
    found = Checkpoints(workdir, read_only=True).restore_metadata(step)
    return {k: v for k, v in found.items() if k != "seconds_per_step"}


def differences(place):
    """Lists what differs between the whole run and the killed one."""
    whole, killed = place / "whole", place / "killed"
    found = []
    networks = sorted(path.parent for path in whole.rglob("metrics.jsonl"))
    assert networks
    for ours in networks:
        name = ours.relative_to(whole)
        theirs = killed / name
        if saved_steps(ours) != saved_steps(theirs):
            found.append(f"{name}: {saved_steps(theirs)} for {saved_steps(ours)}")
        for step in sorted({*saved_steps(ours)} & {*saved_steps(theirs)}):
            for what, read in (
                ("parameters", lambda w, s: saved(w, s, "model")),
                ("optimizer", lambda w, s: saved(w, s, "optimizer")),
                ("data", saved_position),
                ("record", record),
            ):
                try:
                    assert_identical(read(theirs, step), read(ours, step))
                except AssertionError:
                    found.append(f"{name}: {what} of step {step}")
        if metric_lines(theirs, TIMES) != metric_lines(ours, TIMES):
            found.append(f"{name}: metrics")
    if batches(place / "killed.txt") != batches(place / "whole.txt"):
        found.append("batches")
    return found


def test_kills(request, make_config, compiled, tmp_path):
    is_long = request.config.getoption("--every_kill")
    print("\n| method | kills |", " | ".join(PHASES), "| differences | minutes |")
    print("|---" * (len(PHASES) + 4) + "|")
    for method in METHODS if is_long else METHODS[:1]:
        begin = time.monotonic()
        config = make_config(
            {
                "method.name": method,
                "model.dropout": 0.5,
                "augmentation.flip_horizontal": True,
                "augmentation.rotation": 20.0,
                "augmentation.brightness": 0.2,
            },
            # The encoder alone compiles in seconds.
            tasks=("glaucoma", "healthy"),
            num_epochs=10 if is_long else 3,
            validate_every=1,
            checkpoint_every=2,
        )
        place = tmp_path / method
        phases = train(config, place, LONG if is_long else SHORT, compiled)
        hits = collections.Counter(phases)
        assert {*hits} <= {*PHASES}
        found = differences(place)
        minutes = (time.monotonic() - begin) / 60
        row = [method, len(phases), *(hits[p] for p in PHASES), len(found)]
        print("|", " | ".join(map(str, row)), f"| {minutes:.1f} |", flush=True)
        assert not found, json.dumps(found)
        assert len(phases) > 1
