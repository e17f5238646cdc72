"""SHA-256 of files, cached by stamp in the cache folder, so that a large file is hashed once.

A stamp is a file's device, inode, size and both times of change. Programs can set the time of modification (`cp -p`,
rsync, container layers) but not the other one, which the kernel keeps. Where the file system keeps none (a read-only
image), where the file has just changed, and where nothing can be written, it is hashed every time.
"""

import json
import os
import time
from contextlib import suppress
from pathlib import Path

from nestling._util.files import atomic_write, cache_folder, sha256_file
from nestling.errors import NestlingError

MEMORY = "hashes.json"
SETTLED_S = 2.0
"""Age from which on a change would show in a stamp, whatever the file system's clock."""
Memory = dict[str, list[str]]
"""Absolute path -> [stamp, SHA-256]."""


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    name, now = str(path.absolute()), stamp(path)
    if not keeps_times(path):
        return sha256_file(path)
    known, sha256 = _remembered().get(name, ["", ""])
    if known != now:
        sha256 = sha256_file(path)
        _remember(path, [now, sha256])
    return sha256


def stamp(path: Path) -> str:
    """A string that changes whenever the file's bytes do, if the file system keeps times."""
    found = path.stat()
    return f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def keeps_times(path: Path) -> bool:
    """False for a read-only image, whose only time is the one that its maker set."""
    found = path.stat()
    return not (os.statvfs(path).f_flag & os.ST_RDONLY and found.st_mtime_ns == found.st_ctime_ns)


def _remembered() -> Memory:
    """The cached hashes; empty if the file is missing or damaged."""
    try:
        raw = json.loads((cache_folder() / MEMORY).read_bytes())
        return {str(path): [str(known), str(sha256)] for path, (known, sha256) in raw.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, NestlingError):
        return {}


def _remember(path: Path, entry: list[str]) -> None:
    """Add a file to the cache and drop deleted ones; without write access nothing is cached."""
    if entry[0] != stamp(path) or time.time() - path.stat().st_ctime < SETTLED_S:
        return
    with suppress(OSError, NestlingError):
        kept = {name: one for name, one in _remembered().items() if Path(name).exists()}
        with atomic_write(cache_folder() / MEMORY) as out:
            out.write(json.dumps(kept | {str(path.absolute()): entry}, indent=1).encode())
