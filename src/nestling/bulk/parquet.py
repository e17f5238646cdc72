"""Rows of a Parquet file. A range that begins where the last one ended, or later in its row group, is read on."""

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nestling.bulk.rows import Columns, OnIds, Rows, reading

BATCH_ROWS = 512
BUFFER_BYTES = 1 << 20
"""Of a column that are read at once: a row group may be as large as the file."""


class ParquetReader:
    """An open Parquet file."""

    def __init__(self, stream: BinaryIO, *, name: str) -> None:
        self._name, self._stream = name, stream
        with reading(name):
            self._file = pq.ParquetFile(stream, buffer_size=BUFFER_BYTES, pre_buffer=False)
            self.schema: pa.Schema = self._file.schema_arrow
            meta = self._file.metadata
            self._ends = np.cumsum([meta.row_group(place).num_rows for place in range(meta.num_row_groups)])
        self._rest: pa.Table | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._at, self._names = -1, list[str]()

    def survey(self, _every: int, id_column: str | None, on_ids: OnIds) -> tuple[int, list[int]]:
        """Rows from the footer; the id column alone is read."""
        if id_column:
            with reading(self._name):
                for batch in self._file.iter_batches(batch_size=1 << 16, columns=[id_column]):
                    on_ids(batch.column(0).to_pylist())
        return self._file.metadata.num_rows, []

    def read(self, start: int, stop: int, _mark: int, columns: Columns) -> Rows:
        """Rows [start, stop)."""
        with reading(self._name):
            self._seek(start, columns.names)
            table = self._take(stop - start)
            ids = table.column(columns.id).to_pylist() if columns.id else None
            kept = {field.name: table.column(field.name).cast(field.type) for field in columns.kept}
            kept = {name: column.combine_chunks() for name, column in kept.items()}
            return Rows(table.column(columns.text).to_pylist(), ids, kept, {})

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
            self._take(min(BATCH_ROWS, start - self._at))

    def _from(self, group: int, names: list[str]) -> Iterator[pa.RecordBatch]:
        """Batches from a row group on. None crosses into the next, so a broken page is met by the same rows always."""
        for place in range(group, len(self._ends)):
            yield from self._file.iter_batches(batch_size=BATCH_ROWS, row_groups=[place], columns=names)

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
