"""Decoding of the bytes of files, pipes and requests to text.

A byte order mark names the encoding and is removed: UTF-8 with or without a mark, UTF-16 and UTF-32 with one (as
Windows' editors and shells write them). Without a mark the text must be UTF-8; no encoding is guessed. Does not know
file formats.
"""

import codecs
from collections.abc import Callable
from pathlib import Path

from nestling.errors import FileFormatError

_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # first, because it begins with UTF-16's mark
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
MAX_MARK = 4
"""Bytes of the longest byte order mark."""

LFS = b"version https://git-lfs.github.com/spec/"
LFS_POINTER = "a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"

ErrorOf = Callable[[str], Exception]
"""Makes an exception of a message: the class that fits the caller's input."""


def is_lfs_pointer(raw: bytes) -> bool:
    """True for the beginning of a Git LFS pointer: what Git checks out for a large file that was not fetched."""
    return raw.startswith(LFS)


def mark_of(raw: bytes) -> tuple[bytes, str]:
    """The byte order mark at the beginning (empty without one), and the encoding that it names."""
    return next(((mark, name) for mark, name in _MARKS.items() if raw.startswith(mark)), (b"", "utf-8"))


def lacks_mark(raw: bytes) -> bool:
    """True for bytes that look like UTF-16 without a byte order mark: one of the first two is zero."""
    return len(raw) >= 2 and (raw[0] == 0) != (raw[1] == 0)  # noqa: PLR2004 - a unit of UTF-16


def decode_text(raw: bytes, *, what: str, error: ErrorOf = FileFormatError) -> str:
    """Decode, without the byte order mark; `what` names the bytes in errors.

    Bytes that are not in the encoding raise `error(message)`; the message names the line, counted from 1.
    """
    if is_lfs_pointer(raw):
        raise error(f"{what}: {LFS_POINTER}")
    mark, name = mark_of(raw)
    body = raw[len(mark) :]
    if not mark and lacks_mark(raw):
        raise error(f"{what}: UTF-16 without a byte order mark; expected UTF-8")
    try:
        return body.decode(name)
    except UnicodeDecodeError as fault:
        before = body[: fault.start].decode(name, "replace")
        line, byte = before.count("\n") + 1, len(before.rpartition("\n")[2].encode(name)) + 1
        raise error(f"{what}: line {line} is not {name[:6].upper().rstrip('-')} (its byte {byte})") from None


def read_text(path: Path, *, error: ErrorOf = FileFormatError) -> str:
    """A file's text, with line feeds as line ends; a file that cannot be read raises `error(message)`."""
    try:
        raw = path.read_bytes()
    except OSError as fault:
        raise error(f"{path}: cannot be read: {fault.strerror or fault}") from None
    return decode_text(raw, what=str(path), error=error).replace("\r\n", "\n").replace("\r", "\n")
