"""Disks that are full, in two ways that fail at different places: no file beyond a size, no room beyond a total.

The first works everywhere; the second mounts a small file system, which needs root.
"""

import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

Full = Callable[[Path, int], AbstractContextManager[None]]
"""Within the block so many bytes more can be written into the folder, or into any file; afterwards there is room."""
SIZE = 64 << 20
PAGE = 4096


@contextmanager
def largest_file(_folder: Path, size: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes; EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def little_room(folder: Path, size: int) -> Iterator[None]:
    """A ballast leaves so many bytes of the small file system that the folder lies on; ENOSPC."""
    ballast = folder / ".ballast"
    with ballast.open("wb", buffering=0) as file:
        missing = shutil.disk_usage(folder).free - size // PAGE * PAGE
        while missing > 0:
            missing -= file.write(bytes(min(missing, 1 << 20)))
    try:
        yield
    finally:
        ballast.unlink()


def mount(folder: Path) -> str:
    """Put a small file system of memory at the folder; -> why not, empty when it is there."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return done.stderr.strip() if done.returncode else ""


def unmount(folder: Path) -> None:
    """Take it away again."""
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a child that has just ended may still hold it
