"""The files of a source, with their names and fingerprints. Does not know their formats.

A source is a file, a folder or a pattern, on this machine or anywhere that fsspec reaches. A file is named by its path
below the source, so that a corpus that moves as a whole is still the same. Its fingerprint is its size and the SHA-256
of its first and last 64 KiB, which in a Parquet file hold the footer with all offsets and statistics; in a text file, a
change in the middle that keeps the size goes unnoticed. All image files of a source are the parts of one `Found`.
"""

import hashlib
import json
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import fsspec

from nestling.errors import UsageError

EDGE_BYTES = 1 << 16
KINDS = {
    ".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv",
}  # fmt: skip
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
IMAGE_FILES = "images"
"""The name of all image files of a source together; every other file has a suffix."""
CODECS = {".gz": "gzip", ".zst": "zstd"}
"""Suffixes of compressed text files, and pyarrow's codec for each."""
LOCAL = "file://"
JOB = "job.json"
SHOWN = 5
"""Most skipped files that are named for each reason."""
READABLE = f"{', '.join(KINDS)}, the text kinds also with {' or '.join(CODECS)}; or {', '.join(IMAGES)}"
BESIDE_TABLES = "with an image next to tables (give them as a separate source, or a column of their paths)"


@dataclass(frozen=True, slots=True)
class Found:
    """A file of a source: `name` below the source, `url` with its protocol, size in bytes; why it cannot be read.

    For all image files together, `parts` lists them and `url` is empty.
    """

    name: str
    url: str
    size: int
    fault: str = ""
    parts: tuple["Found", ...] = ()

    @property
    def kind(self) -> str:
        """`parquet`, `jsonl`, `csv` or `images`."""
        return IMAGE_FILES if self.parts else KINDS[_ending(self.name)]

    @property
    def codec(self) -> str | None:
        """The codec of a compressed text file, else None."""
        return CODECS.get(PurePosixPath(self.name).suffix.lower())

    def open(self) -> BinaryIO:
        """Its raw bytes, still compressed."""
        if self.url.startswith(LOCAL):  # not through fsspec, which reads its name as a URL
            return Path(self.url.removeprefix(LOCAL)).open("rb")
        file_system, path = fsspec.core.url_to_fs(self.url)
        return cast("BinaryIO", file_system.open(path, "rb"))

    def beside(self, path: str) -> "Found":
        """The file that a path in this table names, relative to the table's folder."""
        if self.url.startswith(LOCAL):
            return Found(path, f"{LOCAL}{Path(self.url.removeprefix(LOCAL)).parent / path}", 0)
        return Found(path, path if path.startswith("/") else f"{self.url.rpartition('/')[0]}/{path}", 0)

    def fingerprint(self) -> str:
        """The SHA-256 of its first and last bytes, in hex; for image files, that of their names and fingerprints."""
        digest = hashlib.sha256()
        for part in self.parts:
            with suppress(OSError):  # an unreadable image is rejected as a row
                digest.update(f"{part.name}\0{part.size}\0{part.fault or part.fingerprint()}\n".encode())
        if self.parts:
            return digest.hexdigest()
        with self.open() as stream:
            digest.update(stream.read(EDGE_BYTES))
            stream.seek(max(0, self.size - EDGE_BYTES))
            digest.update(stream.read())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Source:
    """The files of all sources, each source's sorted by name; and the names of skipped files, by reason."""

    files: list[Found]
    left_out: dict[str, list[str]]

    def together(self) -> "Source":
        """The same, with all image files as one last `Found`."""
        tables = [file for file in self.files if _ending(file.name) in KINDS]
        images = tuple(file for file in self.files if _ending(file.name) not in KINDS)
        one = Found(IMAGE_FILES, "", sum(file.size for file in images), parts=images)
        return Source([*tables, one] if images else tables, self.left_out)

    def said(self, *, but: str = "") -> tuple[str, ...]:
        """One line for each reason why files were skipped, except the reason `but`."""
        return tuple(
            f"{len(names)} {'files' if len(names) > 1 else 'file'} {reason}: {', '.join(names[:SHOWN])}"
            + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
            for reason, names in self.left_out.items()
            if reason != but
        )


def find(sources: Sequence[str]) -> Source:
    """The files of all sources; UsageError for no file at all and for one named twice."""
    source = Source([], {})
    for one in sources:
        _find_one(one, source)
    found = source.files
    if not found:
        raise UsageError("source: expected at least one file", param="source")
    if twice := len(found) - len({file.url for file in found}):
        raise UsageError(f"source: {twice} files are given twice", param="source")
    names = [file.name for file in found]
    if same := next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None:
        raise UsageError(f"source: two files are named {same}; give the folder above both", param="source")
    return source.together()


