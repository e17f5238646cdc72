"""Rows of text files: JSON Lines and CSV. Any range of rows can be read from the position of its first.

Empty lines are skipped. A row that is not JSON, or not CSV, or has more or fewer fields than the header, is rejected
alone, with its line number; after a record that is not CSV, reading resumes at the record's second line. The
types of JSON columns are those of all rows.
"""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, cast

import pyarrow as pa

from nestling.bulk.rows import (
    START,
    Columns,
    Mark,
    OnIds,
    Rows,
    Survey,
    Wanted,
    plain_id,
    reading,
    sound,
    typed,
)  # fmt: skip
from nestling.bulk.sources import Found
from nestling.bulk.text_file import Lines
from nestling.errors import FileFormatError

SHOWN_COLUMNS = 1000
"""Columns of a JSON Lines file that are remembered for messages."""
SURVEY_ROWS = 1 << 14
_FIELD_LIMIT = 1 << 26
"""Most characters of a CSV field; an unclosed quotation mark is detected after so many."""

Row = dict[str, Any] | str
"""A row's values by column, or what is wrong with it."""


class Parser(Protocol):
    """Parses lines into rows."""

    def rows(self, lines: Lines) -> Iterator[Row]:
        """Rows from the lines' present place on; after each, `lines.place` is where the next one begins."""
        ...

    def schema(self, wanted: Wanted) -> pa.Schema:
        """The types of the wanted columns that are there, once all rows were read."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """The columns, for messages."""
        ...


class JsonLines:
    """One JSON object per line."""

    def __init__(self, _lines: Lines, wanted: Wanted) -> None:
        self._kinds: dict[str, set[str]] = {}
        self._seen: dict[str, None] = {}
        self._wanted = wanted.names

    def rows(self, lines: Lines) -> Iterator[Row]:
        """One row per line that is not empty."""
        for line in lines:
            if line.strip():
                row = _json_row(line)
                yield f"{row} (line {lines.place[1] - 1})" if isinstance(row, str) else row

    def note(self, row: dict[str, Any]) -> None:
        """Note the types of a row's values."""
        if len(self._seen) < SHOWN_COLUMNS:
            self._seen |= dict.fromkeys(row)
        for name in self._wanted:
            if name in row:
                self._kinds.setdefault(name, set()).add(_kind_of(row[name]))

    def schema(self, wanted: Wanted) -> pa.Schema:
        """Inferred from all values of each column."""
        return pa.schema([(name, _type_of(self._kinds[name])) for name in wanted.names if name in self._kinds])

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the first rows."""
        return tuple(self._seen)


def _json_row(line: bytes) -> Row:
    try:
        row = json.loads(
            line.decode("utf-8", "surrogatepass").removeprefix("\ufeff")
        )  # concatenated files have byte order marks inside
    except UnicodeDecodeError:
        return "not UTF-8"
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    return row if isinstance(row, dict) else f"expected a JSON object, not {type(row).__name__}"


def _kind_of(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, int) and not isinstance(value, bool):
        return "negative" if value < 0 else "large" if value >= 1 << 63 else "int"
    return type(value).__name__ if isinstance(value, bool | float) else "other"


def _type_of(kinds: set[str]) -> pa.DataType:
    found = kinds - {"null"}
    if not found:
        return pa.null()
    if found == {"bool"}:
        return pa.bool_()
    if found <= {"int", "negative", "large"}:
        return pa.uint64() if "large" in found and "negative" not in found else pa.int64()
    return pa.float64() if found <= {"int", "negative", "large", "float"} else pa.string()


class Csv:
    """Comma-separated values with a header (RFC 4180); every value is text, an empty one too."""

    def __init__(self, lines: Lines, _wanted: Wanted) -> None:
        csv.field_size_limit(_FIELD_LIMIT)
        header = _record(lines)
        if isinstance(header, str):
            raise FileFormatError(f"the header is {header}")
        self._header = header or []
        if wrong := next((name for name in self._header if not sound(name)), None):
            shown = wrong.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            raise FileFormatError(f"the header is not UTF-8: {shown}")
        if len(set(self._header)) < len(self._header):
            twice = next(name for name in self._header if self._header.count(name) > 1)
            raise FileFormatError(f"duplicate column {twice!r}")

    def rows(self, lines: Lines) -> Iterator[Row]:
        """One row per record."""
        if lines.place == START:
            _record(lines)  # the header
        while True:
            line = lines.place[1]
            record = _record(lines)
            if record is None:
                return
            if record:
                yield f"{record} (line {line})" if isinstance(record, str) else self._row(record, line)

    def note(self, _row: dict[str, Any]) -> None:
        """Every value is text."""

    def schema(self, wanted: Wanted) -> pa.Schema:
        """Text, all of them."""
        return pa.schema([(name, pa.string()) for name in wanted.names if name in self._header])

    @property
    def names(self) -> tuple[str, ...]:
        """The header."""
        return tuple(self._header)

    def _row(self, record: list[str], line: int) -> Row:
        if len(record) != len(self._header):
            return f"{len(record)} fields, the header has {len(self._header)} (line {line})"
        return dict(zip(self._header, record, strict=True))


def _record(lines: Lines) -> list[str] | str | None:
    """The next record: its fields, or the fault of its first line; None at the end. An empty line is []."""
    taken: list[bytes] = []

    def decoded() -> Iterator[str]:
        for line in lines:
            taken.append(line)
            yield line.decode("utf-8", "surrogateescape")

    try:
        return next(csv.reader(decoded(), strict=True), None)
    except csv.Error as error:
        lines.unread(taken[1:])
        if b"\r" in taken[0].rstrip(b"\r\n"):
            return "not CSV: lines end in CR alone; expected LF"
        return f"not CSV: {error}"


PARSERS: dict[str, Callable[[Lines, Wanted], JsonLines | Csv]] = {"jsonl": JsonLines, "csv": Csv}


class LineReader:
    """An open text file."""

    def __init__(self, file: Found) -> None:
        self._name, self._kind = file.name, file.kind
        with reading(file.name):
            self._lines = Lines(file)
        self._parser: JsonLines | Csv | None = None

    def survey(self, wanted: Wanted, every: int, on_ids: OnIds) -> Survey:
        """The number of rows, and where each run of `every` rows begins; reads the whole file once."""
        parser, marks, ids = self._made(wanted), list[Mark](), list[object]()
        count = sound_rows = 0
        with reading(self._name):
            self._lines.seek(START)
            begins = START
            for row in parser.rows(self._lines):
                if count == 0 and isinstance(row, str):
                    self._check_first(row)
                if count % every == 0:
                    marks.append(begins)
                count, begins = count + 1, self._lines.place
                if isinstance(row, dict):
                    parser.note(row)
                    sound_rows += 1
                if wanted.id:
                    ids.append(plain_id(row.get(wanted.id)) if isinstance(row, dict) else None)
                    if len(ids) == SURVEY_ROWS:
                        on_ids(ids)
                        ids = []
            if count and not sound_rows and self._kind == "jsonl":
                raise FileFormatError(f"no line is a JSON object; expected one per line ({count} lines)")
        on_ids(ids)
        return Survey(count, tuple(marks), parser.schema(wanted), parser.names)

    def _check_first(self, fault: str) -> None:
        """Refuse pretty-printed JSON, some of whose lines may be objects by themselves."""
        if self._kind == "jsonl" and fault.startswith("not JSON"):
            place = self._lines.place
            self._lines.seek(START)
            first = next(line for line in self._lines if line.strip())
            self._lines.seek(place)
            if first.strip() in (b"[", b"{") or b"\r" in first.strip():
                line = place[1] - 1
                raise FileFormatError(
                    f"line {line} is not a JSON object; expected one per line, with lines ending in LF"
                )

    def read(self, start: int, stop: int, mark: Mark, columns: Columns) -> Rows:
        """Rows [start, stop), the first of which begins at `mark`."""
        parser = self._made(Wanted(columns.text, columns.id, tuple(columns.kept.names), columns.image))
        with reading(self._name):
            self._lines.seek(mark)
            rows = list(islice(parser.rows(self._lines), stop - start))
            if len(rows) < stop - start:
                raise EOFError(f"row {start + len(rows)} is missing")
        return _columns(rows, columns)

    def close(self) -> None:
        """Close the file."""
        self._lines.close()

    def _made(self, wanted: Wanted) -> JsonLines | Csv:
        """The parser; a CSV parser reads the header when it is made."""
        if self._parser is None:
            with reading(self._name):
                self._lines.seek(START)
                self._parser = PARSERS[self._kind](self._lines, wanted)
        return self._parser


def _columns(rows: Sequence[Row], columns: Columns) -> Rows:
    faults = {place: row for place, row in enumerate(rows) if isinstance(row, str)}
    whole = [row if isinstance(row, dict) else cast("dict[str, Any]", {}) for row in rows]
    kept = {
        field.name: typed([row.get(field.name) for row in whole], field.type, field.name, faults)
        for field in columns.kept
    }
    ids = [plain_id(row.get(columns.id)) for row in whole] if columns.id else None
    texts, images = ([row.get(name) if name else None for row in whole] for name in (columns.text, columns.image))
    return Rows(texts, ids, kept, faults, images if columns.image else None)
