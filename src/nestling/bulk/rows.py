"""Rows of a source file of any format: the readers' interface, and the conversion of values to a column's type."""

import json
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from csv import Error as CsvError
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import pyarrow as pa

from nestling._util.text import LFS, LFS_POINTER, is_lfs_pointer
from nestling.errors import FileFormatError

OnIds = Callable[[Sequence[object]], None]
"""Called with the ids of the next rows, None where a row has none."""
_MOST = 1 << 1023
"""Integers below this are exact in float64."""
UUID_BYTES = 16
Mark = tuple[int, int]
"""Where a row begins in a text file: its byte (uncompressed) and its line, counted from 1."""
START: Mark = (0, 1)
_BROKEN = (pa.ArrowException, OSError, EOFError, CsvError, UnicodeError, zlib.error)


@dataclass(frozen=True, slots=True)
class Rows:
    """N rows: texts and ids as read, kept columns in the result's types, and why some rows are rejected.

    `ids` is None when the source has no id column, `images` when it has none. `faults`: reasons by index in these rows.
    """

    texts: list[object]
    ids: list[object] | None
    kept: dict[str, pa.Array]
    faults: dict[int, str]
    images: list[object] | None = None


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of the source that are read, and their types in the result.

    At least one of `text` and `image` is set, except for sources of image files only.
    """

    text: str | None
    id: str | None
    id_type: pa.DataType
    kept: pa.Schema
    image: str | None = None

    @property
    def names(self) -> list[str]:
        """All columns that are read, without duplicates."""
        return _each_once(self.text, self.image, self.id, *self.kept.names)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The columns that a job asks for: texts, ids (None numbers the rows), kept columns, images."""

    text: str | None
    id: str | None
    keep: tuple[str, ...] = ()
    image: str | None = None

    @property
    def names(self) -> list[str]:
        """All columns, without duplicates."""
        return _each_once(self.text, self.image, self.id, *self.keep)


def _each_once(*names: str | None) -> list[str]:
    return list(dict.fromkeys(name for name in names if name is not None))


@dataclass(frozen=True, slots=True)
class Survey:
    """Result of reading a file once: its number of rows, where runs of them begin, its columns' types and names.

    `images`: its rows are image files, whatever columns are wanted.
    """

    rows: int
    marks: tuple[Mark, ...]
    schema: pa.Schema
    names: tuple[str, ...]
    images: bool = False


class Reader(Protocol):
    """An open source file. FileFormatError naming the file for what cannot be read."""

    def survey(self, wanted: Wanted, every: int, on_ids: OnIds) -> Survey:
        """Read the file once; `marks` are where each run of `every` rows begins (empty for formats with random access).

        `on_ids` is called with the ids of all rows in order, when the file has the id column.
        """
        ...

    def read(self, start: int, stop: int, mark: Mark, columns: Columns) -> Rows:
        """Rows [start, stop); `mark` is that of `survey` for `start`. A column that the file lacks is null."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


def refuse_pointer(stream: BinaryIO, name: str) -> BinaryIO:
    """The stream, rewound; FileFormatError for a Git LFS pointer, whose stream is closed."""
    if is_lfs_pointer(stream.read(len(LFS))):
        stream.close()
        raise FileFormatError(f"{name}: {LFS_POINTER}")
    stream.seek(0)
    return stream


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn errors of the block into a one-line FileFormatError that names the file."""
    try:
        yield
    except FileFormatError as error:
        raise error if str(error).startswith(f"{name}: ") else FileFormatError(f"{name}: {error}") from None
    except _BROKEN as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileFormatError(f"{name}: cannot be read ({reason})") from None


def quoted(names: Iterable[str]) -> str:
    """Column names for a message: in quotes, which show leading spaces."""
    return ", ".join(map(ascii_only, names))


def ascii_only(name: str) -> str:
    """A name in quotes; characters without a UTF-8 form are escaped."""
    return repr(name) if sound(name) else ascii(name)


def plain_id(value: object) -> object:
    """An id in the form that is compared and stored: an integral float as an integer, a UUID as text."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bytes) and len(value) == UUID_BYTES:
        return str(uuid.UUID(bytes=value))
    return str(value) if isinstance(value, uuid.UUID) else value


def typed(values: Sequence[Any], kind: pa.DataType, name: str, faults: dict[int, str]) -> pa.Array:
    """JSON values as a column; one that does not fit becomes None and is rejected. A text column takes any, as JSON."""
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
    if pa.types.is_binary(kind):
        return value.encode() if isinstance(value, str) and sound(value) else None
    if pa.types.is_integer(kind):
        low, high = (0, 1 << 64) if pa.types.is_uint64(kind) else (-(1 << 63), 1 << 63)
        return value if isinstance(value, int) and low <= value < high else None
    return float(value) if isinstance(value, float) or (isinstance(value, int) and abs(value) < _MOST) else None


def sound(text: str) -> bool:
    """Whether a text can be encoded as UTF-8 (no lone surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
