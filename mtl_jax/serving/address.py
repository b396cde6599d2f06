"""Takes the address of the page, before anything large is imported or read."""

import ipaddress
import socket

from mtl_jax.errors import UserError


def listen(host: str, port: int) -> socket.socket:
    """Takes an address, before a network is read.

    Args:
      host: name or number of this machine.
      port: port; 0 for any free one.

    Raises:
      UserError: if the address cannot be used.
    """
    try:
        family, kind, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind)
        # A port stays in use for a minute after its program has ended.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"The page cannot be served at {host}, port {port} ({reason}); name "
            "another by --port or --host."
        ) from error
    return listener


def is_local(listener: socket.socket) -> bool:
    """Whether only this machine can reach an address."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def address_of(listener: socket.socket) -> str:
    """The address to open in a browser."""
    host, port, *_ = listener.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
