"""A disk that is full, as far as this process can tell."""

import contextlib
import resource


@contextlib.contextmanager
def limit(size):
    """Lets no file grow beyond so many bytes during the block."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
