"""Standard streams that are closed or full: one line and exit code 1, never a traceback.

A shell's `>&-` leaves a command without a stream, and the next file that is opened gets its number, so that whatever
is printed would go into that file. `prepare` takes the numbers first; a stand-in says what is missing when
something is read or written.
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
    """A standard stream that is not there."""

    def __init__(self, name: str) -> None:
        self._what = {"stdin": "standard input", "stdout": "standard output"}[name]

    def readable(self) -> bool:
        """As an open one."""
        return True

    def writable(self) -> bool:
        """As an open one."""
        return True

    def readinto(self, _buffer: object) -> int:
        """Nothing can be read."""
        raise OSError(errno.EBADF, "it is closed", self._what)

    def write(self, _content: object) -> int:
        """Nothing can be written."""
        raise OSError(errno.EBADF, "it is closed", self._what)


class _Output(io.FileIO):
    """Standard output whose errors name it."""

    def write(self, content: "Buffer") -> int:
        """Write, as any file does."""
        try:
            return super().write(content)
        except OSError as error:
            error.filename = "standard output"
            raise


def prepare() -> None:
    """Put something in the place of every closed standard stream; call it before any file is opened."""
    for number in _NUMBERS:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, _stand_in(name))
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = _named(sys.stdout)


def _stand_in(name: str) -> io.TextIOWrapper:
    if name == "stderr":
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123 - there is nobody to tell anything
    raw = _Closed(name)
    return io.TextIOWrapper(raw, encoding="utf-8", write_through=True)  # type: ignore[arg-type]


def _named(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """The same stream; a path that is not UTF-8 is written as the bytes that it is."""
    raw = _Output(stream.fileno(), "w", closefd=False)
    errors = "surrogateescape" if stream.errors == "strict" else stream.errors
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=stream.encoding, errors=errors, line_buffering=stream.line_buffering
    )


def settle_output() -> None:
    """Write out what is buffered; when that cannot be it goes nowhere, and no second error comes of it at the end."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):  # a test's stream has no number
            number, null = sys.stdout.fileno(), os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)
