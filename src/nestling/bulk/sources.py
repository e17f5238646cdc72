"""Which files a source means, and what tells one from another. Knows nothing of what is in them.

A source is a file, a folder or a pattern, on this machine or wherever fsspec reaches. A file is named by its path
below the source, so that a corpus that moves as a whole is still the same. Its fingerprint is its size and the
SHA-256 of its first and last 64 KiB: of a Parquet file that is the footer with everything's place and statistics; a
change in the middle of a text file that keeps its size is not seen.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import fsspec

from nestling.errors import UsageError

EDGE_BYTES = 1 << 16
KINDS = {
    ".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv",
}  # fmt: skip
CODECS = {".gz": "gzip", ".zst": "zstd"}
"""Endings of compressed text files, and pyarrow's word for each."""
READABLE = f"{', '.join(KINDS)}, the text kinds also with {' or '.join(CODECS)}"


@dataclass(frozen=True, slots=True)
class Found:
    """A file of a source: `name` below the source, `url` with its protocol, size in bytes."""

    name: str
    url: str
    size: int

    @property
    def kind(self) -> str:
        """`parquet`, `jsonl` or `csv`."""
        return KINDS[_ending(self.name)]

    @property
    def codec(self) -> str | None:
        """What it is compressed with, if it is a compressed text file."""
        return CODECS.get(PurePosixPath(self.name).suffix)

    def open(self) -> BinaryIO:
        """Its bytes, as they lie."""
        file_system, path = fsspec.core.url_to_fs(self.url)
        return cast("BinaryIO", file_system.open(path, "rb"))

    def fingerprint(self) -> str:
        """The SHA-256 of its first and last bytes, in hex."""
        digest = hashlib.sha256()
        with self.open() as stream:
            digest.update(stream.read(EDGE_BYTES))
            stream.seek(max(0, self.size - EDGE_BYTES))
            digest.update(stream.read())
        return digest.hexdigest()


def expand(sources: Sequence[str]) -> list[Found]:
    """The files of all sources, each source's sorted by name; no file at all is a UsageError."""
    found = [file for source in sources for file in _expand_one(source)]
    if not found:
        raise UsageError("source: no file is named", param="source")
    if twice := len(found) - len({file.url for file in found}):
        raise UsageError(f"source: {twice} files are named twice", param="source")
    names = [file.name for file in found]
    if same := next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None:
        raise UsageError(f"source: two files are called {same}; name the folder above both", param="source")
    return found


def _expand_one(source: str) -> list[Found]:
    try:
        file_system, root = fsspec.core.url_to_fs(source)
    except (ValueError, ImportError, OSError) as error:
        raise UsageError(f"source={source!r}: {error}", param="source") from None
    if file_system.isfile(root):
        paths, base = [root], root.rpartition("/")[0]
        if _ending(root) not in KINDS:
            raise UsageError(f"source={source!r}: its name should end in {READABLE}", param="source")
    elif file_system.isdir(root):
        paths, base = [path for path in file_system.find(root) if _wanted(path, root)], root.rstrip("/")
    else:
        base = root.partition("*")[0].partition("?")[0].partition("[")[0].rpartition("/")[0]
        paths = [path for path in file_system.glob(root) if _wanted(path, base) and file_system.isfile(path)]
    if not paths:
        raise UsageError(f"source={source!r}: no such file, nor a folder or pattern of {READABLE}", param="source")
    return [_found(file_system, path, base) for path in sorted(paths)]


def _found(file_system: Any, path: str, base: str) -> Found:  # noqa: ANN401 - fsspec has no types
    name = path[len(base) :].lstrip("/") if path.startswith(base) else path
    return Found(name, file_system.unstrip_protocol(path), int(file_system.size(path)))


def _wanted(path: str, base: str) -> bool:
    parts = PurePosixPath(path[len(base) :]).parts
    return _ending(path) in KINDS and not any(part.startswith((".", "_")) for part in parts)


def _ending(path: str) -> str:
    pure = PurePosixPath(path)
    ending = PurePosixPath(pure.stem).suffix if pure.suffix in CODECS else pure.suffix
    return ending if pure.suffix not in CODECS or KINDS.get(ending) != "parquet" else ""


def apart(files: Sequence[Found], out: Path) -> list[Found]:
    """The files that do not lie in the result's own folder, which may be in the source's; none left is a UsageError."""
    inside = f"file://{out.resolve()}/"
    left = [file for file in files if not file.url.startswith(inside)]
    if not left:
        raise UsageError(f"source: all of it lies in {out}, where the result goes", param="source")
    return left
