"""A source cut into shards: which rows of which file, under which name. A pure function of files and settings.

Planning opens every file once: it reads a Parquet file's footer (and its id column), and the whole of a text file.
Duplicate ids are found here, so that a row's fate does not depend on the worker that reads it. Files that cannot be
read end the planning, or are skipped with their reason.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from nestling.bulk import rows as rows_
from nestling.bulk.duplicates import Ids, Pairs
from nestling.bulk.image_files import ImageFilesReader
from nestling.bulk.lines import LineReader
from nestling.bulk.parquet import ParquetReader
from nestling.bulk.rows import START, Columns, Mark, Reader
from nestling.bulk.schema import Schemas
from nestling.bulk.settings import JobSpec
from nestling.bulk.sources import Found
from nestling.errors import FileFormatError, UsageError


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of the plan. `marks`: where its shards begin, for text files."""

    name: str
    size: int
    fingerprint: str
    rows: int
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows [start, stop) of a file, which begin at `mark`; `first` is the index of `start` in the whole source."""

    number: int
    name: str
    file: int
    start: int
    stop: int
    mark: Mark
    first: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A job's input: files, columns, and the rows that repeat an id (N, 2).

    `skipped`: files left out, with reasons.
    """

    files: tuple[SourceFile, ...]
    columns: Columns
    shard_rows: int
    skipped: tuple[tuple[str, str], ...] = ()
    duplicates: Pairs = field(default_factory=lambda: np.empty((0, 2), np.int64), compare=False)

    @property
    def rows(self) -> int:
        """Total number of rows."""
        return sum(file.rows for file in self.files)

    def shards(self) -> list[Shard]:
        """Every shard, in the order of the source."""
        found, first = list[Shard](), 0
        for place, file in enumerate(self.files):
            stem = hashlib.sha256(f"{file.name}\0{file.size}\0{file.fingerprint}".encode())
            for at, start in enumerate(range(0, file.rows, self.shard_rows)):
                stop = min(file.rows, start + self.shard_rows)
                own = stem.copy()
                own.update(f"\0{start}\0{stop}".encode())
                name = f"{len(found):08d}-{own.hexdigest()[:12]}"
                found.append(
                    Shard(len(found), name, place, start, stop, file.marks[at] if file.marks else START, first + start)
                )
            first += file.rows
        return found

    def place(self, row: int) -> str:
        """`file#row` of a row of the whole source."""
        for file in self.files:
            if row < file.rows:
                return f"{file.name}#{row}"
            row -= file.rows
        raise IndexError(row)

    def repeats(self, shard: Shard) -> dict[int, int]:
        """Rows of a shard (by index in it) that repeat an id -> the first row of the whole source with that id."""
        low, high = np.searchsorted(self.duplicates[:, 0], [shard.first, shard.first + shard.stop - shard.start])
        return {int(row) - shard.first: int(first) for row, first in self.duplicates[low:high]}

    def to_json(self) -> dict[str, Any]:
        """The form in the manifest, where duplicates are a separate file."""
        schema = pa.schema([pa.field("id", self.columns.id_type), *self.columns.kept])
        return {
            "text_column": self.columns.text,
            "image_column": self.columns.image,
            "id_column": self.columns.id,
            "columns": {one.name: str(one.type) for one in schema},
            "schema": base64.b64encode(schema.serialize()).decode(),
            "shard_rows": self.shard_rows,
            "skipped": [list(pair) for pair in self.skipped],
            "files": [[file.name, file.size, file.fingerprint, file.rows, list(file.marks)] for file in self.files],
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any], duplicates: Pairs) -> Self:
        """Read what `to_json` wrote."""
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(raw["schema"])))
        kept, image = pa.schema(list(schema)[1:]), raw.get("image_column")  # a job from before images has none
        columns = Columns(raw["text_column"], raw["id_column"], schema.field(0).type, kept, image)
        files = tuple(
            SourceFile(name, size, print_, rows, tuple((at, line) for at, line in marks))
            for name, size, print_, rows, marks in raw["files"]
        )
        return cls(files, columns, raw["shard_rows"], tuple((a, b) for a, b in raw["skipped"]), duplicates)


def open_reader(file: Found) -> Reader:
    """The reader of a file's format; FileFormatError when it cannot be read."""
    if file.fault:
        raise FileFormatError(f"{file.name}: {file.fault}")
    if file.parts:
        return ImageFilesReader(file)
    if file.kind == "parquet":
        with rows_.reading(file.name):
            stream = file.open()
        try:
            return ParquetReader(stream, name=file.name)
        except BaseException:
            stream.close()
            raise
    return LineReader(file)


def settled(what: JobSpec, files: Sequence[Found]) -> JobSpec:
    """A job's settings, with the defaults that depend on its files filled in."""
    return what.settled(tables=any(not file.parts for file in files), images=has_images(what, files))


def has_images(what: JobSpec, files: Sequence[Found]) -> bool:
    """Whether a job embeds images."""
    return what.image_column is not None or any(file.parts for file in files)


def make(files: Sequence[Found], what: JobSpec, *, folder: Path, skip_bad_files: bool = False) -> Plan:
    """Open every file and cut it into shards; `folder` is for temporary files.

    UsageError for a source without rows and a missing column, FileFormatError for a file that cannot be read unless
    such files are skipped.
    """
    planner = _Planner(settled(what, files), Ids(folder))
    with closing(planner.ids):
        for file in files:
            before = planner.ids.mark()
            try:
                planner.add(file)
            except FileFormatError as error:
                if not skip_bad_files:
                    raise FileFormatError(f"{error}; skip_bad_files leaves it out") from None
                planner.ids.back_to(before)
                planner.skipped.append((file.name, str(error)))
        if not planner.rows:
            raise UsageError(f"source: no rows in {', '.join(file.name for file in files[:3])}", param="source")
        columns, duplicates = planner.schemas.columns(), planner.ids.duplicates()
    return Plan(tuple(planner.files), columns, planner.shard_rows, tuple(planner.skipped), duplicates)


class _Planner:
    def __init__(self, what: JobSpec, ids: Ids) -> None:
        assert what.shard_rows, "what depends on the source is settled"
        self.shard_rows, self.ids = what.shard_rows, ids
        self.schemas = Schemas(text=what.text_column, image=what.image_column, id_column=what.id_column, keep=what.keep)
        self.files, self.skipped, self.rows = list[SourceFile](), list[tuple[str, str]](), 0

    def add(self, file: Found) -> None:
        with closing(open_reader(file)) as reader:
            found = reader.survey(self.schemas.wanted, self.shard_rows, self.ids.add)
        with rows_.reading(file.name):
            fingerprint = file.fingerprint()
        self.schemas.add(file.name, found)
        self.files.append(SourceFile(file.name, file.size, fingerprint, found.rows, found.marks))
        self.rows += found.rows
        self.ids.rows = self.rows  # for files without ids, too


def source_of(files: Sequence[SourceFile]) -> str:
    """A fingerprint of a source: of names, sizes and fingerprints, in order."""
    told = json.dumps([[file.name, file.size, file.fingerprint] for file in files], ensure_ascii=False)
    return hashlib.sha256(told.encode()).hexdigest()
