"""One shard from its rows to its file: read, embed in batches of like length, pack, write whole.

What a shard becomes depends on its rows, the settings and the model file alone: batches are formed inside it, and an
engine's sums do not depend on how many threads it has. Knows not who calls it.
"""

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nestling import vectors
from nestling._util.files import atomic_write, sha256_file
from nestling._util.memory import give_back_freed
from nestling.bulk.manifest import FOOTER, Finished, Job, Notes, finished
from nestling.bulk.plan import Shard, open_reader
from nestling.bulk.rows import Reader, Rows, sound, typed
from nestling.bulk.settings import VectorType
from nestling.bulk.sources import Found
from nestling.engine.protocol import TokenIds, plain
from nestling.errors import BuildError, FileFormatError, TextError
from nestling.models import local
from nestling.models.embedder import Embedder
from nestling.vectors import Floats

TRIES, TRY_S = 100, 0.1

Ticked = Callable[[int, int], None]
"""Told (rows, tokens) that are done with, as they come."""


def tick_nobody(_rows: int, _tokens: int) -> None:
    """A `Ticked` that tells nobody."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How vectors of D numbers are stored: the Arrow type of a number, numbers a vector, and how they are made."""

    kind: pa.DataType
    width: Callable[[int], int]
    pack: Callable[[Floats], NDArray[Any]]


