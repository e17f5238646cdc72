"""Small corpora for bulk jobs, and what came of one."""

import gzip
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

WORDS = ("the", "river", "socket", "bird", "über", "値", "opens", "slowly", "market", "x")


def texts(count: int, *, seed: int = 0) -> list[str]:
    """Texts of 1 to 12 words, no two alike."""
    draw = random.Random(seed)
    return [f"{number} " + " ".join(draw.choices(WORDS, k=draw.randint(1, 12))) for number in range(count)]


def rows(count: int, *, seed: int = 0) -> dict[str, list[Any]]:
    """Columns id (text), text, n (whole numbers)."""
    return {"id": [f"d{n}" for n in range(count)], "text": texts(count, seed=seed), "n": list(range(count))}


def parquet(path: Path, columns: Mapping[str, Any], *, group: int = 7) -> Path:
    """A Parquet file in small row groups."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns)), path, row_group_size=group)
    return path


def jsonl(path: Path, objects: Sequence[Any]) -> Path:
    """JSON lines; compressed by the path's ending."""
    raw = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects).encode("utf-8", "surrogatepass")
    path.write_bytes(packed(raw, path.suffix))
    return path


def packed(raw: bytes, ending: str) -> bytes:
    """Bytes compressed as an ending says."""
    if ending == ".gz":
        return gzip.compress(raw, mtime=0)
    return bytes(pa.compress(raw, codec="zstd", asbytes=True)) if ending == ".zst" else raw


def result(out: Path) -> dict[Any, NDArray[Any]]:
    """Id -> vector as stored, of every shard; no id may stand twice."""
    found: dict[Any, NDArray[Any]] = {}
    for path in sorted((out / "shards").glob("*.parquet")):
        table = pq.read_table(path)
        vectors = table.column("vector").combine_chunks()
        flat = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(table), vectors.type.list_size)
        for one, row in zip(table.column("id").to_pylist(), flat, strict=True):
            assert one not in found, one
            found[one] = row
    return found


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a job's folder, less its lock and what a killed run left half."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.suffix != ".part"]
    return {str(path.relative_to(out)): path.read_bytes() for path in files if path.name != ".lock"}


def rejects(out: Path) -> list[tuple[str, int, str | None, str]]:
    """The rejected rows: file, row, id, reason."""
    lines = (out / "rejects.jsonl").read_text("utf-8").splitlines()
    return [tuple(json.loads(line).values()) for line in lines]
