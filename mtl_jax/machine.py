"""What this machine has."""

import os


def num_cores() -> int:
    """Number of cores that this process may use."""
    # Schedulers of clusters give a process some of them, which Linux alone can tell.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
