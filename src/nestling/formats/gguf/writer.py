"""Write GGUF files (version 3, little-endian), deterministically and atomically.

Tensors are streamed piece by piece: `write_gguf` pulls the pieces, with `open_writer` the caller pushes them.
"""

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from nestling._util.files import atomic_write
from nestling.errors import BuildError
from nestling.formats.gguf.fields import Field, ValueKind
from nestling.formats.quant_types import QuantType

ALIGNMENT = 32
Piece = bytes | NDArray[Any]


@dataclass(frozen=True, slots=True)
class TensorHead:
    """A tensor's entry in the header: `shape` in numpy order (rows, width)."""

    name: str
    shape: tuple[int, ...]
    kind: QuantType

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor, without padding."""
        return self.kind.size_bytes(self.shape)


@dataclass(frozen=True, slots=True)
class TensorPlan(TensorHead):
    """A tensor to write, with a callable that yields its bytes in pieces."""

    pieces: Callable[[], Iterable[Piece]]


class GGUFWriter:
    """Takes the tensors' bytes in the order of the header, piece by piece; counts and hashes what it writes."""

    def __init__(self, path: Path, file: BinaryIO, tensors: Sequence[TensorHead]) -> None:
        self._path, self._file, self._hash = path, file, hashlib.sha256()
        self._heads = iter(tensors)
        self._head: TensorHead | None = None
        self._missing = self.size_bytes = 0

    def write(self, piece: Piece) -> None:
        """Append a piece of the current tensor; a completed tensor is padded."""
        if self._missing == 0:
            self._head = next(self._heads, None)
            assert self._head is not None, "a piece after the last tensor"
            self._missing = self._head.size_bytes
        view = np.ascontiguousarray(piece).data if isinstance(piece, np.ndarray) else memoryview(piece)
        assert view.nbytes <= self._missing, f"{self._head}: {view.nbytes - self._missing} bytes too many"
        self._put(view)
        self._missing -= view.nbytes
        if self._missing == 0:
            self._pad()

    def put_header(self, header: bytes) -> None:
        """Write the header, padded."""
        self._put(memoryview(header))
        self._pad()

    def finish(self) -> None:
        """Check that every tensor was written completely."""
        assert self._missing == 0, f"{self._head}: {self._missing} bytes are missing"
        assert next(self._heads, None) is None, "tensors are missing"

    @property
    def sha256(self) -> str:
        """The SHA-256 of the bytes written so far, in hex."""
        return self._hash.hexdigest()

    def _put(self, view: memoryview) -> None:
        try:
            self._file.write(view)
        except OSError as error:
            raise _unwritable(self._path, error) from error
        self._hash.update(view)
        self.size_bytes += view.nbytes

    def _pad(self) -> None:
        self._put(memoryview(b"\0" * (-self.size_bytes % ALIGNMENT)))


@contextmanager
def open_writer(path: Path, metadata: Mapping[str, Field], tensors: Sequence[TensorHead]) -> Iterator[GGUFWriter]:
    """Write a file atomically: the `with` block writes every tensor. A full disk is a BuildError."""
    try:
        with atomic_write(path) as file:
            writer = GGUFWriter(path, file, tensors)
            writer.put_header(_header(metadata, tensors))
            yield writer
            writer.finish()
    except OSError as error:
        raise _unwritable(path, error) from error


def write_gguf(path: Path, metadata: Mapping[str, Field], tensors: Sequence[TensorPlan]) -> str:
    """Write a file atomically; returns its SHA-256 in hex. A full disk is a BuildError."""
    with open_writer(path, metadata, tensors) as writer:
        for tensor in tensors:
            for piece in tensor.pieces():
                writer.write(piece)
    return writer.sha256


def file_size(metadata: Mapping[str, Field], tensors: Sequence[TensorHead]) -> int:
    """Bytes that the file will have."""
    return _padded(len(_header(metadata, tensors))) + sum(_padded(tensor.size_bytes) for tensor in tensors)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _unwritable(path: Path, error: OSError) -> BuildError:
    return BuildError(f"{path}: cannot be written: {error.strerror or error}")


def _header(metadata: Mapping[str, Field], tensors: Sequence[TensorHead]) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, field in metadata.items():
        parts += [_string(key), struct.pack("<I", field.kind), _value(field)]
    offset = 0
    for tensor in tensors:
        sizes = tuple(reversed(tensor.shape))
        parts.append(_string(tensor.name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes))
        parts.append(struct.pack("<IQ", tensor.kind.ggml_id, offset))
        offset += _padded(tensor.size_bytes)
    return b"".join(parts)


def _string(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _value(field: Field) -> bytes:
    if field.kind is ValueKind.STRING:
        return _string(field.value)
    if field.kind is not ValueKind.ARRAY:
        return np.asarray(field.value, field.kind.dtype).tobytes()
    assert field.item is not None
    head = struct.pack("<IQ", field.item, len(field.value))
    if field.item is ValueKind.STRING:
        return head + b"".join(map(_string, field.value))
    return head + np.asarray(field.value, field.item.dtype).tobytes()
