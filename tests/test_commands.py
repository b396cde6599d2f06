"""The program `mtl-jax`, what a small installation can do, and compiled programs."""

import ast
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import tomllib
from importlib import metadata

import full_disk
import pytest
from absl import flags
from jax._src import compilation_cache

from mtl_jax import files
from mtl_jax.commands import _compilation_cache, _flags, _program
from mtl_jax.errors import EXTRAS, UserError

pytest_plugins = ("training_fixtures",)

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMANDS = [path.stem for path in sorted((ROOT / "scripts").glob("*.py"))]

# As the file that pip writes for an entry point.
PROGRAM = """
import sys
from {} import {} as main
sys.argv[0] = "mtl-jax"
sys.exit(main())
""".format(*PROJECT["scripts"]["mtl-jax"].split(":"))

HIDE = """
import sys

class Hidden:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden)
"""


def script(name):
    """Python that does what starting the script does."""
    path = str(ROOT / f"scripts/{name}.py")
    return f"import runpy; runpy.run_path({path!r}, run_name='__main__')"


def python(text, *arguments, env=None):
    return subprocess.run(
        [sys.executable, "-c", text, *map(str, arguments)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        check=False,
        text=True,
    )


def test_the_program_lists_what_the_scripts_do():
    bare, asked = python(PROGRAM), python(PROGRAM, "--help")
    assert (bare.returncode, bare.stderr) == (0, "")
    assert bare.stdout == asked.stdout
    listed = [line.split(maxsplit=1) for line in bare.stdout.splitlines()[2:]]
    assert [name for name, _ in listed] == COMMANDS
    assert dict(listed)["train"].startswith("Trains a network: --config=")


def test_folders_of_the_user_keep_their_names(tmp_path):
    path = tmp_path / "scripts/my.py"
    finished = python(PROGRAM, "train", f"--config={path}", "--workdir=x")
    assert finished.stderr == (
        f"error: There is no config file '{path}'; see configs/.\n"
    )


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda p: (p / ("x" * 300)).touch(), "x cannot be used (File name too long)"),
        (lambda p: (p / "a").write_bytes(bytes(200)), "A file cannot be written (File"),
        (lambda p: files.write_text(p / "a", "x" * 200), "/a cannot be written (File"),
        (lambda p: (p / "absent").read_bytes(), None),
        (lambda p: int("x"), None),
    ],
)
def test_what_the_system_refuses_is_no_bug(act, sentence, tmp_path, capsys):
    with full_disk.limit(150), pytest.raises((OSError, ValueError)) as caught:
        act(tmp_path)
    said = _program._of_the_system(caught.value)
    assert said is None if sentence is None else sentence in said
    error = caught.type, caught.value, caught.tb, threading.current_thread()
    _program._report_thread(threading.ExceptHookArgs(error))
    found = capsys.readouterr().err
    assert found == f"note: {said}.\n" if sentence else "Traceback" in found


def test_an_over_long_name_is_said():
    name = "x" * 300
    flags = ["--images=in", "--output=out", f"--workdir={name}"]
    finished = python(PROGRAM, "predict", *flags)
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr == (
        f"error: {name} cannot be used (File name too long); see to that, or name "
        "another, and repeat the command.\n"
    )


def chosen_of(text):
    values = flags.FlagValues()
    flag = flags.DEFINE_list("methods", [], "", flag_values=values)
    values(["program", f"--methods={text}"])
    return _flags.all_or_some(flag, ("vanilla", "famo"), ("famo", "other"))


def workdirs_of(text):
    values = flags.FlagValues()
    flag = flags.DEFINE_string("workdir", None, "", flag_values=values)
    values(["program", f"--workdir={text}"])
    return _flags.workdirs(flag)


