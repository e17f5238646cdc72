"""The weight cache's folder: which file holds whose weights, what is stale, what is evicted.

    <key>.int8    expanded weights; the key is a hash of the bytes of all files that they were made from
    <key>.npy     the reference's hidden states for one text (`self_check`)
    <key>.json    which models use them, and the stamp and hash of each of their files

Hashing a model takes a second or two, so a file's hash is remembered with its stamp (`_util.hashes`). Files with
different bytes never share weights; copies and renamed files do. Does not know the formats of the weights.
"""

import errno
import hashlib
import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestling._util import files
from nestling._util.cpu import usable_threads
from nestling._util.hashes import keeps_times, stamp
from nestling.errors import NestlingError, UsageError

SUFFIX, RECORD = ".int8", ".npy"
LIMIT_VARIABLE = "NESTLING_WEIGHT_CACHE_GB"
DEFAULT_LIMIT_GB = 20.0
GB = 10**9
KEY_CHARACTERS = 32
_PIECE_BYTES = 1 << 26
Stamps = dict[str, list[str]]
"""The files that a model consists of: absolute path -> (stamp, hash of the bytes)."""


@dataclass(frozen=True)
class Expansion:
    """One file of expanded weights; `models` are the model files that use it, each with the files it consists of."""

    path: Path
    models: dict[str, Stamps]

    @property
    def size_bytes(self) -> int:
        """Bytes on the disk; 0 for one that has just been evicted."""
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def last_used(self) -> float:
        """When an engine last loaded it, in seconds since the epoch."""
        return self.path.stat().st_atime if self.path.exists() else 0.0

    @cached_property
    def is_stale(self) -> bool:
        """True when every model that it was made from is gone or has changed."""
        return not any(map(_is_current, self.models.values()))

    def use(self, model: str, stamps: Stamps) -> None:
        """Record that a model uses it now; a folder that cannot be written is ignored."""
        with suppress(OSError, NestlingError):
            if self.models.get(model) != stamps:
                self._write(self.models | {model: stamps})
            os.utime(self.path, ns=(time.time_ns(), self.path.stat().st_mtime_ns))

    def leave(self, model: str) -> bool:
        """Record that a model no longer uses it; when no other does, delete it and return True."""
        left = {name: stamps for name, stamps in self.models.items() if name != model and _is_current(stamps)}
        if left:
            self._write(left)
            return False
        self.remove()
        return True

    def remove(self) -> None:
        """Delete it. An engine that has mapped it keeps its mapping."""
        for end in (SUFFIX, RECORD, ".json", ".lock"):
            self.path.with_suffix(end).unlink(missing_ok=True)

    def _write(self, models: dict[str, Stamps]) -> None:
        with files.atomic_write(self.path.with_suffix(".json")) as out:
            out.write(json.dumps({"models": models}, indent=1).encode())


def folder() -> Path:
    """The cache's folder."""
    return files.cache_folder() / "expanded"


def limit_bytes() -> int:
    """Most bytes of all files together: `$NESTLING_WEIGHT_CACHE_GB` (0 keeps none), 20 GB by default."""
    text = os.environ.get(LIMIT_VARIABLE) or str(DEFAULT_LIMIT_GB)
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise UsageError(f"{LIMIT_VARIABLE}={text!r}: expected a number of gigabytes, such as 20")
    return int(found * GB)


def expansions() -> list[Expansion]:
    """All complete files of dequantized weights, the least recently used first."""
    found = [Expansion(path, _models(path)) for path in folder().glob(f"*{SUFFIX}")]
    return sorted(found, key=lambda one: (one.last_used, one.path))


def stamps_of(sources: Iterable[tuple[Path, NDArray[np.uint8]]]) -> Stamps:
    """The stamp and the hash of each of a model's files; a hash is reused while the stamp is the same."""
    known = {
        (path, then): sha256
        for one in expansions()
        for stamps in one.models.values()
        for path, (then, sha256) in stamps.items()
    }
    found: Stamps = {}
    for path, data in sources:
        name, now = str(path.absolute()), stamp(path)
        remembered = known.get((name, now)) if keeps_times(path) else None
        found[name] = [now, remembered or content_hash(data)]
    return found


def place(stamps: Stamps, layout: bytes) -> Path:
    """Path of the weights of these files in this layout, whether it exists or not."""
    key = hashlib.sha256(layout)
    for _, sha256 in stamps.values():
        key.update(sha256.encode())
    return folder() / f"{key.hexdigest()[:KEY_CHARACTERS]}{SUFFIX}"


def note_use(path: Path, stamps: Stamps) -> None:
    """Record that a model uses the weights at `path`, and release those that it used before its files changed.

    `stamps`: the model's own file first. A folder that cannot be written is ignored.
    """
    model = next(iter(stamps))
    Expansion(path, _models(path)).use(model, stamps)
    with suppress(OSError, NestlingError):
        for one in expansions():
            if one.path != path and model in one.models and not _is_current(one.models[model]):
                one.leave(model)


def make_room(size: int, limit: int) -> None:
    """Evict until `size` more bytes fit below the limit: stale files first, then the least recently used.

    OSError when they can never fit.
    """
    if size > limit:
        raise OSError(errno.ENOSPC, f"{size / GB:.1f} GB are more than {LIMIT_VARIABLE} allows ({limit / GB:g} GB)")
    found = expansions()
    total = sum(one.size_bytes for one in found)
    for one in sorted(found, key=lambda one: not one.is_stale):
        if total + size > limit:
            total -= one.size_bytes
            one.remove()


def remove_of(models: Iterable[Path]) -> list[tuple[Path, int]]:
    """Delete what only these model files use: -> each deleted file and its size in bytes."""
    gone = []
    for model in (str(path.absolute()) for path in models):
        for one in expansions():
            size = one.size_bytes
            if model in one.models and one.leave(model):
                gone.append((one.path, size))
    return gone


def content_hash(data: NDArray[np.uint8]) -> str:
    """A hash of all bytes, in hex: the SHA-256 of the SHA-256s of 64 MiB pieces, made on all usable threads."""
    pieces = [data[start : start + _PIECE_BYTES] for start in range(0, len(data), _PIECE_BYTES)]
    with ThreadPoolExecutor(usable_threads()) as pool:
        return hashlib.sha256(b"".join(pool.map(_digest, pieces))).hexdigest()


def _digest(piece: NDArray[np.uint8]) -> bytes:
    return hashlib.sha256(piece.data).digest()


def _is_current(stamps: Stamps) -> bool:
    """True when every file is there and has not changed."""
    try:
        return all(stamp(Path(path)) == then for path, (then, _) in stamps.items())
    except OSError:
        return False


def _models(path: Path) -> dict[str, Stamps]:
    """The JSON next to a file of dequantized weights; empty if it is missing or damaged."""
    try:
        raw: Any = json.loads(path.with_suffix(".json").read_bytes())["models"]
        return {str(model): _sound(stamps) for model, stamps in raw.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _sound(stamps: Any) -> Stamps:  # noqa: ANN401 - JSON
    return {str(path): [str(then), str(sha256)] for path, (then, sha256) in stamps.items()}
