"""Ends a training after a dispatch of steps when its process is told to end."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

# Schedulers send the first before they kill, a terminal sends the next two, and SLURM
# the last if `--signal=USR1@SECONDS` asks for it.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


@contextlib.contextmanager
def noticed() -> Iterator[Callable[[int], signal.Signals | None]]:
    """Notes the first of `SIGNALS` during the block; a second one ends the process.

    A signal that the process ignores, such as SIGHUP under `nohup`, stays ignored. The
    processes of one run stop at the same step by JAX's preemption service, whichever of
    them has the signal. That service has a handler of SIGTERM, so the other signals are
    passed on to it as SIGTERM.

    Yields:
      `(number)`, which every process calls after its first, second ... dispatch. It
      returns the signal after which all of them stop at this dispatch, or None.
    """
    is_one_of_several = jax.process_count() > 1
    noted: list[signal.Signals] = []

    def note(number: int, frame: Any) -> None:
        for one in before:
            signal.signal(one, signal.SIG_DFL)
        noted.append(signal.Signals(number))
        # Printing might interrupt a print.
        text = f"{noted[0].name}: saving after this step; a second signal ends at once."
        os.write(2, f"\n{text}\n".encode())
        if is_one_of_several:
            signal.raise_signal(signal.SIGTERM)

    def asked(number: int) -> signal.Signals | None:
        if is_one_of_several:
            if not multihost_utils.reached_preemption_sync_point(number):
                return None
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            return noted[0] if noted else signal.SIGTERM
        return noted[0] if noted else None

    # No other thread can set handlers.
    is_main = threading.current_thread() is threading.main_thread()
    before = {
        number: signal.signal(number, note)
        for number in (SIGNALS[1:] if is_one_of_several else SIGNALS)
        if is_main and signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