def expand(sources: Sequence[str]) -> list[Found]:
    """Only the files of `find`."""
    return find(sources).files


def _find_one(source: str, found: Source) -> None:
    file_system, root = _located(source)
    if file_system.isfile(root):
        if _ending(root) not in (*KINDS, *IMAGES):
            raise UsageError(f"source={source!r}: its name should end in {READABLE}", param="source")
        found.files.append(_found(file_system, root, root.rpartition("/")[0]))
        return
    if file_system.isdir(root):
        paths, base = file_system.find(root), root.rstrip("/")
    else:
        base = root.partition("*")[0].partition("?")[0].partition("[")[0].rpartition("/")[0]
        paths = [path for path in file_system.glob(root) if not file_system.isdir(path)]
    results: dict[str, bool] = {}
    reasons = {path: _reason(file_system, path, base, results) for path in sorted(paths)}
    tables = any(not reason and _ending(path) in KINDS for path, reason in reasons.items())
    taken = 0
    for path, why in reasons.items():
        if reason := why or (BESIDE_TABLES if tables and _ending(path) in IMAGES else ""):
            found.left_out.setdefault(reason, []).append(_shown(_below(path, base)))
        else:
            found.files.append(_found(file_system, path, base))
            taken += 1
    if not taken:
        kinds = READABLE + "".join(f"; {line}" for line in found.said())
        raise UsageError(f"source={source!r}: no such file, nor a folder or pattern of {kinds}", param="source")


def _located(source: str) -> tuple[Any, str]:
    """The file system and the path in it; an existing local path is local, even if it looks like a URL."""
    if Path(source).exists():
        return fsspec.filesystem("file"), str(Path(source).absolute())
    try:
        file_system, root = fsspec.core.url_to_fs(source)
    except (ValueError, ImportError, OSError) as error:
        raise UsageError(f"source={source!r}: {error}", param="source") from None
    return file_system, root


def _reason(file_system: Any, path: str, base: str, results: dict[str, bool]) -> str:  # noqa: ANN401 - as above
    """Why a file of a folder is skipped; empty when it is not."""
    parts = PurePosixPath(_below(path, base)).parts
    if any(part.startswith((".", "_")) for part in parts):
        return "whose name begins with . or _"
    folders = [base, *("/".join([base, *parts[:count]]) for count in range(1, len(parts)))]
    if any(_is_result(file_system, folder, results) for folder in folders):
        return "of an earlier job's result"
    return "" if _ending(path) in (*KINDS, *IMAGES) else "of no kind that is read"


def _is_result(file_system: Any, folder: str, known: dict[str, bool]) -> bool:  # noqa: ANN401 - as above
    """Whether a folder is a job's result: it holds a job.json of ours."""
    if folder not in known:
        known[folder] = False
        with suppress(OSError, ValueError, AttributeError):
            if file_system.exists(f"{folder}/{JOB}"):
                made_by = json.loads(file_system.cat_file(f"{folder}/{JOB}"))["made_by"]
                known[folder] = str(made_by).startswith("nestling ")
    return known[folder]


def _found(file_system: Any, path: str, base: str) -> Found:  # noqa: ANN401 - fsspec has no types
    name, url, fault, size = _below(path, base), file_system.unstrip_protocol(path), "", 0
    try:
        if url.startswith(LOCAL) and not stat.S_ISREG(Path(path).stat().st_mode):
            fault = "no regular file; name what it leads to" if Path(path).is_dir() else "no regular file"
        else:
            size = int(file_system.size(path))
    except OSError as error:
        fault = f"cannot be read ({error.strerror or error})"
    if _shown(name) != name:
        fault = "its name is not UTF-8"
    return Found(_shown(name), url, size, fault)


def _below(path: str, base: str) -> str:
    return path[len(base) :].lstrip("/") if path.startswith(base) else path


def _shown(name: str) -> str:
    """A printable name: bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _ending(path: str) -> str:
    """A name's suffix in lower case, without a codec's; empty for compressed files that are not text."""
    pure = PurePosixPath(path.lower())
    ending = PurePosixPath(pure.stem).suffix if pure.suffix in CODECS else pure.suffix
    return ending if pure.suffix not in CODECS or KINDS.get(ending) in ("jsonl", "csv") else ""


def apart(files: Sequence[Found], out: Path) -> list[Found]:
    """The files outside the result's folder, which may be inside the source; UsageError if none is left."""
    inside = f"{LOCAL}{out.resolve()}/"
    left = [file for file in files if file.parts or not file.url.startswith(inside)]
    if not left:
        raise UsageError(f"source: all of it lies in {out}, where the result goes", param="source")
    return left
