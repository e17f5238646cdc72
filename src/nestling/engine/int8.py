"""Matrices as int8 in groups of 32 with a float32 scale a group: the form that the graph multiplies.

A large model's are expanded once, into a file under the cache folder, and mapped into memory at every later start; a
small model's stay in memory. The plugin makes a copy of its own in its own order when it first computes, after which
the mapped pages can go. The file can be deleted at any time.
"""

import errno
import hashlib
import mmap
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nestling import files, ggml
from nestling.engine.weights import tensor
from nestling.gguf_io import GGUFFile
from nestling.quants import QuantType
from nestling.vectors import Floats

GROUP = 32
Q8_0_BLOCK_BYTES = 34
FORMAT = b"int8 in groups of 32, scales float32, pages of 4096: 1"
PAGE = 4096
MAPPED_FROM = 1 << 28
"""Bytes of matrices from which on a file is kept: expanding so many takes longer than a second."""
SPARE_BYTES = 1 << 30
"""Room that must be left on the disk for others, or nothing is kept there."""

Values = NDArray[np.int8]
Scales = NDArray[np.float16]
Make = Callable[[], tuple[Values, Scales]]


class Store(Protocol):
    """Where expanded matrices lie; asked for them in the same order at every start."""

    def matrix(self, rows: int, width: int, make: Make) -> tuple[Values, Floats]:
        """A matrix, made if it is not there: values (rows, width / 32, 32), scales (rows, width / 32, 1)."""
        ...

    def release(self) -> None:
        """Let go of the memory of what was read; it is read again from the disk if it is wanted."""
        ...


class InMemory:
    """Matrices that are made at every start."""

    def matrix(self, _rows: int, _width: int, make: Make) -> tuple[Values, Floats]:
        """The matrix, made now."""
        values, scales = make()
        return np.ascontiguousarray(values), scales.astype(np.float32)

    def release(self) -> None:
        """Nothing can be let go."""


class Mapped:
    """Matrices in a mapped file, one after another, each at the start of a page."""

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self._bytes = np.memmap(path, np.uint8, "r+" if fresh else "c")  # "c": the plugin wants to be able to write
        self._fresh, self.size = fresh, 0

    def matrix(self, rows: int, width: int, make: Make) -> tuple[Values, Floats]:
        """The matrix as views of the file, written first when the file is new."""
        values = self._next((rows, width // GROUP, GROUP), np.dtype(np.int8))
        scales = self._next((rows, width // GROUP, 1), np.dtype(np.float32))
        if self._fresh:
            values[...], scales[...] = make()
        return values, scales

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
    path = files.cache_folder() / "expanded" / f"{file.path.stem}-{_key([file, *adapters])}.int8"
    with ExitStack() as stack:
        try:
            stack.enter_context(files.lock(path.with_suffix(".lock")))
            kept: Store = Mapped(path, fresh=False) if path.exists() else stack.enter_context(_written(path, most))
        except OSError as error:
            reason = f"{path}: {error.strerror}; weights are expanded at every start and kept in memory"
            warnings.warn(reason, RuntimeWarning, stacklevel=2)
            kept = InMemory()
        yield kept
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
    """No less than the expanded matrices take, each with its pages' rests; q, k and v may have their lanes thrice."""
    shapes = [info.shape for info in file.tensors.values() if len(info.shape) > 1 and info.name.startswith("blk.")]
    values = sum(rows * width + lanes * (width + 3 * rows) for rows, width in shapes)
    return values * (GROUP + 4) // GROUP + 4 * PAGE * len(shapes)


def _key(sources: Sequence[GGUFFile]) -> str:
    """What a kept file is good for: these headers, sizes and times of change, in this format."""
    digest = hashlib.blake2b(FORMAT, digest_size=12)
    for file in sources:
        start = min(info.offset for info in file.tensors.values())
        stat = file.path.stat()
        digest.update(file.data[:start].tobytes() + f"{stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()


def groups(file: GGUFFile, name: str, *, threads: int) -> tuple[Values, Scales]:
    """A matrix as int8 in groups of 32: -> values (R, G, 32) int8, scales (R, G, 1) float16; Q8_0 is taken as it is."""
    info, raw = file.tensors[name], file.raw(name)
    if info.kind is QuantType.Q8_0:
        return _split_blocks(raw.reshape(len(raw), -1, Q8_0_BLOCK_BYTES))
    return quantized(tensor(file, name, threads=threads), threads=threads)


def quantized(rows: Floats, *, threads: int) -> tuple[Values, Scales]:
    """Rows in float32 rounded to int8 groups by ggml's Q8_0."""
    blocks = ggml.quantize_rows(rows, QuantType.Q8_0, threads=threads)
    return _split_blocks(blocks.reshape(len(rows), -1, Q8_0_BLOCK_BYTES))


def _split_blocks(blocks: NDArray[np.uint8]) -> tuple[Values, Scales]:
    return blocks[..., 2:].view(np.int8), blocks[..., :2].copy().view(np.float16)
