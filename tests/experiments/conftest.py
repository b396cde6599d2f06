"""An experiment that is killed on the way."""

import json
import signal
import subprocess
import sys

import pytest

from mtl_jax import configuration

KILLED = """
import json, os, pathlib, signal, sys
import small_encoder
from mtl_jax import configuration
from mtl_jax.experiments import execution, plan
from mtl_jax.training import checkpoints, watch
directory, config, methods, folds, last = json.loads(sys.argv[1])
config = configuration.from_json(config)
whole, calls = watch.Watch.add, []
def add(self, step, metrics):
    calls.append(step)
    if len(calls) == last:
        for one in opened:
            one.wait()
        os.kill(os.getpid(), signal.SIGKILL)
    whole(self, step, metrics)
watch.Watch.add = add
# What the epochs before have saved is on disk, so that it is known where runs stand.
opened, begin = [], checkpoints.Checkpoints.__init__
def remember(self, *arguments, **options):
    begin(self, *arguments, **options)
    opened.append(self)
checkpoints.Checkpoints.__init__ = remember
execution.execute(
    pathlib.Path(directory),
    "cross_validation",
    config,
    plan.cross_validation(config, methods, folds),
)
"""


@pytest.fixture
def killed(compiled):
    """Cross-validates until the n-th time that a run is given a step's metrics."""

    def kill(directory, config, methods, folds, last):
        text = configuration.to_json(config)
        what = [str(directory), text, methods, folds, last]
        finished = subprocess.run(
            [sys.executable, "-c", KILLED, json.dumps(what)],
            env=compiled,
            capture_output=True,
            check=False,
        )
        assert finished.returncode == -signal.SIGKILL, finished.stderr

    return kill