def test_commas_separate_workdirs(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    assert workdirs_of(a) == [a]
    assert workdirs_of(f"{a},{b}") == workdirs_of(f"{a}, {b}") == [a, b]
    (tmp_path / "b,c").mkdir()
    assert workdirs_of(tmp_path / "b,c") == [tmp_path / "b,c"]
    for text in ("", ",", f"{a},", f"{a},,{b}"):
        with pytest.raises(UserError, match="has an empty entry"):
            workdirs_of(text)
    for again in (a, tmp_path / "b" / ".." / "a"):
        with pytest.raises(UserError, match="names a folder twice"):
            workdirs_of(f"{a},{b},{again}")


@pytest.mark.parametrize(
    ("text", "message"),
    [("def (", "it is not Python"), ("x = 1", "it has no function get_config")],
)
def test_a_config_file_with_a_mistake(text, message, tmp_path):
    (tmp_path / "config.py").write_text(text)
    finished = python(
        PROGRAM, "train", f"--config={tmp_path / 'config.py'}", "--workdir=x"
    )
    assert finished.returncode == 2
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr


def test_an_unset_variable_is_no_folder():
    finished = python(
        PROGRAM, "train", f"--config={ROOT / 'configs/default.py'}", "--workdir="
    )
    assert finished.returncode == 2
    assert finished.stderr == (
        "error: --workdir is empty; give it a value or leave it out.\n"
    )


def test_an_empty_list_is_no_list():
    # That of --accept may be.
    finished = python(
        PROGRAM,
        "prepare_data",
        "--dataset=synthetic_fundus",
        "--accept=",
        "--num_images=",
    )
    assert finished.returncode == 2
    assert finished.stderr == (
        "error: --num_images is empty; give it a value or leave it out.\n"
    )


@pytest.mark.slow
def test_an_interrupted_compilation_is_no_crash():
    """XLA goes on with it after Python has begun to end."""
    program = """
import os, signal, sys, threading, types
import jax, jax.numpy as jnp
from mtl_jax.commands import _program

def main():
    def function(x):
        for i in range(400):
            x = jnp.sort(jnp.sin(x) * i)
        return x

    lowered = jax.jit(function).lower(jnp.ones(64))
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    lowered.compile()

module = types.SimpleNamespace(main=main, __name__="compiles", __doc__="")
sys.modules["mtl_jax.commands.compiles"] = module
sys.argv = ["compiles", "--compilation_cache="]
_program.run("compiles")
"""
    finished = python(program)
    assert finished.stderr == "interrupted by SIGTERM; repeat the command.\n"
    assert finished.returncode == 128 + signal.SIGTERM


def test_old_programs_leave_the_folder(tmp_path):
    hashes = [f"{i:064x}" for i in range(_compilation_cache._MAX_PROGRAMS + 2)]
    for i, name in enumerate(hashes):
        (tmp_path / f"jit_f-{name}-cache").write_bytes(b"x")
        last_use = tmp_path / f"jit_f-{name}-atime"
        last_use.write_bytes(b"x")
        os.utime(last_use, (i, i))
    (tmp_path / "notes.txt").write_text("kept")
    _compilation_cache._prepare(tmp_path)
    kept = {path.name for path in tmp_path.iterdir() if path.suffix == ""}
    assert kept - {".lockfile"} == {
        f"jit_f-{name}-{kind}" for name in hashes[2:] for kind in ("cache", "atime")
    }
    assert (tmp_path / "notes.txt").exists()


def test_help_names_what_was_started():
    finished = python(PROGRAM, "import_weights", "--help")
    text = finished.stdout
    assert finished.returncode == 0
    assert text.startswith("Imports weights: ")
    assert "workdir for mtl-jax evaluate, mtl-jax predict and" in text
    assert "\nmtl-jax import_weights:\n" in text
    for flag in ("config", "source", "compilation_cache"):
        assert f"\n  --{flag}: " in text


@pytest.mark.parametrize("start", [[PROGRAM], [PROGRAM, "train"], [script("predict")]])
def test_version(start):
    asked = python(*start, "--version")
    assert (asked.returncode, asked.stderr) == (0, "")
    assert asked.stdout == f"mtl_jax {metadata.version('mtl_jax')}\n"


@pytest.mark.parametrize(
    ("module", "extra", "command"),
    [
        # While flags are read, and in the command itself.
        ("PIL", "data", ["train", "--config=configs/default.py", "--workdir=nowhere"]),
        ("matplotlib", "report", ["make_report", "--experiment=nowhere"]),
        ("uvicorn", "serve", ["serve", "--port=0"]),
    ],
)
def test_a_missing_extra_is_named(module, extra, command):
    name, *flags = command
    finished = python(HIDE.format([module]) + script(name), *flags)
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr == (
        f"error: {module} is not installed; install mtl_jax[{extra}], or mtl_jax[all] "
        "for every command.\n"
    )


def test_only_an_extra_that_is_missing_leaves_out_the_speed_of_reading():
    program = """
from mtl_jax.commands import benchmark
ours = "mtl_jax.experiments.input_speed"
sys.modules[ours] = None
try:
    benchmark._input_rates(32, 2)
except ModuleNotFoundError as error:
    print(error.name)
del sys.modules[ours]
print(benchmark._input_rates(32, 2))
"""
    finished = python(HIDE.format(["grain"]) + program)
    assert finished.stdout == "mtl_jax.experiments.input_speed\nNone\n", finished.stderr


LIBRARY = ("optim", "models", "losses", "tasks", "methods")
LIBRARY += ("training.step", "training.state")
SCORES = ("workdirs", "data.folder", "data.refuge", "data.synthetic")
SCORES += ("evaluation.evaluate", "evaluation.predict")


@pytest.mark.parametrize(
    ("modules", "extras"),
    [(LIBRARY, EXTRAS), (SCORES, ["report", "weights", "dicom", "heic", "serve"])],
)
def test_these_import_without_extras(modules, extras):
    lines = "".join(f"import mtl_jax.{module}\n" for module in modules)
    hidden = [name for extra in extras for name in EXTRAS[extra]]
    finished = python(HIDE.format(hidden) + lines)
    assert (finished.returncode, finished.stderr) == (0, "")


def normalized(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(extra=None):
    """The distributions that the project, or one of its extras, asks for."""
    if extra is None:
        requirements = PROJECT["dependencies"]
    else:
        requirements = PROJECT["optional-dependencies"][extra]
    return {normalized(re.match(r"[\w.-]+", text)[0]) for text in requirements}


def test_every_import_is_declared_and_its_extra_known():
    modules = set()
    for path in (ROOT / "mtl_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(node.module.partition(".")[0])
    modules -= {"mtl_jax", *sys.stdlib_module_names}
    # These come along with jax, flax, optax and tensorflow-datasets.
    modules -= {"google", "ml_dtypes", "orbax", "scipy"}
    # These have sentences of their own.
    modules -= {"torch", "libtpu"}
    # The benchmark compares with it where it is installed.
    modules.remove("torchjd")
    distributions = metadata.packages_distributions()

    def of(module):
        return {normalized(name) for name in distributions[module]}

    wrong = {
        module
        for module in modules
        if not of(module) & declared()
        and not any(module in names for names in EXTRAS.values())
    }
    assert wrong == set()
    for extra, names in EXTRAS.items():
        brought = set().union(*map(of, names))
        assert brought <= declared(extra)
        assert declared(extra) - brought <= {
            "orbax-checkpoint",
            "python-gdcm",
            "scipy",
        }


@pytest.mark.slow
def test_the_second_command_finds_compiled_programs(tiny_run, tmp_path):
    # As the user's: importing JAX has set TF_CPP_MIN_LOG_LEVEL.
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JAX_", "TF_"))
    }
    env |= {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    programs = tmp_path / "cache" / "mtl_jax" / "programs"
    workdir = tiny_run.copy(tmp_path / "run")

    def evaluate():
        finished = python(PROGRAM, "evaluate", f"--workdir={workdir}", env=env)
        assert (finished.returncode, finished.stderr) == (0, "")
        return {
            path.name.removesuffix("-cache"): path.stat().st_mtime_ns
            for path in programs.glob("*-cache")
        }

    def last_uses():
        return {
            path.name.removesuffix("-atime"): path.stat().st_mtime_ns
            for path in programs.glob("*-atime")
        }

    first, used = evaluate(), last_uses()
    assert first
    assert first.keys() == used.keys()
    torn, odd, *_ = sorted(first)
    # As on a processor with a feature that XLA does not recognize.
    path = programs / f"{odd}-cache"
    text = compilation_cache.decompress_executable(path.read_bytes())
    text = text.replace(b"+64bit", b"+64bix")
    path.write_bytes(compilation_cache.compress_executable(text))
    os.utime(path, ns=(first[odd], first[odd]))
    # As a full disk or a killed process leaves it.
    (programs / f"{torn}-atime").unlink()
    (programs / f"{torn}-cache").write_bytes(b"torn")
    second, used_again = evaluate(), last_uses()
    assert [name for name in first if second.pop(name) != first[name]] == [torn]
    assert second == {}
    assert all(used_again[name] > used[name] for name in first)


def test_all_or_some_methods():
    assert chosen_of("all") == ["vanilla", "famo"]
    assert chosen_of("other,famo") == ["other", "famo"]
    with pytest.raises(UserError, match="'all'; choose from vanilla, famo, other.$"):
        chosen_of("all,famo")


# As in the callback of JAX, from which nothing is raised.
_IN_A_CALLBACK = """
import gc, os, signal, time
from mtl_jax.commands import _program
from mtl_jax.errors import Interrupted
def stop(*_):
    gc.callbacks.remove(stop)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0)
_program._end_on_signals()
gc.callbacks.append(stop)
try:
    gc.collect()
    time.sleep(30)
except Interrupted as error:
    print(error)
"""


def test_a_signal_in_a_callback_of_the_collector_is_not_lost():
    command = [sys.executable, "-c", _IN_A_CALLBACK]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (found.stdout, found.stderr) == ("interrupted by SIGTERM\n", "")
