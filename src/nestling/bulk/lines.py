"""Rows of text files: JSON lines and CSV, plain or compressed. Any range of them, by the byte that it begins at.

A plain file is read from any byte; a compressed one is read on from where the last range ended, or from its start.
Empty lines are no rows. A row that is not JSON, or has more or fewer fields than the header, is a fault of that row
alone. The types of JSON columns are those of the first thousand rows.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Protocol, cast

import pyarrow as pa

from nestling._util.text import MAX_MARK, lacks_mark, mark_of
from nestling.bulk.rows import Columns, OnIds, Rows, reading, sound, typed
from nestling.bulk.sources import Found
from nestling.errors import FileFormatError

FIRST_ROWS = 1000
BUFFER_BYTES = 1 << 20
SURVEY_ROWS = 1 << 14
_FIELD_LIMIT = 1 << 30

Row = dict[str, Any] | str
"""A row's values by column, or what is wrong with it."""


class Lines:
    """The lines of a file, with the byte that the next one begins at (in the uncompressed file)."""

    def __init__(self, file: Found) -> None:
        self._file = file
        self._open()

    def _open(self) -> None:
        raw: Any = self._file.open()
        if self._file.codec:
            raw = pa.CompressedInputStream(pa.PythonFile(raw, "r"), self._file.codec)
        self._stream, self.at = io.BufferedReader(raw, BUFFER_BYTES), 0
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
            raise FileFormatError(f"{self._file.name}: {name}; UTF-8 is expected")
        return mark

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        line = self._stream.readline()
        if not line:
            raise StopIteration
        self.at += len(line)
        return line.removeprefix(self._mark) if self.at == len(line) else line

    def seek(self, at: int) -> None:
        """Go to a byte where a line begins."""
        if not self._file.codec and at != self.at:
            self._stream.seek(at)
            self.at = at
            return
        if at < self.at:
            self.close()
            self._open()
        while self.at < at:
            self.at += len(self._stream.read(min(BUFFER_BYTES, at - self.at)) or self._short())

    def _short(self) -> bytes:
        raise EOFError("the file has become shorter")

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


class Parser(Protocol):
    """How lines become rows. `schema` is known once it is made."""

    schema: pa.Schema

    def rows(self, lines: Lines) -> Iterator[Row]:
        """Rows from the lines' place on, one at a time: after each, `lines.at` is where the next one begins."""
        ...


class JsonLines:
    """One JSON object a line."""

    def __init__(self, lines: Lines) -> None:
        first = [row for row in islice(self.rows(lines), FIRST_ROWS) if isinstance(row, dict)]
        names = dict.fromkeys(name for row in first for name in row)
        self.schema = pa.schema([(name, _type_of([row.get(name) for row in first])) for name in names])

    def rows(self, lines: Lines) -> Iterator[Row]:
        """A row a line that is not empty."""
        return (_json_row(line) for line in lines if line.strip())


def _json_row(line: bytes) -> Row:
    try:
        row = json.loads(line.decode("utf-8").removeprefix("\ufeff"))  # files that were joined have marks inside
    except UnicodeDecodeError:
        return "not UTF-8"
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    return row if isinstance(row, dict) else f"a JSON object is expected, this is {type(row).__name__}"


def _type_of(values: list[Any]) -> pa.DataType:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int}:
        return pa.int64()
    return pa.float64() if kinds and kinds <= {int, float} else pa.string()


class Csv:
    """Comma-separated values with a header (RFC 4180); every value is text, an empty one of a kept column too."""

    def __init__(self, lines: Lines) -> None:
        csv.field_size_limit(_FIELD_LIMIT)
        self.header: list[str] = next(_records(lines), [])
        if wrong := next((name for name in self.header if not sound(name)), None):
            shown = wrong.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            raise FileFormatError(f"the header is not UTF-8: {shown}")
        if len(set(self.header)) < len(self.header):
            twice = next(name for name in self.header if self.header.count(name) > 1)
            raise FileFormatError(f"two columns are called {twice!r}")
        self.schema = pa.schema([(name, pa.string()) for name in self.header])

    def rows(self, lines: Lines) -> Iterator[Row]:
        """A row a record."""
        return (self._row(record) for record in _records(lines) if record)

    def _row(self, record: list[str]) -> Row:
        if len(record) != len(self.header):
            return f"{len(record)} fields, the header has {len(self.header)}"
        return dict(zip(self.header, record, strict=True))


def _records(lines: Lines) -> Iterator[list[str]]:
    return csv.reader((line.decode("utf-8", "surrogateescape") for line in lines), strict=True)


PARSERS: dict[str, Callable[[Lines], Parser]] = {"jsonl": JsonLines, "csv": Csv}


class LineReader:
    """An open text file."""

    def __init__(self, file: Found) -> None:
        self._name = file.name
        with reading(file.name):
            self._lines = Lines(file)
            try:
                self._parser = PARSERS[file.kind](self._lines)
                self._lines.seek(0)
            except BaseException:
                self._lines.close()
                raise
        self.schema = self._parser.schema

    def survey(self, every: int, id_column: str | None, on_ids: OnIds) -> tuple[int, list[int]]:
        """Rows, and where each run of `every` begins: the file is read once from end to end."""
        marks, count, ids = list[int](), 0, list[object]()
        with reading(self._name):
            self._lines.seek(0)
            rows, begins = self._body(), self._lines.at
            for row in rows:
                if count % every == 0:
                    marks.append(begins)
                count, begins = count + 1, self._lines.at
                if id_column:
                    ids.append(row.get(id_column) if isinstance(row, dict) else None)
                    if len(ids) == SURVEY_ROWS:
                        on_ids(ids)
                        ids = []
        on_ids(ids)
        return count, marks

    def read(self, start: int, stop: int, mark: int, columns: Columns) -> Rows:
        """Rows [start, stop), the first of which begins at byte `mark`."""
        with reading(self._name):
            self._lines.seek(mark)
            rows = list(islice(self._parser.rows(self._lines), stop - start))
            if len(rows) < stop - start:
                raise EOFError(f"row {start + len(rows)} is missing")
        return _columns(rows, columns)

    def close(self) -> None:
        """Close the file."""
        self._lines.close()

    def _body(self) -> Iterator[Row]:
        if isinstance(self._parser, Csv):
            next(_records(self._lines), [])
        return self._parser.rows(self._lines)


def _columns(rows: list[Row], columns: Columns) -> Rows:
    faults = {place: row for place, row in enumerate(rows) if isinstance(row, str)}
    whole = [row if isinstance(row, dict) else cast("dict[str, Any]", {}) for row in rows]
    kept = {
        field.name: typed([row.get(field.name) for row in whole], field.type, field.name, faults)
        for field in columns.kept
    }
    ids = [row.get(columns.id) for row in whole] if columns.id else None
    return Rows([row.get(columns.text) for row in whole], ids, kept, faults)
