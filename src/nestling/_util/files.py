"""Output files: atomic writes (temporary file, fsync, rename), plain writes to streams; locks that end with a process.

What exists at the output path decides how it is written, the same for every command:

    nothing, a regular file     `path.part` is written, fsynced and renamed; mode and (where allowed) owner are kept
    a symbolic link             the same for its target; the link stays
    /dev/stdout, /dev/fd/N      our own open file, written at its current position: not truncated, not replaced
    a pipe, a character device  opened and written: /dev/null, a FIFO
    a folder, a socket, a block device, a write-protected file    UsageError naming it

Of a hard link only the given name is replaced. Does not know file formats. Linux and macOS (flock).
"""

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from platformdirs import user_cache_path

from nestling.errors import BuildError, UsageError

CACHE_VARIABLE = "NESTLING_CACHE"

_REFUSED = {
    stat.S_IFDIR: "this is a folder; name a file",
    stat.S_IFSOCK: "this is a socket; name a file",
    stat.S_IFBLK: "this is a block device; name a file",
}
LOG = logging.getLogger("nestling.files")
_MAX_HOLDER = 20
"""Characters read from a lock file: the process id of its holder."""
_LINKS = 40
"""The most symbolic links that the system follows in a chain."""


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for writing so that its final name only ever holds the complete file; a stream is written directly.

    A `.part` that a killed run left behind is overwritten; one that another run is writing, or that is not a regular
    file, is a BuildError. A path that cannot be written is a UsageError (see the module's table).
    """
    check_output(path)
    if is_stream(path):
        with _open_stream(path) as file:
            yield file
        return
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked_part(target.with_name(target.name + ".part")) as (file, part):
        _keep_mode_and_owner(file, target)
        yield file
        file.flush()
        os.fsync(file.fileno())
        _put_in_place(part, target)
    _fsync_folder(target.parent)


def check_output(path: Path, *, sources: Sequence[Path | None] = (), param: str = "out") -> None:
    """UsageError for a path that cannot be written, or that is one of the command's own `sources`.

    Commands call it first, so that hours of work are not lost to a wrong name.
    """
    if (descriptor := _descriptor(path)) is not None:
        _check_descriptor(path, descriptor, param)
        return
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    if reason := _REFUSED.get(stat.S_IFMT(found.st_mode)):
        raise UsageError(f"{path}: {reason}", param=param)
    if not os.access(path, os.W_OK):
        raise UsageError(f"{path}: this file is write-protected; name another", param=param)
    if stat.S_ISREG(found.st_mode) and any(one and one.exists() and one.samefile(path) for one in sources):
        raise UsageError(f"{path}: this is the source; give the output another name", param=param)


def check_output_folder(path: Path, *, param: str = "out") -> None:
    """UsageError for a path that exists and is not a folder."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path}: this is a file; name a folder", param=param)


def is_stream(path: Path) -> bool:
    """True for what is written directly: our own open file, a pipe, a device."""
    if _descriptor(path) is not None:
        return True
    with suppress(FileNotFoundError, NotADirectoryError):
        return not stat.S_ISREG(path.stat().st_mode)
    return False


def _descriptor(path: Path) -> int | None:
    """The file descriptor that a path such as /dev/stdout or /dev/fd/3 names; None for other paths."""
    own = {os.path.realpath("/proc/self/fd"), "/dev/fd"}
    for _ in range(_LINKS):
        folder = os.path.realpath(path.parent)
        if folder in own and path.name.isdigit():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = Path(folder) / path.readlink()
    return None


def _check_descriptor(path: Path, descriptor: int, param: str) -> None:
    try:
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    except OSError:
        raise UsageError(f"{path}: no file is open under this number", param=param) from None
    if flags & os.O_ACCMODE == os.O_RDONLY:
        raise UsageError(f"{path}: this is open for reading only", param=param)


def _open_stream(path: Path) -> BinaryIO:
    """Open a stream; a descriptor is duplicated, which keeps its position and also works for sockets."""
    descriptor = _descriptor(path)
    return path.open("wb") if descriptor is None else os.fdopen(os.dup(descriptor), "wb")


@contextmanager
def _locked_part(part: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """The `.part` file, locked and empty; removed if anything fails once the lock is held."""
    with _open_part(part) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BuildError(f"{part}: another run is writing this file; wait for it or stop it") from None
        if not part.exists() or os.fstat(file.fileno()).st_ino != part.stat().st_ino:
            raise BuildError(f"{part}: another run has just finished this file; run again to use it")
        try:
            file.truncate(0)
            yield file, part
        except OSError as error:
            part.unlink(missing_ok=True)
            if error.filename is None:
                error.filename = str(part)
            raise
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _open_part(part: Path) -> BinaryIO:
    """Open a `.part` file without following a link and without waiting for the reader of a pipe."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        file = os.fdopen(os.open(part, flags, 0o666), "ab")
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise BuildError(f"{part}: not a regular file; remove it") from None
        raise
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise BuildError(f"{part}: not a regular file; remove it")
    return file


def _keep_mode_and_owner(file: BinaryIO, target: Path) -> None:
    """Copy mode and (where allowed) owner of the file that will be replaced."""
    if not target.exists():
        return
    old, new = target.stat(), os.fstat(file.fileno())
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        with suppress(PermissionError):
            os.fchown(file.fileno(), old.st_uid, old.st_gid)
    os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode) & 0o777)


def _put_in_place(part: Path, target: Path) -> None:
    """Rename; a mount point (a file mounted into a container) cannot be replaced and is overwritten instead."""
    try:
        part.replace(target)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        shutil.copyfile(part, target)
        part.unlink()


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems refuse to sync a folder; the file itself is synced
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def lock(path: Path, *, what: str) -> Iterator[None]:
    """Hold an exclusive lock on `path` (created if missing) while writing `what`; a killed process loses its lock.

    While another process holds it, this one waits and logs (to standard error) the holder and what it writes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(_MAX_HOLDER).decode("ascii", "replace").strip() or "of another machine or version"
            LOG.warning("process %d waits for process %s, which writes %s", os.getpid(), holder, what)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(b"%d" % os.getpid())
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Where nestling keeps files that it can rebuild: `$NESTLING_CACHE`, or the platform's cache folder.

    UsageError when the variable is not set and the user has no home folder.
    """
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    with suppress(RuntimeError):  # raised by newer versions of platformdirs when there is no home folder
        if (found := user_cache_path("nestling")).is_absolute():
            return found
    raise UsageError(f"this user has no home folder; set {CACHE_VARIABLE} to a folder for models")
