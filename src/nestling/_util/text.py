"""Bytes as text, at every door where a file, a pipe or a request brings some.

A byte order mark in front says what the encoding is and is no part of the text: UTF-8 with or without its mark, UTF-16
and UTF-32 with theirs (what Windows' editors and shells write). Without a mark it is UTF-8 and nothing else; no
encoding is guessed. Knows no formats.
"""

import codecs
from collections.abc import Callable
from pathlib import Path

from nestling.errors import FileFormatError

_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # begins like UTF-16's mark, so it comes first
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
MAX_MARK = 4
"""Bytes of the longest byte order mark."""

_LFS = b"version https://git-lfs.github.com/spec/"
LFS_POINTER = "a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"

ErrorOf = Callable[[str], Exception]
"""Makes the exception of a message: the class that fits the door."""


def is_lfs_pointer(raw: bytes) -> bool:
    """True for the beginning of what Git puts in the place of a large file that it has not fetched."""
    return raw.startswith(_LFS)


def mark_of(raw: bytes) -> tuple[bytes, str]:
    """The byte order mark that the bytes begin with (empty without one), and the encoding that it stands for."""
    return next(((mark, name) for mark, name in _MARKS.items() if raw.startswith(mark)), (b"", "utf-8"))


def lacks_mark(raw: bytes) -> bool:
    """True for what looks like UTF-16 without a byte order mark: one of the first two bytes is zero."""
    return len(raw) >= 2 and (raw[0] == 0) != (raw[1] == 0)  # noqa: PLR2004 - a unit of UTF-16


def decode_text(raw: bytes, *, what: str, error: ErrorOf = FileFormatError) -> str:
    """The text that the bytes stand for, without its byte order mark; `what` names them when they are no text.

    Raises what `error` makes of the message: the line that is not in the encoding, counted from 1.
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
    """A file's text, its lines ended by a line feed alone; what cannot be read is what `error` makes of the reason."""
    try:
        raw = path.read_bytes()
    except OSError as fault:
        raise error(f"{path}: cannot be read: {fault.strerror or fault}") from None
    return decode_text(raw, what=str(path), error=error).replace("\r\n", "\n").replace("\r", "\n")
