"""Exact search over a job's result: every vector is compared, one mmapped shard at a time.

The prompt, the dimensions and the model are those of the manifest. The score is the cosine with the query. Binary
vectors are taken as +1 and -1 and compared with the float query (finer than the Hamming distance). A LanceDB table is
searched by LanceDB.
"""

import heapq
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nestling import vectors
from nestling._util.extras import need
from nestling._util.files import sha256_file
from nestling.bulk import manifest, model_files
from nestling.bulk.manifest import Job, Log
from nestling.bulk.settings import FOUND_ROWS, VectorType
from nestling.engine.names import EngineName, check_device, parse_device
from nestling.errors import BuildError, FileFormatError, InputError, UsageError
from nestling.inputs.image import ImageLike
from nestling.models import local
from nestling.models.embedder import Embedder
from nestling.spec import Role
from nestling.vectors import Floats

_UNPACK: dict[VectorType, Callable[[NDArray[Any]], Floats]] = {
    VectorType.FLOAT: lambda rows: rows,
    VectorType.FLOAT16: lambda rows: vectors.normalise(rows.astype(np.float32)),
    VectorType.INT8: vectors.from_int8,
    VectorType.BINARY: vectors.from_ubinary,
}
"""How stored rows become unit vectors."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A row that was found: its score from -1 to 1, its id, and its kept columns."""

    score: float
    id: str | int
    kept: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """The nearest rows, best first, and how many of the job's rows have been embedded and searched."""

    hits: list[Hit]
    rows: int
    rows_total: int


def search(
    dest: Path,
    query: str | ImageLike,
    *,
    top: int = FOUND_ROWS,
    model: str | None = None,
    threads: int | None = None,
    device: str | None = None,
) -> Found:
    """The `top` rows nearest to a text (a str) or an image (a Path, bytes and so on).

    `model` says where the job's model file is now, if it has moved. `device`: where torch embeds the query; by default
    the job's kind of device. A folder without a job, an empty query and one that is no image are a UsageError; another
    model file is a BuildError.
    """
    if top < 1:
        raise UsageError(f"top={top}: expected at least 1", param="top")
    job = Job.read(dest)
    if device is not None:
        check_device(EngineName.parse(job.what.backend), parse_device(device))
    vector = _query(job, query, model, (device or job.what.device, threads))
    if (dest / manifest.TABLE_DONE).exists() and job.what.embedding_type != VectorType.INT8:
        hits = need("nestling.bulk.lance", wanted_for="searching a LanceDB table", extra="lance").search(
            job, vector, top
        )
        return Found([Hit(*one) for one in hits], job.plan.rows, job.plan.rows)
    log = Log(job, append=False)
    hits = [_hit(job, *best) for best in nearest(job, log, vector, top=top)]
    return Found(hits, log.rows, job.plan.rows - log.rejected)


def _query(job: Job, query: str | ImageLike, model: str | None, where: tuple[str | None, int | None]) -> Floats:
    """The query's vector. `where`: the device and its threads."""
    path = local.resolve(model or job.model.reference)
    if sha256_file(path) != job.model.sha256:
        raise BuildError(f"{path}: not the model file that {job.folder} was made with; give that one's path as `model`")
    if not isinstance(query, str):
        model_files.check(job.model, path)  # the vision tower's too
    prompt = Role.RAW if Role.parse(job.what.prompt) is Role.RAW else Role.QUERY
    (device, threads), what = where, job.what
    with closing(
        Embedder.load(path, threads=threads, engine=what.backend, device=device, arithmetic=what.products)
    ) as embedder:
        try:
            items = embedder.items([query], prompt_name=prompt)
        except InputError as error:
            raise UsageError(f"query: {error.reason}", param="query") from None
        found: Floats = embedder.embed(items, dimension=job.model.dimensions)[0]
        return found


def nearest(job: Job, log: Log, query: Floats, *, top: int) -> list[tuple[float, str, int]]:
    """The best (score, shard, row of the shard's file), best first; of equal scores the earlier row first."""
    best: list[tuple[float, int, str, int]] = []
    place = 0
    for shard, stored in _stored(job, log):
        scores = _UNPACK[VectorType(job.what.embedding_type)](stored) @ query
        for row in np.argsort(-scores, kind="stable")[:top].tolist():
            best.append((float(scores[row]), -(place + row), shard, row))
        best = heapq.nlargest(top, best)
        place += len(stored)
    return [(score, shard, row) for score, _, shard, row in best]


def _stored(job: Job, log: Log) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every finished shard's stored vectors: (N, width)."""
    for shard in job.plan.shards():
        if shard.name in log.finished and log.finished[shard.name].rows:
            yield shard.name, read_vectors(job.path(shard.name))


def read_vectors(path: Path) -> NDArray[Any]:
    """The vectors of a shard: (N, width)."""
    try:
        column = pq.read_table(path, columns=["vector"], memory_map=True, use_threads=False).column(0)
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
    chunk = column.combine_chunks()
    flat: NDArray[Any] = chunk.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(chunk), chunk.type.list_size)


def _hit(job: Job, score: float, shard: str, row: int) -> Hit:
    names = ["id", *job.plan.columns.kept.names]
    values = pq.read_table(job.path(shard), columns=names, memory_map=True).slice(row, 1).to_pylist()[0]
    return Hit(score, values.pop("id"), values)
