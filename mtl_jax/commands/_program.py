"""Starts and ends a command, whether run as a script or through `mtl-jax`."""

import argparse
import ast
import atexit
import contextlib
import errno
import importlib
import io
import logging as standard_logging
import os
import pathlib
import re
import signal
import sys
import threading
import types
from importlib import metadata
from typing import Any, NoReturn

from absl import app, flags, logging

from mtl_jax.commands import _compilation_cache
from mtl_jax.errors import Interrupted, UserError, missing_extra, no_room

# Schedulers send the first before they kill, and a terminal that is closed the second.
_ENDING = (signal.SIGTERM, signal.SIGHUP)
# What the system may say of a path, and no bug is behind it.
_REFUSALS = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE),
)


def main() -> None:
    """Runs the command that the first argument of `mtl-jax` names.

    Without an argument, or with `--help`, it lists the commands.
    """
    commands = _commands()
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("--help", "-h", "help"):
        width = max(map(len, commands))
        print("mtl-jax COMMAND --FLAG=VALUE ...; mtl-jax COMMAND --help lists flags.\n")
        for name, summary in commands.items():
            print(f"  {name:{width}}  {summary}")
        return
    if verb == "--version":
        _print_version()
        return
    # Messages and --help show this name.
    sys.argv[:2] = [f"mtl-jax {verb}"]
    if verb not in commands:
        _fail(f"{verb!r} is not a command; choose from {', '.join(commands)}.", 2)
    run(verb)


def run(verb: str) -> NoReturn:
    """Runs a command with the arguments of this process, and exits.

    A `UserError` is printed as one sentence without a traceback, and the exit code is
    1. So is a missing module that an extra installs, and what the system refuses, such
    as room on a disk. Ctrl-C exits with 130, and other signals that end a process exit
    with 128 and their number, as in a shell; what is half-written is removed. Any other
    exception is a bug and keeps its traceback.

    Args:
      verb: name of a command's module in this package. No other command's module is
        imported, because several commands define flags of the same name.
    """
    # The name of a file may not be valid text; it is then printed with escapes.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # Orbax reports every save at length, and prints tracebacks of what it then raises.
    logging.set_verbosity(logging.FATAL)
    _hush_tensorstore()
    threading.excepthook = _report_thread
    # On many Intel processors XLA logs an error for every program that it reads from
    # disk, and then runs it correctly (github.com/openxla/xla/issues/44565).
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "--version" in sys.argv[1:]:
        _print_version()
        sys.exit()
    advice = "continue with --resume" if verb == "train" else "repeat the command"
    try:
        _end_on_signals()
        command = importlib.import_module(f"mtl_jax.commands.{verb}")
        _prepare_help(command)

        def carry_out(argv: list[str]) -> int:
            if len(argv) > 1:
                _fail(f"unknown argument {argv[1]!r}.", 2)
            _refuse_empty(command)
            _compilation_cache.switch_on()
            return command.main() or 0

        app.run(carry_out, flags_parser=_parse)
    except UserError as error:
        _fail(str(error), 1)
    except ModuleNotFoundError as error:
        if missing := missing_extra(error):
            _fail(missing, 1)
        raise
    except KeyboardInterrupt as stop:
        what, code = "interrupted", 130
        if isinstance(stop, Interrupted):
            what, code = str(stop), 128 + stop.signal
        advice = getattr(stop, "__notes__", [advice])[0]
        print(f"{what}; {advice}.", file=sys.stderr)
        atexit.register(_end, code)
        sys.exit(code)
    except Exception as error:
        if sentence := _of_the_system(error):
            _fail(f"{sentence}, and {advice}.", 1)
        raise


def _end(code: int) -> None:
    """Ends the process at once, unless others of its run wait for it.

    XLA goes on with a compilation that was interrupted, on a thread of its own. An
    ordinary end would take from it what it needs, and the process would crash. No
    other function that is registered with `atexit` is called.
    """
    jax = sys.modules.get("jax")
    if jax is None or jax.distributed.is_initialized():
        return
    for stream in (sys.stdout, sys.stderr):
        # It may be closed, and its reader gone.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    os._exit(code)


def _end_on_signals() -> None:
    """Makes a signal that would end the process raise, as Ctrl-C does.

    A signal that the process ignores, such as SIGHUP under `nohup`, stays ignored.
    """
    noticed = [one for one in _ENDING if signal.getsignal(one) is not signal.SIG_IGN]

    def end(number: int, frame: Any) -> None:
        # Another one, as both shell and terminal send it, must not end the tidying.
        for one in noticed:
            signal.signal(one, signal.SIG_IGN)
        raise Interrupted(f"interrupted by {signal.Signals(number).name}", number)

    def listen() -> None:
        for one in noticed:
            signal.signal(one, end)

    # JAX has a callback of the garbage collector. What is raised there is dropped.
    report = sys.unraisablehook

    def repeat(dropped: Any) -> None:
        if isinstance(dropped.exc_value, Interrupted):
            listen()
            again = os.getpid(), dropped.exc_value.signal
            threading.Timer(0.01, os.kill, again).start()
        else:
            report(dropped)

    sys.unraisablehook = repeat
    listen()


