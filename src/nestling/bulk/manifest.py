"""The folder of a job: its manifest, its log of finished shards, its lock.

    job.json            settings, model file, source, columns: written once, when the plan is complete
    duplicates.npy      rows that repeat an id, when there are any
    finished.jsonl      a line for every finished shard: rows, rejects, tokens, size, SHA-256
    shards/NAME.parquet a shard's vectors and, in its footer, its rejected rows
    rejects.jsonl       every rejected row: file, row, id, reason; written when a run ends
    lance/, lance.json  the LanceDB table, when that is the sink, and the mark that it is complete

A shard is finished when its file has its final name; the log saves reading a hundred thousand footers. A run that died
before logging a finished file leaves that to the next run, which adopts the file. Knows no engine.
"""

import fcntl
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nestling._util.files import atomic_write
from nestling.bulk import duplicates
from nestling.bulk.plan import Plan, Shard
from nestling.bulk.settings import JobSpec
from nestling.errors import BuildError, FileFormatError, UsageError

VERSION = 2
JOB, LOG, REJECTS, DUPLICATES, SHARDS, LOCK = (
    "job.json", "finished.jsonl", "rejects.jsonl", "duplicates.npy", "shards", ".lock",
)  # fmt: skip
TABLE, TABLE_DONE = "lance", "lance.json"
FOOTER = b"nestling.shard"
"""The key of a shard's footer that holds its `Notes`."""


@dataclass(frozen=True, slots=True)
class Model:
    """The model file of a job: its reference as given, its SHA-256, and its vectors' dimensions.

    `tower`: the SHA-256 of the vision tower, for a job with images.
    """

    reference: str
    sha256: str
    dimensions: int
    tower: str | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished shard, as recorded in the log."""

    shard: str
    rows: int
    rejected: int
    tokens: int
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Notes:
    """A shard's footer: the id of its job, tokens, and rejected rows as (row, id, reason)."""

    job: str
    tokens: int
    rejects: Sequence[tuple[int, str | None, str]]

    def to_bytes(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self), ensure_ascii=False).encode("utf-8", "backslashreplace")

    @classmethod
    def of(cls, path: Path) -> Self:
        """Read a shard's footer; FileFormatError when the file is not a shard."""
        try:
            raw = json.loads((pq.read_metadata(path).metadata or {})[FOOTER])
            return cls(raw["job"], raw["tokens"], [(row, one, why) for row, one, why in raw["rejects"]])
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            raise FileFormatError(f"{path}: not a shard of a job ({error})") from None


@dataclass(frozen=True, slots=True)
class Job:
    """A job, as read from its folder. `id` is the SHA-256 of job.json."""

    folder: Path
    id: str
    what: JobSpec
    model: Model
    plan: Plan

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read job.json; FileFormatError when it is not one, UsageError when there is none."""
        path = folder / JOB
        if not path.exists():
            raise UsageError(f"{folder}: not a job's folder: it has no {JOB}", param="dest")
        content = path.read_bytes()
        try:
            raw = json.loads(content)
            if raw["version"] != VERSION:
                raise FileFormatError(f"{path}: written by another version of nestling ({raw['made_by']})")
            repeated = folder / DUPLICATES
            pairs = np.load(repeated, mmap_mode="r") if repeated.exists() else np.empty((0, 2), np.int64)
            plan = Plan.from_json(raw["source"], pairs)
            return cls(folder, _id(content), JobSpec.from_json(raw["settings"]), Model(**raw["model"]), plan)
        except (ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise FileFormatError(f"{path}: not a job of this version ({error})") from None

    @classmethod
    def create(cls, folder: Path, what: JobSpec, model: Model, plan: Plan) -> Self:
        """Write the duplicates, then job.json, which makes the job valid."""
        from nestling._util.version import __version__

        (folder / DUPLICATES).unlink(missing_ok=True)  # left by a run that was killed before it wrote job.json
        if len(plan.duplicates):
            with atomic_write(folder / DUPLICATES) as file:
                np.save(file, plan.duplicates)
        told = {"version": VERSION, "made_by": f"nestling {__version__}", "settings": what.to_json(),
                "model": asdict(model), "source": plan.to_json()}  # fmt: skip
        content = (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape")
        with atomic_write(folder / JOB) as file:
            file.write(content)
        return cls(folder, _id(content), what, model, plan)

    def path(self, name: str) -> Path:
        """Path of a shard."""
        return self.folder / SHARDS / f"{name}.parquet"


def _id(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def check_free(folder: Path) -> None:
    """BuildError for a folder with other files and no job; leftovers of a killed run are removed or ignored."""
    for left in folder.glob(f"{duplicates.PREFIX}*"):
        shutil.rmtree(left)
    ours = {LOCK, JOB, f"{JOB}.part", DUPLICATES, f"{DUPLICATES}.part"}
    if not {one.name for one in folder.iterdir()} <= ours:
        raise BuildError(f"{folder}: exists and is not a job's folder; expected a new or an empty one")


def check_same(job: Job, what: JobSpec, model: Model) -> None:
    """BuildError naming what differs, unless a rerun has the job's settings and model file."""
    old, new = _comparable(job.what, job.model), _comparable(what, model)
    for name, value in new.items():
        if old[name] != value:
            raise BuildError(
                f"{job.folder}: holds a job with {name}={old[name]!r}, not {value!r}; give it another folder"
            )


