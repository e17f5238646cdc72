"""Rows of a Parquet file. A range at or after the last one's end, in the same row group, continues the open read."""

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nestling.bulk.rows import (
    Columns,
    Mark,
    OnIds,
    Rows,
    Survey,
    Wanted,
    ascii_only,
    plain_id,
    reading,
    refuse_pointer,
    typed,
)
from nestling.errors import FileFormatError

BATCH_ROWS, IMAGE_ROWS = 512, 16
"""Rows that are decoded at once, without and with a column of images."""
BUFFER_BYTES = 1 << 20
"""Bytes of a column that are read at once: a row group may be as large as the file."""


class ParquetReader:
    """An open Parquet file."""

    def __init__(self, stream: BinaryIO, *, name: str) -> None:
        self._name, self._stream = name, refuse_pointer(stream, name)
        with reading(name):
            self._file = pq.ParquetFile(stream, buffer_size=BUFFER_BYTES, pre_buffer=False)
            self._schema: pa.Schema = self._file.schema_arrow
            meta = self._file.metadata
            self._ends = np.cumsum([meta.row_group(place).num_rows for place in range(meta.num_row_groups)])
        self._rest: pa.Table | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._at, self._names, self._batch_rows = -1, list[str](), BATCH_ROWS

    def survey(self, wanted: Wanted, _every: int, on_ids: OnIds) -> Survey:
        """The number of rows, from the footer; only the id column is read."""
        names = tuple(self._schema.names)
        there = [name for name in wanted.names if name in names]
        if twice := next((name for name in there if names.count(name) > 1), None):
            raise FileFormatError(f"{self._name}: duplicate column {ascii_only(twice)}")
        if wanted.id in there:
            with reading(self._name):
                for batch in self._file.iter_batches(batch_size=1 << 16, columns=[wanted.id]):
                    on_ids(_ids(batch.column(0), {}))
        schema = pa.schema([self._schema.field(name) for name in there])
        return Survey(self._file.metadata.num_rows, (), schema, names)

    def read(self, start: int, stop: int, _mark: Mark, columns: Columns) -> Rows:
        """Rows [start, stop)."""
        with reading(self._name):
            names = [name for name in columns.names if name in self._schema.names]
            self._batch_rows = IMAGE_ROWS if columns.image in names else BATCH_ROWS
            self._seek(start, names)
            table, faults = self._take(stop - start), dict[int, str]()
            found = {name: _decoded(table.column(name), name, faults) for name in table.column_names}
            absent = pa.nulls(table.num_rows)
            ids = _ids(found.get(columns.id, absent), faults) if columns.id else None
            kept = {one.name: _cast(found.get(one.name, absent), one, faults) for one in columns.kept}
            texts, images = (found.get(name, absent).to_pylist() for name in (columns.text, columns.image))
            return Rows(texts, ids, kept, faults, images if columns.image else None)

    def close(self) -> None:
        """Close the file."""
        self._batches, self._rest = iter(()), None
        self._file.close()
        self._stream.close()

    def _seek(self, start: int, names: list[str]) -> None:
        group = self._group(start)
        near = self._at >= 0 and self._at <= start and self._group(self._at) == group
        if names != self._names or not (near or self._at == start):
            self._batches = self._from(group, names)
            self._at, self._names, self._rest = int(self._ends[group - 1]) if group else 0, names, None
        while self._at < start:
            self._take(min(self._batch_rows, start - self._at))

    def _from(self, group: int, names: list[str]) -> Iterator[pa.RecordBatch]:
        """Batches from a row group on. None spans two groups, so that a broken page always hits the same rows."""
        for place in range(group, len(self._ends)):
            yield from self._file.iter_batches(batch_size=self._batch_rows, row_groups=[place], columns=names)

    def _group(self, row: int) -> int:
        return int(np.searchsorted(self._ends, row, side="right"))

    def _take(self, count: int) -> pa.Table:
        """The next `count` rows."""
        parts, rows = [self._rest] if self._rest is not None else [], self._rest.num_rows if self._rest else 0
        while rows < count:
            batch = next(self._batches, None)
            if batch is None:
                raise EOFError(f"row {self._at + rows} is missing")
            parts.append(pa.Table.from_batches([batch]))
            rows += batch.num_rows
        table = pa.concat_tables(parts)
        self._rest = table.slice(count) if rows > count else None
        self._at += count
        return table.slice(0, count)


def _decoded(column: pa.ChunkedArray, name: str, faults: dict[int, str]) -> pa.Array:
    """A column as one plain array; a row with text that is not UTF-8, at any depth, becomes null and is rejected."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    array = column.combine_chunks()
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        bad = {place for place in range(len(array)) if not _is_sound(array.take(pa.array([place])))}
        for place in bad:
            faults.setdefault(place, f"column {name!r} is not UTF-8")
        array = array.take(pa.array([None if place in bad else place for place in range(len(array))], pa.int64()))
    return array


def _is_sound(one: pa.Array) -> bool:
    try:
        one.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _ids(array: pa.Array, faults: dict[int, str]) -> list[object]:
    """Ids in the form that is compared; one that is not UTF-8 is None."""
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    return [plain_id(value) for value in _decoded(pa.chunked_array([array]), "id", faults).to_pylist()]


def _cast(array: pa.Array, field: pa.Field, faults: dict[int, str]) -> pa.Array:
    """A kept column in the result's type; a value that does not fit becomes null and its row is rejected."""
    try:
        return array.cast(field.type)
    except pa.ArrowInvalid:
        return typed(array.to_pylist(), field.type, field.name, faults)