def _of_the_system(error: Exception) -> str | None:
    """Says what the system refuses; None if the error is of another kind."""
    name = getattr(error, "filename", None) or "A file"
    if reason := no_room(error):
        return f"{name} cannot be written ({reason}); make room on its disk"
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        return f"{name} cannot be used ({error.strerror}); see to that, or name another"
    # XLA's errors have no common type of all versions of JAX.
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        reason = str(error).partition("\n")[0].rstrip(".")
        return (
            f"The memory does not suffice ({reason}); lower config.batch_size or "
            "config.model.width, and leave config.data.memory at host"
        )
    return None


def say(text: str) -> None:
    """Prints a text in which commands have the names that the user started with."""
    print(_as_started(text))


def warn(note: str) -> None:
    """Prints a note to standard error, with commands as `say` names them."""
    print(_as_started(f"note: {note}"), file=sys.stderr)


def _as_started(text: str) -> str:
    """Replaces `scripts/VERB.py` by `mtl-jax VERB` if the user started `mtl-jax`.

    All other code can therefore name the script.
    """
    if sys.argv[0].startswith("mtl-jax "):
        # A folder of the user's may be called scripts, too.
        verbs = "|".join(_commands())
        return re.sub(rf"(?<![\w/])scripts/({verbs})\.py", r"mtl-jax \1", text)
    return text


def _fail(message: str, code: int) -> NoReturn:
    print(_as_started(f"error: {message}"), file=sys.stderr)
    sys.exit(code)


def _print_version() -> None:
    print(f"mtl_jax {metadata.version('mtl_jax')}")


def _commands() -> dict[str, str]:
    """Maps each command to its docstring's first line, without importing any."""
    paths = sorted(pathlib.Path(__file__).parent.glob("[!_]*.py"))
    docs = {
        path.stem: ast.get_docstring(ast.parse(path.read_bytes())) for path in paths
    }
    return {name: (doc or "").partition("\n")[0] for name, doc in docs.items()}


def _prepare_help(command: types.ModuleType) -> None:
    """Makes --help show the command's text and flags, not those of `__main__`."""
    sys.modules["__main__"].__doc__ = _as_started(command.__doc__ or "")
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith(f"{__package__}."):
            for flag in defined:
                flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def _refuse_empty(command: types.ModuleType) -> None:
    """Refuses `--workdir=`, as an unset variable of a shell leaves it."""
    for flag in flags.FLAGS.get_key_flags_for_module(command.__name__):
        # A list that is empty by default may be emptied, too.
        is_empty = flag.value == "" or (flag.value == [] and flag.default)
        if is_empty and flag.name != _compilation_cache.FOLDER.name:
            _fail(f"--{flag.name} is empty; give it a value or leave it out.", 2)


def _parse(argv: list[str]) -> list[str]:
    """Parses flags; prints one sentence where ml_collections prints a traceback."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", "-config", nargs="?", const="")
    config = parser.parse_known_args(argv[1:])[0].config
    if config is not None and not pathlib.Path(config.split(":")[0]).is_file():
        _fail(f"There is no config file {config!r}; see configs/.", 2)
    try:
        return app.parse_flags_with_usage(argv)
    except SystemExit as ended:
        # After it has shown what was asked for, absl exits with 1.
        wanted = {argument.lstrip("-") for argument in argv[1:]}
        sys.exit(0 if wanted & {"help", "helpshort", "helpfull"} else ended.code)
    except UserError as error:
        _fail(f"--config={config}: {error}", 2)
    except SyntaxError as error:
        _fail(f"--config={config}: it is not Python ({error}); see configs/.", 2)
    except (AttributeError, KeyError) as error:
        # The error's text begins with the name of the field.
        name = re.split(r"\W", str(error).lstrip("'\"\\"), maxsplit=1)[0]
        for argument in argv:
            flag = argument.split("=")[0]
            if name in flag.split(".")[1:]:
                _fail(
                    f"{flag} names a field that the config does not have; "
                    "configs/default.py lists them all.",
                    2,
                )
        if "get_config" in str(error):
            _fail(f"--config={config}: it has no function get_config.", 2)
        raise


def _report_thread(failed: threading.ExceptHookArgs) -> None:
    """Notes what the system refuses a thread, such as TensorBoard's."""
    error = failed.exc_value
    if isinstance(error, Exception) and (sentence := _of_the_system(error)):
        warn(f"{sentence}.")
    else:
        threading.__excepthook__(failed)


def _hush_tensorstore() -> None:
    """Silences TensorStore after a failed read.

    The failed read itself raises an error. Other reads then reach an event loop that
    Orbax has closed, and their tracebacks would follow our sentence.
    """

    def report(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = report
    standard_logging.getLogger("asyncio").setLevel(standard_logging.CRITICAL)
