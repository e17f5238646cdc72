"""How many threads and how much memory this process may use: CPU affinity, cgroup limits, the machine's size.

The only place that decides either. cgroup limits are those of version 2 (`cpu.max`, `memory.max`) and version 1
(`cpu.cfs_quota_us`, `memory.limit_in_bytes`), of the process's own group and all its ancestors: the tightest counts.
Where a container hides the path of its group, the root of the mount is used. Without cgroups only the machine limits.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path("/")
_GROUPS = "proc/self/cgroup"
_MOUNT = "sys/fs/cgroup"


def usable_threads(root: Path = ROOT) -> int:
    """Processors that this process may keep busy: at least 1.

    A CPU quota is rounded down: with more threads than that, the kernel throttles all of them.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [*_limits(root, "", _cpu_max), *_limits(root, "cpu", _cfs_quota)]
    return max(1, min([allowed, *map(int, quotas)]))


def usable_memory(root: Path = ROOT) -> int:
    """Bytes of memory that this process may use: the machine's, or its container's limit if that is lower."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [
        *_limits(root, "", lambda group: _number(group / "memory.max")),
        *_limits(root, "memory", lambda group: _number(group / "memory.limit_in_bytes")),
    ]
    return min([machine, *map(int, limits)])


def _limits(root: Path, controller: str, read: Callable[[Path], float | None]) -> Iterator[float]:
    """The limits that `read` finds in the process's group of a controller ("" for version 2) and its ancestors."""
    for mount, path in _groups(root, controller):
        group = mount / path.lstrip("/")
        if ".." in group.parts or not group.is_dir():
            group = mount
        while True:
            if (found := read(group)) is not None:
                yield found
            if group == mount:
                break
            group = group.parent


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, str]]:
    """(mount, path of the process's group) of a controller; version 1 has a mount for every controller."""
    with suppress(OSError):
        for line in (root / _GROUPS).read_text("utf-8", "replace").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers and not controller:
                yield from ((root / _MOUNT, path), (root / _MOUNT / "unified", path))
            elif controller in controllers.split(",") and controller:
                yield from ((root / _MOUNT / name, path) for name in dict.fromkeys((controllers, controller)))


def _cpu_max(group: Path) -> float | None:
    """The CPU quota of version 2, in processors: `QUOTA PERIOD` in microseconds, or `max PERIOD`."""
    with suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text("ascii").split()
        return None if quota == "max" or int(period) <= 0 else int(quota) / int(period)
    return None


def _cfs_quota(group: Path) -> float | None:
    """The CPU quota of version 1, in processors; -1 means no quota."""
    quota, period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
    return quota / period if quota and period else None


def _number(path: Path) -> int | None:
    """The positive integer in a file; None for `max`, -1 and a missing file."""
    with suppress(OSError, ValueError):
        value = int(path.read_text("ascii"))
        return value if value > 0 else None
    return None
