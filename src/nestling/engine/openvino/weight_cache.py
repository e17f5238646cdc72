"""Dequantized weights: a large model's in a file of the weight cache (`weight_files`), a small one's in memory.

The file is written once and mmapped at every later start. The plugin makes its own reordered copy on its first run,
after which the mapped pages can be dropped. The file can be deleted at any time.
"""

import errno
import mmap
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nestling._util import files
from nestling.engine.openvino import weight_files
from nestling.engine.openvino.weight_formats.base import Arrays, Space, empty
from nestling.errors import UsageError
from nestling.formats.gguf import GGUFFile

FORMAT = b"pages of 4096: 3; "
PAGE = 4096
MAPPED_FROM = 1 << 28
"""Bytes of matrices from which a file is cached: dequantizing so many takes more than a second."""
SPARE_BYTES = 1 << 30
"""Free space that must remain on the disk; with less, nothing is cached."""
IN_MEMORY = "weights are expanded at every start and kept in memory"


Fill = Callable[[Arrays], None]


class Store(Protocol):
    """Holds dequantized matrices, which must be requested in the same order at every start."""

    def arrays(self, spaces: Sequence[Space], fill: Fill) -> Arrays:
        """The arrays of a matrix; `fill` is called if they are new."""
        ...

    def release(self) -> None:
        """Drop the resident pages of the matrices; they fault back in on access."""
        ...


class InMemory:
    """Matrices in memory, dequantized at every start."""

    def arrays(self, spaces: Sequence[Space], fill: Fill) -> Arrays:
        """New arrays, filled."""
        made = empty(spaces)
        fill(made)
        return made

    def release(self) -> None:
        """Nothing can be dropped."""


class Mapped:
    """Matrices in an mmapped file, each array aligned to a page."""

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self.path = path
        self.record = path.with_name(path.name.removesuffix(".part")).with_suffix(weight_files.RECORD)
        self._bytes = np.memmap(path, np.uint8, "r+" if fresh else "c")  # "c": the plugin wants to be able to write
        self._fresh, self.size = fresh, 0

    def arrays(self, spaces: Sequence[Space], fill: Fill) -> Arrays:
        """The arrays as views of the file, filled first when the file is new."""
        kept = tuple(self._next(space) for space in spaces)
        if self._fresh:
            fill(kept)
        return kept

    def release(self) -> None:
        """Drop the resident pages."""
        release(self._bytes)

    def flush(self) -> None:
        """Write what is in memory to the file."""
        self._bytes.flush()

    def _next(self, space: Space) -> NDArray[Any]:
        start, stop = self.size, self.size + space.size_bytes
        self.size = in_pages(stop)
        return self._bytes[start:stop].view(space.kind).reshape(space.shape)


def in_pages(size: int) -> int:
    """Bytes, rounded up to whole pages."""
    return -(-size // PAGE) * PAGE


@contextmanager
def store(files_used: Sequence[GGUFFile], *, layout: bytes, most: int) -> Iterator[Store]:
    """The store of a model's matrices; a new cache file is kept only if the block succeeds.

    `files_used`: the model's own first. `layout` tells formats apart, `most` is an upper bound of their bytes. When the
    cache neither holds the matrices nor can be written, they stay in memory, with a RuntimeWarning.
    """
    file, limit = files_used[0], weight_files.limit_bytes()
    if most < MAPPED_FROM:
        yield InMemory()
        return
    with ExitStack() as stack:
        try:
            found: Store = stack.enter_context(_in_cache(files_used, layout, most, limit))
        except (OSError, UsageError) as error:
            where = getattr(error, "filename", None) or file.path
            reason = f"{where}: {getattr(error, 'strerror', None) or error}; {IN_MEMORY}"
            warnings.warn(reason, RuntimeWarning, stacklevel=2)
            found = InMemory()
        yield found
        release(file.data)


@contextmanager
def _in_cache(sources: Sequence[GGUFFile], layout: bytes, most: int, limit: int) -> Iterator[Mapped]:
    """The mmapped cache file, created when it is missing; an existing one needs no write permission."""
    stamps = weight_files.stamps_of((file.path, file.data) for file in sources)
    path = weight_files.place(stamps, FORMAT + layout)
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
