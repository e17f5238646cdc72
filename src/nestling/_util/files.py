"""Whole files or none: write beside, fsync, rename; and a lock that dies with its process.

Knows nothing of formats. Linux and macOS (flock).
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from platformdirs import user_cache_path

from nestling.errors import BuildError

CACHE_VARIABLE = "NESTLING_CACHE"

Progress = Callable[[int, int], None]
"""Told (bytes done, bytes in all) while a long piece of work goes on."""


def no_progress(_done: int, _total: int) -> None:
    """A `Progress` that tells nobody."""


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for writing so that its final name only ever holds the whole file.

    The bytes go to `path.part`, which is fsynced and renamed when the block ends, and removed when it raises.
    A `.part` that a killed run left behind is overwritten; one that another run is writing is a BuildError.
    """
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked_part(part) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        part.replace(path)
    _fsync_folder(path.parent)


@contextmanager
def _locked_part(part: Path) -> Iterator[BinaryIO]:
    """The part, empty and ours alone; it is removed when anything goes wrong from the moment that it is ours."""
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BuildError(f"{part}: another run is writing this file; wait for it or stop it") from None
        if not part.exists() or os.fstat(file.fileno()).st_ino != part.stat().st_ino:
            raise BuildError(f"{part}: another run has just finished this file; run again to use it")
        try:
            file.truncate(0)
            yield file
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems refuse to sync a folder; the file itself is synced
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` (made if need be), waiting for its holder; a killed holder loses it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Where nestling keeps what it can make again: `$NESTLING_CACHE`, or the platform's cache folder."""
    return Path(os.environ[CACHE_VARIABLE]) if os.environ.get(CACHE_VARIABLE) else user_cache_path("nestling")