def _comparable(what: JobSpec, model: Model) -> dict[str, Any]:
    return {"model_sha256": model.sha256, "tower_sha256": model.tower} | what.to_json() | {
        "model": "", "dimensions": model.dimensions
    }  # fmt: skip


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock the folder; BuildError at once while another run holds it. The lock ends with its process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BuildError(f"{folder}: another run is at work here; wait for it or stop it") from None
        yield


class Log:
    """The finished shards of a job: read once, appended to and synced line by line."""

    def __init__(self, job: Job, *, append: bool = True) -> None:
        self._job, self._path = job, job.folder / LOG
        self.finished = self._read(cut=append)
        self.rows = sum(one.rows for one in self.finished.values())
        self.rejected = sum(one.rejected for one in self.finished.values())
        self._file: BinaryIO = self._path.open("ab") if append else io.BytesIO()

    def add(self, one: Finished) -> None:
        """Record a finished shard."""
        self._file.write(line(one))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._count(one, 1)
        self.finished[one.shard] = one

    def _count(self, one: Finished, sign: int) -> None:
        self.rows, self.rejected = self.rows + sign * one.rows, self.rejected + sign * one.rejected

    def adopt(self, shards: Iterable[Shard]) -> None:
        """Drop entries whose file is missing or of another size, and add finished files that are not in the log."""
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(self._job.folder / SHARDS)}
        for shard in shards:
            size, known = sizes.get(f"{shard.name}.parquet"), self.finished.get(shard.name)
            if known and known.size != size:
                self._count(self.finished.pop(shard.name), -1)
            if size is not None and shard.name not in self.finished and (found := _found(self._job, shard)):
                self.add(found)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def settle(self) -> None:
        """Rewrite the log, sorted by shard and without duplicates, so that equal jobs end with equal folders."""
        self.close()
        with atomic_write(self._path) as file:
            file.writelines(line(one) for _, one in sorted(self.finished.items()))

    def _read(self, *, cut: bool) -> dict[str, Finished]:
        """The complete lines of the log; one that a killed run left incomplete is removed."""
        content = self._path.read_bytes() if self._path.exists() else b""
        whole = content.rfind(b"\n") + 1
        if cut and whole < len(content):
            os.truncate(self._path, whole)
        return {one.shard: one for one in map(_parsed, content[:whole].splitlines()) if one}


def _parsed(raw: bytes) -> Finished | None:
    try:
        return Finished(**json.loads(raw))
    except (ValueError, TypeError):
        return None  # the shard's own footer is read instead


def line(one: Finished) -> bytes:
    """A finished shard as a line of the log."""
    return (json.dumps(asdict(one)) + "\n").encode()


def _found(job: Job, shard: Shard) -> Finished | None:
    path = job.path(shard.name)
    try:
        notes = Notes.of(path)
    except FileFormatError:
        return None
    return finished(shard, notes, path.read_bytes()) if notes.job == job.id else None


def finished(shard: Shard, notes: Notes, content: bytes) -> Finished:
    """The log's entry for a shard's file."""
    rejected = len(notes.rejects)
    sha256 = hashlib.sha256(content).hexdigest()
    return Finished(shard.name, shard.stop - shard.start - rejected, rejected, notes.tokens, len(content), sha256)


def write_rejects(job: Job, done: dict[str, Finished]) -> None:
    """Write rejects.jsonl from the footers of the shards that have any."""
    with atomic_write(job.folder / REJECTS) as file:
        for shard in job.plan.shards():
            if shard.name in done and done[shard.name].rejected:
                name = job.plan.files[shard.file].name
                for row, one, reason in Notes.of(job.path(shard.name)).rejects:
                    told = {"file": name, "row": row, "id": one, "reason": reason}
                    file.write((json.dumps(told, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))
