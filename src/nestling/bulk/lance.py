"""A job's result as a LanceDB table: written from the finished shards in one commit, and searched. Imports lancedb.

The table is complete or absent: one that a killed run left incomplete is written again. The Parquet files stay, since a
job resumes from them. The index is LanceDB's own: IVF-PQ for numbers, IVF-FLAT for bits.
"""

import json
from collections.abc import Iterator
from typing import Any

import lancedb
import pyarrow as pa
import pyarrow.parquet as pq

from nestling._util.files import atomic_write
from nestling.bulk.manifest import TABLE, TABLE_DONE, Job
from nestling.bulk.settings import INDEX_ROWS, VectorType
from nestling.bulk.worker import schema_of
from nestling.errors import BuildError, UsageError
from nestling.vectors import Floats, to_ubinary

NAME = "vectors"


def make(job: Job, *, index: bool) -> None:
    """Make the table, with an index if it is wanted, unless the folder already has it complete."""
    done = job.folder / TABLE_DONE
    told = json.loads(done.read_text()) if done.exists() else {}
    if told.get("job") == job.id and told["index"] >= index:
        return
    done.unlink(missing_ok=True)
    try:
        table = _database(job).create_table(NAME, data=_batches(job), schema=schema_of(job), mode="overwrite")
        if index:
            _index(job, table)
    except (RuntimeError, ValueError, OSError) as error:
        raise BuildError(f"{job.folder / TABLE}: LanceDB: {str(error).splitlines()[0]}") from None
    with atomic_write(done) as file:
        file.write(json.dumps({"job": job.id, "rows": table.count_rows(), "index": index}).encode())


def search(job: Job, query: Floats, top: int) -> list[tuple[float, str | int, dict[str, Any]]]:
    """The nearest rows of the table: (score, id, kept columns), best first."""
    table, binary = _database(job).open_table(NAME), job.what.embedding_type == VectorType.BINARY
    asked = to_ubinary(query) if binary else query
    rows = (
        table.search(asked, vector_column_name="vector").metric("hamming" if binary else "cosine").limit(top).to_list()
    )
    bits = 2 / job.model.dimensions if binary else 1
    found = []
    for row in rows:
        score = 1 - bits * row.pop("_distance")
        del row["vector"]
        found.append((score, row.pop("id"), row))
    return found


def _database(job: Job) -> Any:  # noqa: ANN401 - lancedb's connection
    return lancedb.connect(job.folder / TABLE)


def _batches(job: Job) -> Iterator[pa.RecordBatch]:
    schema = schema_of(job)
    for shard in job.plan.shards():
        yield from pq.read_table(job.path(shard.name)).replace_schema_metadata(None).cast(schema).to_batches()


def _index(job: Job, table: Any) -> None:  # noqa: ANN401 - lancedb's table
    if table.count_rows() < INDEX_ROWS:
        raise UsageError(f"index: LanceDB needs {INDEX_ROWS} rows or more to build one", param="index")
    if job.what.embedding_type == VectorType.BINARY:
        table.create_index(metric="hamming", index_type="IVF_FLAT", vector_column_name="vector")
    else:
        table.create_index(metric="cosine", index_type="IVF_PQ", vector_column_name="vector")
