"""Closed or full standard streams: an error in one line and exit code 1, never a traceback.

A shell's `>&-` closes a stream; the next file that is opened would get its number, and printed text would go into that
file. `prepare` occupies the numbers first, with stand-ins that raise an error when they are read or written.
"""

import errno
import io
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

_NUMBERS = (0, 1, 2)


class _Closed(io.RawIOBase):
    """A stand-in for a closed standard stream."""

    def __init__(self, name: str) -> None:
        self._what = {"stdin": "standard input", "stdout": "standard output"}[name]

    def readable(self) -> bool:
        """True, so that reading is attempted and raises the error."""
        return True

    def writable(self) -> bool:
        """As an open one."""
        return True

    def readinto(self, _buffer: object) -> int:
        """Raise the error."""
        raise OSError(errno.EBADF, "it is closed", self._what)

    def write(self, _content: object) -> int:
        """Raise the error."""
        raise OSError(errno.EBADF, "it is closed", self._what)


class _Output(io.FileIO):
    """Standard output, named in its errors."""

    def write(self, content: "Buffer") -> int:
        """Write to the file."""
        try:
            return super().write(content)
        except OSError as error:
            error.filename = "standard output"
            raise


def prepare() -> None:
    """Replace every closed standard stream by a stand-in; must be called before any file is opened."""
    for number in _NUMBERS:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, _stand_in(name))
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = _named(sys.stdout)


def _stand_in(name: str) -> io.TextIOWrapper:
    if name == "stderr":
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123 - standard error is closed
    raw = _Closed(name)
    return io.TextIOWrapper(raw, encoding="utf-8", write_through=True)  # type: ignore[arg-type]


def _named(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """Set the stream to write paths that are not UTF-8 as their bytes."""
    raw = _Output(stream.fileno(), "w", closefd=False)
    errors = "surrogateescape" if stream.errors == "strict" else stream.errors
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=stream.encoding, errors=errors, line_buffering=stream.line_buffering
    )


def settle_output() -> None:
    """Flush standard output; if that fails, discard the rest, so that no second error follows at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):  # a stream of a test has no file descriptor
            number, null = sys.stdout.fileno(), os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)
