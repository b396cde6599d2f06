"""What this machine has."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

# Limits of a container, a scheduler or systemd, in Linux: the groups of this process,
# and the folder of all groups.
GROUPS = pathlib.Path("/proc/self/cgroup")
CGROUP = pathlib.Path("/sys/fs/cgroup")
# By the controllers that `GROUPS` names, of version 2 and 1: the folder of the groups
# in `CGROUP`, the file of a limit, and what `memory.stat` calls memory in use.
_LIMITS = {
    "": ("", "memory.max", "anon"),
    "memory": ("memory", "memory.limit_in_bytes", "total_rss"),
}


def num_cores() -> int:
    """Number of cores that this process may use."""
    # Schedulers of clusters give a process some of them, which Linux alone can tell.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory() -> int:
    """Bytes that this process may still take, by the groups around it, too."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        free = 4 << 30
    return min([free, *_free_of_groups()])


def _free_of_groups() -> Iterator[int]:
    """Yields what is left of each limit on this process, or on a group around it."""
    with contextlib.suppress(OSError):
        for line in GROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in _LIMITS:
                continue
            folder, limit, name = _LIMITS[controllers]
            group = pathlib.PurePath(path.lstrip("/"))
            for place in (CGROUP / folder / x for x in (group, *group.parents)):
                # Without a limit there is no number, and a container does not see the
                # groups around it.
                with contextlib.suppress(OSError, ValueError, KeyError):
                    lines = (place / "memory.stat").read_text().splitlines()
                    used = dict(map(str.split, lines))[name]
                    yield int((place / limit).read_text()) - int(used)
