"""Runs many commands in one process that imports everything once.

Starting Python and importing JAX takes seconds, so the process forks for each command
before JAX has started any device.
"""

import json
import pathlib
import subprocess
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]

_FORK = """
import glob, importlib, json, os, runpy, signal, sys, time, traceback
import small_encoder
from mtl_jax import commands
import mtl_jax.data.folder, mtl_jax.data.synthetic
import mtl_jax.evaluation.evaluate, mtl_jax.evaluation.predict
import mtl_jax.reporting.terminal, mtl_jax.training.loop
from ml_collections import config_flags

ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT

def run(argv, stem, signalled):
    if (child := os.fork()) == 0:
        # A test session in the background, or under nohup, ignores them.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        for number, ending in ((1, "out"), (2, "err")):
            file = os.open(f"{stem}.{ending}", os.O_WRONLY | os.O_CREAT)
            os.dup2(file, number)
        sys.argv = argv
        sys.path[0] = os.path.dirname(argv[0])
        try:
            if argv[0] == "mtl-jax":
                commands.main()
            else:
                runpy.run_path(argv[0], run_name="__main__")
            code = 0
        except SystemExit as done:
            code = done.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        # Without taking apart all that was imported, which takes a second.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if signalled:
        number, pattern = signalled
        while not (found := glob.glob(pattern, include_hidden=True)):
            if os.waitid(os.P_PID, child, ENDED):
                break
            time.sleep(0.01)
        if found:
            os.kill(child, number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

place, calls, modules, signals = json.load(sys.stdin)
for module in modules:
    importlib.import_module(module)
codes = {
    name: run(argv, f"{place}/{name}", signals.get(name))
    for name, argv in calls.items()
}
print(json.dumps(codes))
"""


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def run(commands, place, env, modules=(), signals=None):
    """Runs commands one after the other.

    Args:
      commands: by name, the name of a script, or `mtl-jax`, and its arguments.
      place: folder for what they print.
      env: their environment.
      modules: what else to import before the first.
      signals: by name, a signal that a command gets, and the pattern of a path: it
        gets the signal as soon as there is such a file.

    Returns:
      How each `Ended`, by name.
    """
    calls = {
        name: [
            verb if verb == "mtl-jax" else str(ROOT / f"scripts/{verb}.py"),
            *map(str, rest),
        ]
        for name, (verb, *rest) in commands.items()
    }
    finished = subprocess.run(
        [sys.executable, "-c", _FORK],
        input=json.dumps([str(place), calls, list(modules), signals or {}]),
        cwd=ROOT,
        env=env,
        capture_output=True,
        check=True,
        text=True,
        timeout=300,
    )
    codes = json.loads(finished.stdout.splitlines()[-1])
    return {
        name: Ended(
            code,
            *((place / f"{name}.{ending}").read_text() for ending in ("out", "err")),
        )
        for name, code in codes.items()
    }


def said(err):
    """The lines of standard error but progress bars, which end in one of their own."""
    return [
        line
        for line in err.replace("\r", "\n").splitlines()
        if line.strip() and not line.startswith(("predicting:", "checking files:"))
    ]
