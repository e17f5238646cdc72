"""Which files a source means, and what tells one from another. Knows nothing of what is in them.

A source is a file, a folder or a pattern, on this machine or wherever fsspec reaches. A file is named by its path
below the source, so that a corpus that moves as a whole is still the same. Its fingerprint is its size and the
SHA-256 of its first and last 64 KiB: of a Parquet file that is the footer with everything's place and statistics; a
change in the middle of a text file that keeps its size is not seen. All image files of a source are one `Found`, with
them as its parts.
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
"""What all image files of a source are called together; no other file has a name without an ending."""
CODECS = {".gz": "gzip", ".zst": "zstd"}
"""Endings of compressed text files, and pyarrow's word for each."""
LOCAL = "file://"
JOB = "job.json"
SHOWN = 5
"""Files that are left out and named."""
READABLE = f"{', '.join(KINDS)}, the text kinds also with {' or '.join(CODECS)}; or {', '.join(IMAGES)}"
BESIDE_TABLES = "with an image next to tables (give them as a separate source, or a column of their paths)"


@dataclass(frozen=True, slots=True)
class Found:
    """A file of a source: `name` below the source, `url` with its protocol, size in bytes; why it cannot be read.

    Of all image files together, `parts` are they, and there is no `url`.
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
        """What it is compressed with, if it is a compressed text file."""
        return CODECS.get(PurePosixPath(self.name).suffix.lower())

    def open(self) -> BinaryIO:
        """Its bytes, as they lie."""
        if self.url.startswith(LOCAL):  # whatever else its name holds
            return Path(self.url.removeprefix(LOCAL)).open("rb")
        file_system, path = fsspec.core.url_to_fs(self.url)
        return cast("BinaryIO", file_system.open(path, "rb"))

    def beside(self, path: str) -> "Found":
        """The file of a path in this table: relative to the table's folder."""
        if self.url.startswith(LOCAL):
            return Found(path, f"{LOCAL}{Path(self.url.removeprefix(LOCAL)).parent / path}", 0)
        return Found(path, path if path.startswith("/") else f"{self.url.rpartition('/')[0]}/{path}", 0)

    def fingerprint(self) -> str:
        """The SHA-256 of its first and last bytes, in hex; of image files, of their names and such hashes."""
        digest = hashlib.sha256()
        for part in self.parts:
            with suppress(OSError):  # what cannot be read is its row's fault
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
    """The files of a source, each source's sorted by name; and the names of those left out, by the reason."""

    files: list[Found]
    left_out: dict[str, list[str]]

    def together(self) -> "Source":
        """The same with all image files as one, the last."""
        tables = [file for file in self.files if _ending(file.name) in KINDS]
        images = tuple(file for file in self.files if _ending(file.name) not in KINDS)
        one = Found(IMAGE_FILES, "", sum(file.size for file in images), parts=images)
        return Source([*tables, one] if images else tables, self.left_out)

    def said(self, *, but: str = "") -> tuple[str, ...]:
        """What was left out, a line for each reason; none for the reason `but`."""
        return tuple(
            f"{len(names)} {'files' if len(names) > 1 else 'file'} {reason}: {', '.join(names[:SHOWN])}"
            + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
            for reason, names in self.left_out.items()
            if reason != but
        )


def find(sources: Sequence[str]) -> Source:
    """The files of all sources; no file at all, or one twice, is a UsageError."""
    source = Source([], {})
    for one in sources:
        _find_one(one, source)
    found = source.files
    if not found:
        raise UsageError("source: no file is named", param="source")
    if twice := len(found) - len({file.url for file in found}):
        raise UsageError(f"source: {twice} files are named twice", param="source")
    names = [file.name for file in found]
    if same := next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None:
        raise UsageError(f"source: two files are called {same}; name the folder above both", param="source")
    return source.together()


def expand(sources: Sequence[str]) -> list[Found]:
    """The files alone of what `find` finds."""
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
    """The file system and the path in it; what is there on this machine is that, whatever its name holds."""
    if Path(source).exists():
        return fsspec.filesystem("file"), str(Path(source).absolute())
    try:
        file_system, root = fsspec.core.url_to_fs(source)
    except (ValueError, ImportError, OSError) as error:
        raise UsageError(f"source={source!r}: {error}", param="source") from None
    return file_system, root


def _reason(file_system: Any, path: str, base: str, results: dict[str, bool]) -> str:  # noqa: ANN401 - as above
    """Why a file of a folder is left out; empty when it is not."""
    parts = PurePosixPath(_below(path, base)).parts
    if any(part.startswith((".", "_")) for part in parts):
        return "whose name begins with . or _"
    folders = [base, *("/".join([base, *parts[:count]]) for count in range(1, len(parts)))]
    if any(_is_result(file_system, folder, results) for folder in folders):
        return "of an earlier job's result"
    return "" if _ending(path) in (*KINDS, *IMAGES) else "of no kind that is read"


def _is_result(file_system: Any, folder: str, known: dict[str, bool]) -> bool:  # noqa: ANN401 - as above
    """Whether a folder is a job's: it holds a job.json that we wrote."""
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
    """A name that can be written down: bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _ending(path: str) -> str:
    """A name's ending in small letters, without that of a codec; empty for what is no text file and compressed."""
    pure = PurePosixPath(path.lower())
    ending = PurePosixPath(pure.stem).suffix if pure.suffix in CODECS else pure.suffix
    return ending if pure.suffix not in CODECS or KINDS.get(ending) in ("jsonl", "csv") else ""


def apart(files: Sequence[Found], out: Path) -> list[Found]:
    """The files that do not lie in the result's own folder, which may be in the source's; none left is a UsageError."""
    inside = f"{LOCAL}{out.resolve()}/"
    left = [file for file in files if file.parts or not file.url.startswith(inside)]
    if not left:
        raise UsageError(f"source: all of it lies in {out}, where the result goes", param="source")
    return left
