"""The lines of a text file, plain or compressed, with the position of each. Does not know their format.

A plain file can be read from any byte; a compressed one from where the last range ended, or from its start. gzip files
may have several members and trailing zeros, as tar and object stores write them.
"""

import gzip
import io
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pyarrow as pa

from nestling._util.text import MAX_MARK, lacks_mark, mark_of
from nestling.bulk.rows import START, Mark, refuse_pointer
from nestling.bulk.sources import Found
from nestling.errors import FileFormatError

BUFFER_BYTES = 1 << 20


class Lines:
    """An iterator over lines; `place` is where the next one begins: its byte (uncompressed) and its number from 1."""

    def __init__(self, file: Found) -> None:
        self._file = file
        self._open()

    @property
    def place(self) -> Mark:
        """Where the next line begins."""
        return self._at, self._line

    def _open(self) -> None:
        self._stream = _opened(self._file)
        self._back = deque[bytes]()
        self._at, self._line = START
        try:
            self._mark = self._byte_order_mark()
        except BaseException:
            self.close()
            raise

    def _byte_order_mark(self) -> bytes:
        start = self._stream.peek(MAX_MARK)[:MAX_MARK]
        mark, encoding = mark_of(start)
        if encoding != "utf-8" or lacks_mark(start):
            name = encoding[:6].upper() if mark else "UTF-16 without a byte order mark"
            raise FileFormatError(f"{self._file.name}: {name}; expected UTF-8")
        return mark

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        line = self._back.popleft() if self._back else self._stream.readline()
        if not line:
            raise StopIteration
        first = self._at == 0
        self._at, self._line = self._at + len(line), self._line + 1
        return line.removeprefix(self._mark) if first else line

    def unread(self, lines: Sequence[bytes]) -> None:
        """Push lines back, so that they are read again next."""
        self._back.extendleft(reversed(lines))
        self._at, self._line = self._at - sum(map(len, lines)), self._line - len(lines)

    def seek(self, place: Mark) -> None:
        """Go to a place where a line begins."""
        if place == self.place:
            return
        ahead = sum(map(len, self._back))
        self._back.clear()
        self._at += ahead  # the stream's position
        if not self._file.codec:
            self._stream.seek(place[0])
        else:
            self._skip_to(place[0])
        self._at, self._line = place

    def _skip_to(self, at: int) -> None:
        if at < self._at:
            self.close()
            self._open()
        while self._at < at:
            self._at += len(self._stream.read(min(BUFFER_BYTES, at - self._at)) or self._short())

    def _short(self) -> bytes:
        raise EOFError("the file has become shorter")

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def _opened(file: Found) -> io.BufferedReader:
    raw: Any = refuse_pointer(file.open(), file.name)
    if file.codec == "gzip":
        return io.BufferedReader(cast("Any", _Gzip(raw)), BUFFER_BYTES)
    if file.codec:
        raw = pa.CompressedInputStream(pa.PythonFile(raw, "r"), file.codec)
    return io.BufferedReader(raw, BUFFER_BYTES)


class _Gzip(gzip.GzipFile):
    """A gzip file that also closes the stream it reads from."""

    def __init__(self, raw: Any) -> None:  # noqa: ANN401 - fsspec has no types
        self._raw = raw
        super().__init__(fileobj=raw, mode="rb")

    def close(self) -> None:
        """Close both."""
        super().close()
        self._raw.close()
