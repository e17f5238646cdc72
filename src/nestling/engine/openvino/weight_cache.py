"""Dequantized weights: a large model's in a file of the weight cache (`weight_files`), a small one's in memory.

The file is written once and mapped at every later start. The plugin makes a reordered copy of its own when it first
computes, after which the mapped pages can be dropped. The file can be deleted at any time.
"""

import errno
import mmap
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nestling._util import files
from nestling.engine.openvino import weight_files
from nestling.engine.openvino.int8_groups import FINE, Fill, Groups, group_of, matrices
from nestling.errors import UsageError
from nestling.formats.gguf import GGUFFile

FORMAT = b"int8 in groups, scales float32, pages of 4096: 2"
PAGE = 4096
MAPPED_FROM = 1 << 28
"""Bytes of matrices from which a file is cached: dequantizing so many takes more than a second."""
SPARE_BYTES = 1 << 30
"""Free space that must remain on the disk; with less, nothing is cached."""
IN_MEMORY = "weights are expanded at every start and kept in memory"


class Store(Protocol):
    """Where dequantized matrices are held; asked for them in the same order at every start."""

    def matrix(self, rows: int, width: int, group: int, fill: Fill) -> Groups:
        """A matrix, filled if it is not there."""
        ...

    def release(self) -> None:
        """Drop the resident pages of what was read; they fault back in on access."""
        ...


class InMemory:
    """Matrices in memory, dequantized at every start."""

    def matrix(self, rows: int, width: int, group: int, fill: Fill) -> Groups:
        """The matrix, made now."""
        made = Groups.empty(rows, width, group)
        fill(made)
        return made

    def release(self) -> None:
        """Nothing can be dropped."""


class Mapped:
    """Matrices in an mmapped file, each aligned to a page."""

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
        """Drop the resident pages."""
        release(self._bytes)

    def flush(self) -> None:
        """Write what is in memory to the file."""
        self._bytes.flush()

    def _next(self, shape: tuple[int, ...], kind: np.dtype[Any]) -> NDArray[Any]:
        start = self.size
        stop = start + prod(shape) * kind.itemsize
        self.size = -(-stop // PAGE) * PAGE
        return self._bytes[start:stop].view(kind).reshape(shape)


@contextmanager
def store(file: GGUFFile, *, adapters: Sequence[GGUFFile] = (), lanes: int = 0) -> Iterator[Store]:
    """The store of this file's matrices; a new cache file is kept only if the block succeeds.

    `lanes`: LoRA lanes per matrix, with adapters. When the cache neither holds the matrices nor can be written, they
    stay in memory, with a RuntimeWarning.
    """
    most, limit = _most_bytes(file, lanes), weight_files.limit_bytes()
    if most < MAPPED_FROM:
        yield InMemory()
        return
    with ExitStack() as stack:
        try:
            found: Store = stack.enter_context(_in_cache([file, *adapters], most, limit))
        except (OSError, UsageError) as error:
            where = getattr(error, "filename", None) or file.path
            reason = f"{where}: {getattr(error, 'strerror', None) or error}; {IN_MEMORY}"
            warnings.warn(reason, RuntimeWarning, stacklevel=2)
            found = InMemory()
        yield found
        release(file.data)


@contextmanager
def _in_cache(sources: Sequence[GGUFFile], most: int, limit: int) -> Iterator[Mapped]:
    """The mmapped cache file, created when it is missing; an existing one needs no write permission."""
    layout = FORMAT + bytes([group_of(sources[0])])
    stamps = weight_files.stamps_of((file.path, file.data) for file in sources)
    path = weight_files.place(stamps, layout)
    with ExitStack() as stack:
        if not path.exists():
            stack.enter_context(files.lock(path.with_suffix(".lock"), what=f"expanded weights of {sources[0].path}"))
        if path.exists():
            yield Mapped(path, fresh=False)
        else:
            weight_files.make_room(most, limit)
            with _written(path, most) as mapped:
                yield mapped
        weight_files.note_use(path, stamps)


@contextmanager
def _written(path: Path, most: int) -> Iterator[Mapped]:
    """A new file, whose blocks are allocated before the first byte is written through its mapping."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(path.parent).free < most + SPARE_BYTES:
        raise OSError(errno.ENOSPC, f"less than {(most + SPARE_BYTES) / (1 << 30):.1f} GiB free")
    with files.atomic_write(path) as part:
        _reserve(part.fileno(), most)
        mapped = Mapped(path.with_name(f"{path.name}.part"), fresh=True)
        yield mapped
        mapped.flush()
        part.truncate(mapped.size)


def _reserve(descriptor: int, size: int) -> None:
    """Allocate the blocks now: a disk that fills up would end the process in a write to the mapping (SIGBUS)."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def release(mapped: NDArray[Any]) -> None:
    """Drop resident pages (MADV_DONTNEED); they fault back in on access."""
    owner = mapped.base
    if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        owner.madvise(mmap.MADV_DONTNEED)


def _most_bytes(file: GGUFFile, lanes: int) -> int:
    """An upper bound of what the expanded matrices take, each padded to whole pages."""
    shapes = [info.shape for info in matrices(file)]
    values = sum((rows + lanes) * width for rows, width in shapes)
    return values * (FINE + 4) // FINE + 4 * PAGE * len(shapes)
