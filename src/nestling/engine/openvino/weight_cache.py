"""Where expanded matrices lie: a large model's in a file under the cache folder, a small one's in memory.

The file is written once and mapped into memory at every later start. The plugin makes a copy of its own in its own
order when it first computes, after which the mapped pages can go. The file can be deleted at any time.
"""

import errno
import hashlib
import mmap
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from glob import escape
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nestling._util import files
from nestling.engine.openvino.int8_groups import FINE, Fill, Groups, group_of, matrices
from nestling.formats.gguf import GGUFFile

FORMAT = b"int8 in groups, scales float32, pages of 4096: 2"
PAGE = 4096
KEY_CHARACTERS = 24
MAPPED_FROM = 1 << 28
"""Bytes of matrices from which on a file is kept: expanding so many takes longer than a second."""
SPARE_BYTES = 1 << 30
"""Room that must be left on the disk for others, or nothing is kept there."""


class Store(Protocol):
    """Where expanded matrices lie; asked for them in the same order at every start."""

    def matrix(self, rows: int, width: int, group: int, fill: Fill) -> Groups:
        """A matrix, filled if it is not there."""
        ...

    def release(self) -> None:
        """Let go of the memory of what was read; it is read again from the disk if it is wanted."""
        ...


class InMemory:
    """Matrices that are made at every start."""

    def matrix(self, rows: int, width: int, group: int, fill: Fill) -> Groups:
        """The matrix, made now."""
        made = Groups.empty(rows, width, group)
        fill(made)
        return made

    def release(self) -> None:
        """Nothing can be let go."""


class Mapped:
    """Matrices in a mapped file, one after another, each at the start of a page."""

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self._bytes = np.memmap(path, np.uint8, "r+" if fresh else "c")  # "c": the plugin wants to be able to write
        self._fresh, self.size = fresh, 0

    def matrix(self, rows: int, width: int, group: int, fill: Fill) -> Groups:
        """The matrix as views of the file, written first when the file is new."""
        values = self._next((rows, width // group, group), np.dtype(np.int8))
        kept = Groups(values, self._next((*values.shape[:2], 1), np.dtype(np.float32)))
        if self._fresh:
            fill(kept)
        return kept

    def release(self) -> None:
        """Give the pages back to the system."""
        release(self._bytes)

    def flush(self) -> None:
        """See that what was written is in the file."""
        self._bytes.flush()

    def _next(self, shape: tuple[int, ...], kind: np.dtype[Any]) -> NDArray[Any]:
        start = self.size
        stop = start + prod(shape) * kind.itemsize
        self.size = -(-stop // PAGE) * PAGE
        return self._bytes[start:stop].view(kind).reshape(shape)


def kept(path: Path) -> list[Path]:
    """The files that keep the expanded matrices of a model file of this name; not one that is being written."""
    return sorted(_folder().glob(f"{escape(path.stem)}-{'?' * KEY_CHARACTERS}.int8")) if path.suffix == ".gguf" else []


def _folder() -> Path:
    return files.cache_folder() / "expanded"


@contextmanager
def store(file: GGUFFile, *, adapters: Sequence[GGUFFile] = (), lanes: int = 0) -> Iterator[Store]:
    """Where this file's matrices lie, or come to lie when the block ends well.

    With adapters, each matrix has so many lanes of them too. Where the disk does not take the file, which is a
    warning, the matrices stay in memory.
    """
    most = _most_bytes(file, lanes)
    if most < MAPPED_FROM:
        yield InMemory()
        return
    path = _folder() / f"{file.path.stem}-{_key([file, *adapters])}.int8"
    with ExitStack() as stack:
        try:
            stack.enter_context(files.lock(path.with_suffix(".lock"), what=str(path)))
            found: Store = Mapped(path, fresh=False) if path.exists() else stack.enter_context(_written(path, most))
        except OSError as error:
            reason = f"{path}: {error.strerror}; weights are expanded at every start and kept in memory"
            warnings.warn(reason, RuntimeWarning, stacklevel=2)
            found = InMemory()
        yield found
        release(file.data)


@contextmanager
def _written(path: Path, most: int) -> Iterator[Mapped]:
    """A new file, whose room is there before the first byte is written through its mapping."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(path.parent).free < most + SPARE_BYTES:
        raise OSError(errno.ENOSPC, f"less than {(most + SPARE_BYTES) / (1 << 30):.1f} GiB free")
    with files.atomic_write(path) as part:
        _reserve(part.fileno(), most)
        mapped = Mapped(Path(part.name), fresh=True)
        yield mapped
        mapped.flush()
        part.truncate(mapped.size)


def _reserve(descriptor: int, size: int) -> None:
    """Take the room now: without it, a full disk would end the process in the middle of a write to the mapping."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def release(mapped: NDArray[Any]) -> None:
    """Let the pages of a mapped file go; they are read again when they are wanted."""
    owner = mapped.base
    if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        owner.madvise(mmap.MADV_DONTNEED)


def _most_bytes(file: GGUFFile, lanes: int) -> int:
    """No less than the expanded matrices take, each with its pages' rests."""
    shapes = [info.shape for info in matrices(file)]
    values = sum((rows + lanes) * width for rows, width in shapes)
    return values * (FINE + 4) // FINE + 4 * PAGE * len(shapes)


def _key(sources: Sequence[GGUFFile]) -> str:
    """What a kept file is good for: these headers, sizes and times of change, in this format."""
    digest = hashlib.blake2b(FORMAT + bytes([group_of(sources[0])]), digest_size=KEY_CHARACTERS // 2)
    for file in sources:
        start = min(info.offset for info in file.tensors.values())
        stat = file.path.stat()
        digest.update(file.data[:start].tobytes() + f"{stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()
