"""One shard from its rows to its file: read, embed, pack, write atomically.

A shard's bytes depend on its rows, the settings and the model file alone: batches are formed within a shard, and an
engine's sums do not depend on its number of threads. Does not know its caller.
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
from nestling._util.files import atomic_write
from nestling._util.memory import give_back_freed
from nestling.bulk import model_files
from nestling.bulk.embedding import Bad, Embedded, RowEmbedder, Ticked, tick_nobody
from nestling.bulk.image_files import is_empty
from nestling.bulk.manifest import FOOTER, Finished, Job, Notes, finished
from nestling.bulk.plan import Shard, open_reader
from nestling.bulk.rows import Columns, Reader, Rows, sound, typed
from nestling.bulk.settings import VectorType
from nestling.bulk.sources import Found
from nestling.errors import BuildError, FileFormatError
from nestling.models import local
from nestling.models.embedder import Embedder
from nestling.vectors import Floats

TRIES, TRY_S = 100, 0.1


@dataclass(frozen=True, slots=True)
class Packing:
    """How vectors of D numbers are stored: the Arrow type of an element, elements per vector, and the conversion."""

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
    """The result's columns: id, vector, kept columns."""
    packing = PACKINGS[VectorType(job.what.embedding_type)]
    vector = pa.list_(pa.field("element", packing.kind, nullable=False), packing.width(job.model.dimensions))
    columns = job.plan.columns
    fields = [pa.field("id", columns.id_type, nullable=False), pa.field("vector", vector, nullable=False)]
    return pa.schema([*fields, *columns.kept])


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker needs, wherever it runs: the job's folder, the source's files, its engine's threads and device."""

    folder: Path
    files: tuple[Found, ...]
    model: str
    threads: int
    skip_bad_files: bool
    device: str | None = None


def open_worker(setup: Setup) -> "Worker":
    """Load the model and open the job; a model file or a vision tower that is not the job's is a BuildError."""
    job, path = Job.read(setup.folder), local.resolve(setup.model)
    model_files.check(job.model, path)
    what, threads = job.what, setup.threads
    embedder = Embedder.load(path, threads=threads, engine=what.backend, device=setup.device, arithmetic=what.products)
    return Worker(job, setup.files, embedder, skip_bad_files=setup.skip_bad_files)


class Worker:
    """Makes shards, keeping the source file of the last one open."""

    def __init__(self, job: Job, files: Sequence[Found], embedder: Embedder, *, skip_bad_files: bool) -> None:
        self._job, self._files, self._embedder, self._skip = job, files, embedder, skip_bad_files
        self._rows = RowEmbedder(embedder, job.what, job.model.dimensions)
        self._open: tuple[int, Reader] | None = None

    def make(self, shard: Shard, ticked: Ticked = tick_nobody) -> Finished:
        """Read, embed and write a shard; FileFormatError when its file cannot be read, unless that is skipped."""
        rows = self._read(shard)
        bad = self._unusable(rows, shard)
        columns = self._columns(rows, shard, bad)
        embedded = self._rows.embed(rows, self._files[shard.file], bad, ticked)
        rejects = [(shard.start + place, _shown(columns["id"], place), bad[place]) for place in sorted(bad)]
        notes = Notes(self._job.id, embedded.tokens, rejects)
        done = self._write(shard, notes, columns, embedded)
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

    def _unusable(self, rows: Rows, shard: Shard) -> Bad:
        """Why rows cannot be embedded, by index: a fault of the row, of its id or of its text or image."""
        plan = self._job.plan
        bad = dict(rows.faults)
        for place, first in plan.repeats(shard).items():
            bad.setdefault(place, f"duplicate id, first at {plan.place(first)}")
        for place, one in enumerate(rows.ids or ()):
            if one is None:
                bad.setdefault(place, "the id is null")
            elif isinstance(one, str) and not sound(one):
                bad.setdefault(place, "the id is not valid Unicode")
        for place, reason in _without_input(rows, plan.columns).items():
            bad.setdefault(place, reason)
        return bad

    def _columns(self, rows: Rows, shard: Shard, bad: Bad) -> dict[str, pa.Array]:
        """The columns of all rows of the shard, without the vectors; rows whose id does not fit are added to `bad`."""
        plan = self._job.plan
        if rows.ids is None:
            name = plan.files[shard.file].name
            ids = pa.array([f"{name}#{row}" for row in range(shard.start, shard.stop)], pa.string())
        else:
            ids = typed(rows.ids, plan.columns.id_type, "id", bad)
        return {"id": ids, **rows.kept}

    def _write(self, shard: Shard, notes: Notes, columns: dict[str, pa.Array], embedded: Embedded) -> Finished:
        packing, schema = PACKINGS[VectorType(self._job.what.embedding_type)], schema_of(self._job)
        chosen = pa.array(embedded.places, pa.int64())
        arrays = {name: column.take(chosen) for name, column in columns.items()}
        packed = packing.pack(embedded.rows) if embedded.places else np.empty(0, packing.kind.to_pandas_dtype())
        flat = pa.array(packed.reshape(-1), schema.field("vector").type.value_type)
        arrays["vector"] = pa.FixedSizeListArray.from_arrays(flat, type=schema.field("vector").type)
        table = pa.Table.from_arrays([arrays[name] for name in schema.names], schema=schema)
        content = _parquet(table.replace_schema_metadata({FOOTER: notes.to_bytes()}))
        self._put(self._job.path(shard.name), content)
        return finished(shard, notes, content)

    def _put(self, path: Path, content: bytes) -> None:
        """Write a file atomically. A killed run's worker may still be writing the same bytes: wait for it."""
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
    """A table as the bytes of a Parquet file: vectors uncompressed, the other columns with zstd."""
    rest = [name for name in table.schema.names if name != "vector"]
    compression = dict.fromkeys(rest, "zstd") | {"vector.list.element": "none"}
    target = io.BytesIO()
    pq.write_table(table, target, compression=compression, use_dictionary=False, store_schema=True)
    return target.getvalue()


def _without_input(rows: Rows, columns: Columns) -> dict[int, str]:
    """Rows with nothing to embed, or with both a text and an image. With both columns, an empty string is no text."""
    if rows.images is None:
        return {place: "the text is null" for place, text in enumerate(rows.texts) if text is None}
    both, bad = columns.text is not None and columns.image is not None, dict[int, str]()
    for place, (text, image) in enumerate(zip(rows.texts, rows.images, strict=True)):
        no_text, no_image = text is None or (both and text == ""), is_empty(image)
        if no_text and no_image:
            bad[place] = "neither a text nor an image" if both else "the image is null"
        elif not no_text and not no_image:
            bad[place] = "both a text and an image; expected one of them"
    return bad


def _shown(ids: pa.Array, place: int) -> str | None:
    value = ids[place].as_py()
    return None if value is None else str(value)
