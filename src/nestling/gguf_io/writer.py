"""Write a GGUF file (version 3, little-endian): equal input gives equal bytes, and no half file has the final name.

Tensors are streamed: the writer asks for one tensor's bytes a piece at a time and keeps none.
"""

import hashlib
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from nestling.errors import BuildError
from nestling.files import atomic_write
from nestling.gguf_io.fields import Field, ValueKind
from nestling.quants import QuantType

ALIGNMENT = 32
Piece = bytes | NDArray[Any]


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """A tensor to be written: `shape` in numpy order (rows, width), and a callable that yields its bytes in pieces."""

    name: str
    shape: tuple[int, ...]
    kind: QuantType
    pieces: Callable[[], Iterable[Piece]]

    @property
    def size_bytes(self) -> int:
        """Bytes that the tensor will take, padding apart."""
        return self.kind.size_bytes(self.shape)


class _Sink:
    """A file that counts and hashes what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash, self.size_bytes = file, hashlib.sha256(), 0

    def write(self, piece: Piece) -> None:
        view = np.ascontiguousarray(piece).data if isinstance(piece, np.ndarray) else memoryview(piece)
        self._file.write(view)
        self._hash.update(view)
        self.size_bytes += view.nbytes

    def pad(self) -> None:
        self.write(b"\0" * (-self.size_bytes % ALIGNMENT))

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def write_gguf(path: Path, metadata: Mapping[str, Field], tensors: Sequence[TensorPlan]) -> str:
    """Write the file whole or not at all; returns its SHA-256 in hex. A full disk is a BuildError."""
    try:
        with atomic_write(path) as file:
            sink = _Sink(file)
            sink.write(_header(metadata, tensors))
            sink.pad()
            for tensor in tensors:
                _write_tensor(sink, tensor)
            return sink.hexdigest()
    except OSError as error:
        raise BuildError(f"{path}: cannot be written: {error.strerror or error}") from error


def _write_tensor(sink: _Sink, tensor: TensorPlan) -> None:
    start = sink.size_bytes
    for piece in tensor.pieces():
        sink.write(piece)
    written = sink.size_bytes - start
    assert written == tensor.size_bytes, f"{tensor.name}: {written} bytes instead of {tensor.size_bytes}"
    sink.pad()


def _header(metadata: Mapping[str, Field], tensors: Sequence[TensorPlan]) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, field in metadata.items():
        parts += [_string(key), struct.pack("<I", field.kind), _value(field)]
    offset = 0
    for tensor in tensors:
        sizes = tuple(reversed(tensor.shape))
        parts.append(_string(tensor.name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes))
        parts.append(struct.pack("<IQ", tensor.kind.ggml_id, offset))
        offset += -(-tensor.size_bytes // ALIGNMENT) * ALIGNMENT
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
