"""Limits of a container for a child process: a real control group where one can be made, else the files of one.

A real group is made below this process's own, by whoever runs the tests, and removed in the end. Where that is not
allowed, or the controllers are not handed down, a folder has the files that the kernel would show.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from nestling._util import cpu

PERIOD = "100000"
VERSIONS = (("memory", "cpu"), ("",))
"""Controllers that have a hierarchy of their own in version 1; version 2's one hierarchy."""


@dataclass(frozen=True)
class Limits:
    """Groups that a child is to be put into, or the root of the files that it is to be shown."""

    groups: tuple[Path, ...]
    shown: Path | None

    def enter(self, pid: int) -> None:
        """Put a process into the groups."""
        for group in self.groups:
            (group / "cgroup.procs").write_text(str(pid))


@contextmanager
def limited(memory_bytes: int) -> Iterator[Limits]:
    """So much memory, and one processor."""
    groups: list[Path] = []
    folder = Path(tempfile.mkdtemp(prefix="nestling-limits-"))
    try:
        real = any(_made(controllers, memory_bytes, groups) for controllers in VERSIONS)
        yield Limits(tuple(groups), None if real else _files(folder, memory_bytes))
    finally:
        _remove(groups)
        shutil.rmtree(folder)


def _made(controllers: tuple[str, ...], memory_bytes: int, groups: list[Path]) -> bool:
    """Make the groups of these controllers: True, or False with nothing made."""
    try:
        for controller in controllers:
            groups.append(_own(controller) / f"nestling-test-{os.getpid()}")
            groups[-1].mkdir()
            for name, text in _settings(controller, memory_bytes).items():
                if not (groups[-1] / name).exists():
                    raise FileNotFoundError(name)
                (groups[-1] / name).write_text(text)
    except OSError:
        _remove(groups)
        return False
    return True


def _own(controller: str) -> Path:
    """This process's own group."""
    for mount, path in cpu._groups(cpu.ROOT, controller):
        if (mount / path.lstrip("/")).is_dir():
            return mount / path.lstrip("/")
    raise FileNotFoundError(controller)


def _settings(controller: str, memory_bytes: int) -> dict[str, str]:
    return {
        "memory": {"memory.limit_in_bytes": str(memory_bytes)},
        "cpu": {"cpu.cfs_period_us": PERIOD, "cpu.cfs_quota_us": PERIOD},
        "": {"memory.max": str(memory_bytes), "cpu.max": f"{PERIOD} {PERIOD}"},
    }[controller]


def _remove(groups: list[Path]) -> None:
    """Remove the groups; the kernel needs a moment after their last process has ended."""
    while groups:
        group = groups.pop()
        for _ in range(100):
            with suppress(OSError):
                group.rmdir()
            if not group.exists():
                break
            time.sleep(0.05)


def _files(root: Path, memory_bytes: int) -> Path:
    """A group of version 2 as files."""
    group = root / "sys/fs/cgroup/box"
    group.mkdir(parents=True)
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("0::/box\n")
    for name, text in _settings("", memory_bytes).items():
        (group / name).write_text(f"{text}\n")
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return root
