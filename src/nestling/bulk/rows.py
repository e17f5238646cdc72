"""Rows of a source file, whatever its format: what a reader promises, and how values get their column's type."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from csv import Error as CsvError
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from nestling.errors import FileFormatError, UsageError

OnIds = Callable[[Sequence[object]], None]
"""Told the ids of the next rows, None where a row has none."""
_MOST = 1 << 1023
"""Whole numbers below have a double."""
_BROKEN = (pa.ArrowException, OSError, EOFError, CsvError, UnicodeError)


@dataclass(frozen=True, slots=True)
class Rows:
    """N rows: texts and ids as they stand, kept columns in the result's types, and why some rows cannot be used.

    `ids` is None when the source has no id column. `faults` is by place in these rows.
    """

    texts: list[object]
    ids: list[object] | None
    kept: dict[str, pa.Array]
    faults: dict[int, str]


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of the source are read, and the types that the result has for them."""

    text: str
    id: str | None
    id_type: pa.DataType
    kept: pa.Schema

    @property
    def names(self) -> list[str]:
        """Every column that is read, each once."""
        return list(dict.fromkeys([self.text, *([self.id] if self.id else []), *self.kept.names]))


class Reader(Protocol):
    """An open source file. What it cannot read is a FileFormatError that names the file."""

    schema: pa.Schema

    def survey(self, every: int, id_column: str | None, on_ids: OnIds) -> tuple[int, list[int]]:
        """Rows in all, and the byte that each run of `every` rows begins at (no bytes where rows are found without).

        `on_ids` is told the ids of all rows in order, when there is an id column.
        """
        ...

    def read(self, start: int, stop: int, mark: int, columns: Columns) -> Rows:
        """Rows [start, stop); `mark` is what `survey` said of `start`."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


@contextmanager
def reading(name: str) -> Iterator[None]:
    """What goes wrong in here is the file's fault: a FileFormatError in one line that names it."""
    try:
        yield
    except FileFormatError as error:
        raise error if str(error).startswith(f"{name}: ") else FileFormatError(f"{name}: {error}") from None
    except _BROKEN as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileFormatError(f"{name}: cannot be read ({reason})") from None


def columns_of(schema: pa.Schema, *, name: str, text: str, id_column: str | None, keep: Sequence[str]) -> Columns:
    """The columns of a source by its first file; one that is not there is a UsageError that lists those that are."""
    wanted = {"text_column": text, "keep": keep} | ({"id_column": id_column} if id_column else {})
    for param, value in wanted.items():
        for one in [value] if isinstance(value, str) else value:
            if one not in schema.names:
                raise UsageError(f"{param}={one!r}: {name} has the columns {', '.join(schema.names)}", param=param)
    found = id_column or ("id" if "id" in schema.names else None)
    id_type = _id_type(schema.field(found).type, name, found) if found else pa.string()
    kept = pa.schema([pa.field(one, _plain(schema.field(one).type)) for one in keep])
    return Columns(text, found, id_type, kept)


def check_same(schema: pa.Schema, *, name: str, columns: Columns) -> None:
    """A file after the first must have the same columns in the same types; else FileFormatError."""
    if missing := [one for one in columns.names if one not in schema.names]:
        raise FileFormatError(f"{name}: no column {missing[0]!r}; it has {', '.join(schema.names)}")
    expected = {field.name: field.type for field in columns.kept}
    for one, kind in expected.items():
        if _plain(schema.field(one).type) != kind:
            raise FileFormatError(f"{name}: column {one!r} is {schema.field(one).type}, {kind} in the first file")
    if columns.id and _id_type(schema.field(columns.id).type, name, columns.id) != columns.id_type:
        raise FileFormatError(f"{name}: column {columns.id!r} is not {columns.id_type} as in the first file")


def check_text(schema: pa.Schema, *, name: str, text: str) -> None:
    """The text column must hold text: FileFormatError."""
    kind = schema.field(text).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise FileFormatError(f"{name}: column {text!r} is {kind}, text is expected; text_column names another")


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type that the result has: the source's, less what is only a way to store text."""
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.string() if pa.types.is_large_string(value) or pa.types.is_string_view(value) else value


def _id_type(kind: pa.DataType, name: str, column: str) -> pa.DataType:
    plain = _plain(kind)
    if pa.types.is_integer(plain):
        return pa.int64()
    if not pa.types.is_string(plain):
        raise FileFormatError(f"{name}: column {column!r} is {kind}; ids are text or whole numbers")
    return plain


def typed(values: Sequence[Any], kind: pa.DataType, name: str, faults: dict[int, str]) -> pa.Array:
    """Values of JSON as a column; one that does not fit is None there and a fault. Text takes all, as JSON."""
    found = [_fitted(value, kind) for value in values]
    for place, (old, new) in enumerate(zip(values, found, strict=True)):
        if old is not None and new is None:
            faults.setdefault(place, f"column {name!r}: {str(old)!r:.40} is not {kind}")
    return pa.array(found, kind)


def _fitted(value: Any, kind: pa.DataType) -> Any:  # noqa: ANN401 - any JSON
    if value is None:
        return None
    if pa.types.is_string(kind):
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
        return text if sound(text) else None
    if pa.types.is_boolean(kind) or isinstance(value, bool):
        return value if pa.types.is_boolean(kind) and isinstance(value, bool) else None
    if pa.types.is_integer(kind):
        return value if isinstance(value, int) and -(1 << 63) <= value < 1 << 63 else None
    return float(value) if isinstance(value, float) or (isinstance(value, int) and abs(value) < _MOST) else None


def sound(text: str) -> bool:
    """True for text that has a UTF-8 form."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
