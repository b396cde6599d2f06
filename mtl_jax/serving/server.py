"""Serves the page until it is told to end."""

import pathlib
import socket
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import uvicorn

from mtl_jax.errors import Interrupted
from mtl_jax.serving import address, corrections
from mtl_jax.serving.app import create_app
from mtl_jax.serving.session import Session

_LOCAL = frozenset(("127.0.0.1", "localhost", "::1"))


def serve(
    listener: socket.socket,
    folders: Sequence[pathlib.Path],
    corrected: pathlib.Path | None,
    say: Callable[[str], None],
) -> None:
    """Serves the page until Ctrl-C, at which it returns.

    Args:
      listener: result of `address.listen`.
      folders: workdirs of the networks that are averaged, or of one.
      corrected: folder of corrections; None if they cannot be made.
      say: is called when the network is read, with its note, which may be empty.

    Raises:
      UserError: if the network cannot be read, or the folder cannot be used.
    """
    with ExitStack() as stack:
        stack.enter_context(listener)
        kept = None
        if corrected is not None:
            kept = stack.enter_context(corrections.opened(corrected))
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="mtl_jax."))
        session = Session(folders, pathlib.Path(place), kept)
        hosts = _LOCAL if address.is_local(listener) else None
        app = create_app(session, hosts)
        config = uvicorn.Config(app, log_level="error", lifespan="off")
        say(session.network.note)
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except Interrupted:
            raise
        except KeyboardInterrupt:
            pass
