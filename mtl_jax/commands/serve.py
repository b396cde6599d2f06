"""Serves a local page to drop photographs on: [--workdir=RUN] [--corrections=DIR].

The page shows what the network finds. With --corrections, what is wrong can be
corrected there, and DIR is then a source of `prepare_data.py --dataset=fundus_folder`.
Without --workdir the network in the package is used. Nothing leaves the machine. It is
for research only: it is no medical device.
"""

import pathlib

from absl import flags

from mtl_jax.commands import _flags, _program

WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run, or a,b,c: those of several runs that are averaged; by default, "
    "the network in the package.",
)
CORRECTIONS = flags.DEFINE_string(
    "corrections", None, "Folder for corrections; without it, none can be made."
)
HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "Address to serve at; by default, of this machine alone."
)
PORT = flags.DEFINE_integer(
    "port", 8000, "Port; 0 for any free one.", lower_bound=0, upper_bound=65535
)


def main() -> None:
    """Serves the page until Ctrl-C."""
    from mtl_jax.serving import address

    listener = address.listen(HOST.value, PORT.value)
    from mtl_jax.serving import server

    def say(note: str) -> None:
        if note:
            _program.warn(note)
        if not address.is_local(listener):
            _program.warn(
                "others who reach this address see the photographs, and can correct "
                "them."
            )
        place = address.address_of(listener)
        print(
            f"{place}  For research only, no medical device; Ctrl-C ends.", flush=True
        )

    corrections = pathlib.Path(CORRECTIONS.value) if CORRECTIONS.value else None
    server.serve(listener, _flags.workdirs(WORKDIR), corrections, say)