PACKINGS = {
    VectorType.FLOAT: Packing(pa.float32(), lambda d: d, lambda rows: rows),
    VectorType.FLOAT16: Packing(pa.float16(), lambda d: d, lambda rows: rows.astype(np.float16)),
    VectorType.INT8: Packing(pa.int8(), lambda d: d, vectors.to_int8),
    VectorType.BINARY: Packing(pa.uint8(), lambda d: d // 8, vectors.to_ubinary),
}


def schema_of(job: Job) -> pa.Schema:
    """The result's columns: id, vector, those that are kept."""
    packing = PACKINGS[VectorType(job.what.embedding_type)]
    vector = pa.list_(pa.field("element", packing.kind, nullable=False), packing.width(job.model.dimensions))
    columns = job.plan.columns
    fields = [pa.field("id", columns.id_type, nullable=False), pa.field("vector", vector, nullable=False)]
    return pa.schema([*fields, *columns.kept])


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker is made of, wherever it runs: the job's folder, the source's files, threads of its engine."""

    folder: Path
    files: tuple[Found, ...]
    model: str
    threads: int
    skip_bad_files: bool


def open_worker(setup: Setup) -> "Worker":
    """Load the model and open the job; a model file that is not the job's is a BuildError."""
    job, path = Job.read(setup.folder), local.resolve(setup.model)
    if (found := sha256_file(path)) != job.model.sha256:
        raise BuildError(f"{path}: SHA-256 {found[:12]}..., the job's model file has {job.model.sha256[:12]}...")
    embedder = Embedder.load(path, engine=job.what.backend, threads=setup.threads)
    return Worker(job, setup.files, embedder, skip_bad_files=setup.skip_bad_files)


class Worker:
    """Makes shards, keeping the source file of the last one open."""

    def __init__(self, job: Job, files: Sequence[Found], embedder: Embedder, *, skip_bad_files: bool) -> None:
        self._job, self._files, self._embedder, self._skip = job, files, embedder, skip_bad_files
        self._open: tuple[int, Reader] | None = None

    def make(self, shard: Shard, ticked: Ticked = tick_nobody) -> Finished:
        """Read, embed and write a shard; FileFormatError when its file cannot be read, unless that is skipped."""
        rows = self._read(shard)
        bad = self._unusable(rows, shard)
        columns = self._columns(rows, shard, bad)
        good = [place for place in range(len(rows.texts)) if place not in bad]
        ids = self._tokenize(rows, good, bad)
        good = [place for place in good if place not in bad]
        ticked(len(bad), 0)
        packed = self._embed(ids, ticked)
        rejects = [(shard.start + place, _shown(columns["id"], place), bad[place]) for place in sorted(bad)]
        notes = Notes(self._job.id, sum(map(len, ids)), rejects)
        done = self._write(shard, notes, columns, (good, packed))
        give_back_freed()
        return done

    def close(self) -> None:
        """Close what is open, and the engine."""
        self._close_file()
        self._embedder.close()

    def _close_file(self) -> None:
        if self._open:
            self._open[1].close()
            self._open = None

    def _read(self, shard: Shard) -> Rows:
        columns = self._job.plan.columns
        try:
            return self._reader(shard.file).read(shard.start, shard.stop, shard.mark, columns)
        except FileFormatError as error:
            self._close_file()
            if not self._skip:
                raise
            nothing = [None] * (shard.stop - shard.start)
            kept = {field.name: pa.nulls(len(nothing), field.type) for field in columns.kept}
            return Rows(
                [*nothing], [*nothing] if columns.id else None, kept, dict.fromkeys(range(len(nothing)), str(error))
            )

    def _reader(self, file: int) -> Reader:
        if self._open is None or self._open[0] != file:
            self._close_file()
            self._open = file, open_reader(self._files[file])
        return self._open[1]

    def _unusable(self, rows: Rows, shard: Shard) -> dict[int, str]:
        """Why rows cannot be embedded, by place: what is wrong with the row, its id or its text."""
        plan = self._job.plan
        bad = dict(rows.faults)
        for place, first in plan.repeats(shard).items():
            bad.setdefault(place, f"the id is that of {plan.place(first)} already")
        for place, one in enumerate(rows.ids or ()):
            if one is None:
                bad.setdefault(place, "the id is null")
            elif isinstance(one, str) and not sound(one):
                bad.setdefault(place, "the id has no UTF-8 form")
        for place, text in enumerate(rows.texts):
            if text is None:
                bad.setdefault(place, "the text is null")
        return bad

    def _tokenize(self, rows: Rows, good: Sequence[int], bad: dict[int, str]) -> list[TokenIds]:
        """Ids of the good rows' texts; those that cannot be had join the bad ones."""
        texts: list[Any] = [rows.texts[place] for place in good]
        try:
            return self._ids(texts)
        except TextError:
            found = list[TokenIds]()
        for place, text in zip(good, texts, strict=True):
            try:
                found += self._ids([text])
            except TextError as error:
                bad[place] = error.reason
        return found

    def _ids(self, texts: Sequence[str]) -> list[TokenIds]:
        what = self._job.what
        return self._embedder.tokenize(texts, prompt_name=what.prompt, truncate=what.truncate)

    def _embed(self, ids: Sequence[TokenIds], ticked: Ticked) -> NDArray[Any]:
        """Vectors in the order of the rows, packed: B texts -> (B, width)."""
        packing, size = PACKINGS[VectorType(self._job.what.embedding_type)], self._job.model.dimensions
        rows = np.empty((len(ids), size), np.float32)
        for places, found in self._embedder.embed_iter(plain(ids), dimension=size):
            rows[places] = found
            ticked(len(places), sum(len(ids[place]) for place in places))
        return packing.pack(rows) if len(rows) else np.empty((0, packing.width(size)), packing.kind.to_pandas_dtype())

    def _columns(self, rows: Rows, shard: Shard, bad: dict[int, str]) -> dict[str, pa.Array]:
        """The columns of every row of the shard, less the vectors; ids that do not fit join the bad rows."""
        plan = self._job.plan
        if rows.ids is None:
            name = plan.files[shard.file].name
            ids = pa.array([f"{name}#{row}" for row in range(shard.start, shard.stop)], pa.string())
        else:
            ids = typed(rows.ids, plan.columns.id_type, "id", bad)
        return {"id": ids, **rows.kept}

    def _write(
        self, shard: Shard, notes: Notes, columns: dict[str, pa.Array], done: tuple[list[int], NDArray[Any]]
    ) -> Finished:
        good, packed = done
        schema = schema_of(self._job)
        chosen = pa.array(good, pa.int64())
        arrays = {name: column.take(chosen) for name, column in columns.items()}
        flat = pa.array(packed.reshape(-1), schema.field("vector").type.value_type)
        arrays["vector"] = pa.FixedSizeListArray.from_arrays(flat, type=schema.field("vector").type)
        table = pa.Table.from_arrays([arrays[name] for name in schema.names], schema=schema)
        content = _parquet(table.replace_schema_metadata({FOOTER: notes.to_bytes()}))
        self._put(self._job.path(shard.name), content)
        return finished(shard, notes, content)

    def _put(self, path: Path, content: bytes) -> None:
        """Write a file whole. A killed run's worker may live long enough to be writing the same bytes: wait for it."""
        for attempt in range(TRIES):
            try:
                with atomic_write(path) as file:
                    file.write(content)
            except BuildError:
                if attempt == TRIES - 1:
                    raise
                time.sleep(TRY_S)
            else:
                return


def _parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file: vectors as they are, the other columns with zstd."""
    rest = [name for name in table.schema.names if name != "vector"]
    compression = dict.fromkeys(rest, "zstd") | {"vector.list.element": "none"}
    target = io.BytesIO()
    pq.write_table(table, target, compression=compression, use_dictionary=False, store_schema=True)
    return target.getvalue()


def _shown(ids: pa.Array, place: int) -> str | None:
    value = ids[place].as_py()
    return None if value is None else str(value)
