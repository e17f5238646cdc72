"""Read a GGUF file (versions 2 and 3, little-endian), checking every length before it is used.

Tensor bytes stay in the memory-mapped file. A wrong length, offset or count is a GGUFError naming the field and the
byte offset. Does not know what a model is.
"""

import mmap
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nestling._util.text import LFS_POINTER, is_lfs_pointer
from nestling.errors import GGUFError
from nestling.formats.gguf.fields import Field, ValueKind
from nestling.formats.quant_types import QuantType

MAGIC = b"GGUF"
# Far above any real file (the full model has 434 tensors, 40 keys, arrays of 151,936), low enough to bound memory.
MAX_TENSORS = 1 << 16
MAX_KEYS = 1 << 12
MAX_ARRAY_ITEMS = 1 << 20
MAX_ITEMS = 1 << 20
MAX_HEADER_BYTES = 1 << 26
MAX_STRING_BYTES = 1 << 24
MAX_NAME_BYTES = 1 << 10
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 16


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor is: `shape` in numpy order (rows, width), `offset` in bytes from the start of the file."""

    name: str
    shape: tuple[int, ...]
    kind: QuantType
    offset: int

    @property
    def size_bytes(self) -> int:
        """Bytes that the tensor takes in the file."""
        return self.kind.size_bytes(self.shape)


@dataclass(frozen=True)
class GGUFFile:
    """An open GGUF file: `metadata` and `tensors` by name, in file order."""

    path: Path
    metadata: dict[str, Field]
    tensors: dict[str, TensorInfo]
    data: NDArray[np.uint8] = field(repr=False)
    opened: tuple[int, ...] = ()
    """What the file was when it was opened: device, inode, size, time of modification."""

    @classmethod
    def open(cls, path: Path, *, pieces: bool = False) -> Self:
        """Map the file and read its header; GGUFError when it is not a valid GGUF file.

        A piece of a split model is refused too, unless `pieces` is true.
        """
        try:
            if not path.is_file():
                raise GGUFError(f"{path}: no such file")
            if path.stat().st_size < 24:  # noqa: PLR2004 - magic, version and two counts
                raise GGUFError(f"{path}: shorter than a GGUF header")
            data = np.memmap(path, np.uint8, "r")
            if is_lfs_pointer(data[:MAX_NAME_BYTES].tobytes()):
                raise GGUFError(f"{path}: {LFS_POINTER}")
        except OSError as error:
            raise GGUFError(f"{path}: cannot be read: {error.strerror}") from None
        cursor = _Cursor(path, data)
        metadata, tensors = _header(cursor)
        found = cls(path, metadata, tensors, data, _state(path))
        if found.piece and not pieces:
            raise GGUFError(
                f"{path}: {found.piece} of a split model; merge them with `llama-gguf-split --merge FIRST OUT`"
            )
        return found

    @property
    def piece(self) -> str:
        """`piece 1 of 2` for a file that llama-gguf-split made; empty for a complete model."""
        number, count = (self.metadata.get(f"split.{key}") for key in ("no", "count"))
        if count is None or count.value in (0, 1):
            return ""
        return f"piece {number.value + 1 if number and isinstance(number.value, int) else '?'} of {count.value}"

    def check_unchanged(self) -> None:
        """GGUFError where the bytes behind `data` were overwritten since; a file that was replaced or removed stays."""
        with suppress(OSError):
            now = _state(self.path)
            if now[:2] == self.opened[:2] and now != self.opened:
                raise GGUFError(f"{self.path}: overwritten while it was in use; load it again")

    def value(self, key: str) -> Any:  # noqa: ANN401 - as many types as GGUF has
        """The value under `key`; GGUFError when it is missing."""
        if key not in self.metadata:
            raise GGUFError(f"{self.path}: the field {key} is missing")
        return self.metadata[key].value

    def raw(self, name: str) -> NDArray[np.uint8]:
        """A tensor's stored rows, not copied: (rows, bytes of a row)."""
        if name not in self.tensors:
            raise GGUFError(f"{self.path}: the tensor {name} is missing")
        info = self.tensors[name]
        row = info.kind.row_bytes(info.shape[-1])
        return self.data[info.offset : info.offset + info.size_bytes].reshape(-1, row)

    def forget(self, rows: NDArray[np.uint8]) -> None:
        """Drop the resident pages of a piece of `raw` (MADV_DONTNEED); they fault back in on access."""
        page = mmap.PAGESIZE
        first = rows.ctypes.data - self.data.ctypes.data
        start, end = first // page * page, first + rows.nbytes
        mapped: Any = self.data.base
        mapped.madvise(mmap.MADV_DONTNEED, start, end - start)


def _state(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@dataclass(slots=True)
class _Cursor:
    path: Path
    data: NDArray[np.uint8]
    at: int = 0
    items: int = 0

    @property
    def end(self) -> int:
        """The offset at which the header must end."""
        return min(self.data.size, MAX_HEADER_BYTES)

    def fail(self, message: str) -> GGUFError:
        return GGUFError(f"{self.path}: byte {self.at}: {message}")

    def take(self, count: int, what: str) -> NDArray[np.uint8]:
        if count > self.end - self.at:
            whose = "file" if self.end == self.data.size else f"header (at most {MAX_HEADER_BYTES} bytes)"
            raise self.fail(f"{what} needs {count} bytes, the {whose} has {self.end - self.at} left")
        piece = self.data[self.at : self.at + count]
        self.at += count
        return piece

    def number(self, kind: ValueKind, what: str) -> Any:  # noqa: ANN401
        return np.frombuffer(self.take(kind.dtype.itemsize, what), kind.dtype)[0].item()

    def count(self, limit: int, what: str) -> int:
        value: int = self.number(ValueKind.UINT64, what)
        if value > limit:
            raise self.fail(f"{what} is {value}: expected at most {limit}")
        return value

    def string(self, what: str, limit: int = MAX_STRING_BYTES) -> str:
        raw = self.take(self.count(limit, f"length of {what}"), what).tobytes()
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8") from None

    def strings(self, count: int, what: str) -> tuple[str, ...]:
        """`count` strings; an inlined loop, since vocabularies are long."""
        buffer, at, end, found = self.data.data, self.at, self.end, []
        for _ in range(count):
            if at + 8 > end:
                raise self.fail(f"{what} ends early")
            length: int = struct.unpack_from("<Q", buffer, at)[0]
            if length > MAX_STRING_BYTES or length > end - at - 8:
                raise self.fail(f"{what}: a string of {length} bytes, longer than the rest of the header")
            found.append(bytes(buffer[at + 8 : at + 8 + length]))
            at += 8 + length
        self.at = at
        try:
            return tuple(piece.decode("utf-8") for piece in found)
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8") from None

    def kind(self, what: str) -> ValueKind:
        number = self.number(ValueKind.UINT32, f"type of {what}")
        try:
            return ValueKind(number)
        except ValueError:
            raise self.fail(f"{what} has the unknown type {number}") from None


def _header(cursor: _Cursor) -> tuple[dict[str, Field], dict[str, TensorInfo]]:
    if cursor.take(4, "magic").tobytes() != MAGIC:
        raise GGUFError(f"{cursor.path}: not a GGUF file (it does not start with 'GGUF')")
    version = cursor.number(ValueKind.UINT32, "version")
    if version not in (2, 3):
        raise cursor.fail(f"GGUF version {version}: expected 2 or 3, little-endian")
    tensor_count = cursor.count(MAX_TENSORS, "tensor count")
    key_count = cursor.count(MAX_KEYS, "metadata count")
    metadata: dict[str, Field] = {}
    for _ in range(key_count):
        key = cursor.string("key", MAX_NAME_BYTES)
        if key in metadata:
            raise cursor.fail(f"duplicate key {key}")
        metadata[key] = _field(cursor, key)
    tensors = _tensor_infos(cursor, tensor_count)
    return metadata, _placed(cursor, tensors, _alignment(cursor, metadata))


def _field(cursor: _Cursor, key: str) -> Field:
    kind = cursor.kind(key)
    if kind is ValueKind.STRING:
        return Field(kind, cursor.string(key))
    if kind is ValueKind.ARRAY:
        item = cursor.kind(f"items of {key}")
        if item is ValueKind.ARRAY:
            raise cursor.fail(f"{key} is an array of arrays")
        return Field(kind, _items(cursor, key, item), item)
    return Field(kind, _scalar(cursor.number(kind, key), kind))


def _scalar(number: Any, kind: ValueKind) -> Any:  # noqa: ANN401
    return bool(number) if kind is ValueKind.BOOL else number


def _items(cursor: _Cursor, key: str, item: ValueKind) -> tuple[Any, ...]:
    count = cursor.count(MAX_ARRAY_ITEMS, f"length of {key}")
    cursor.items += count
    if cursor.items > MAX_ITEMS:
        raise cursor.fail(f"{key}: more than {MAX_ITEMS} items in all arrays together")
    if item is ValueKind.STRING:
        return cursor.strings(count, key)
    numbers = np.frombuffer(cursor.take(count * item.dtype.itemsize, key), item.dtype).tolist()
    return tuple(_scalar(number, item) for number in numbers)


def _tensor_infos(cursor: _Cursor, count: int) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for _ in range(count):
        name = cursor.string("tensor name", MAX_NAME_BYTES)
        if name in tensors:
            raise cursor.fail(f"duplicate tensor {name}")
        tensors[name] = _tensor_info(cursor, name)
    return tensors


def _tensor_info(cursor: _Cursor, name: str) -> TensorInfo:
    rank = cursor.number(ValueKind.UINT32, f"rank of {name}")
    if not 1 <= rank <= MAX_DIMENSIONS:
        raise cursor.fail(f"{name} has {rank} dimensions: expected 1 to {MAX_DIMENSIONS}")
    sizes = [cursor.count(cursor.data.size * 8, f"a dimension of {name}") for _ in range(rank)]
    number = cursor.number(ValueKind.UINT32, f"type of {name}")
    kind = QuantType.from_ggml_id(number)
    if kind is None:
        raise cursor.fail(f"{name} has the unknown tensor type {number}")
    if min(sizes) < 1:
        raise cursor.fail(f"{name} has a dimension of 0")
    if sizes[0] % kind.block:
        raise cursor.fail(f"{name}: rows of {sizes[0]} do not divide into {kind.name} blocks of {kind.block}")
    return TensorInfo(name, tuple(reversed(sizes)), kind, cursor.number(ValueKind.UINT64, f"offset of {name}"))


def _alignment(cursor: _Cursor, metadata: dict[str, Field]) -> int:
    found = metadata.get("general.alignment", Field.uint32(32))
    value = found.value
    if found.kind is not ValueKind.UINT32 or not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise cursor.fail(f"general.alignment={value!r}: expected a power of two up to {MAX_ALIGNMENT}")
    return int(value)


def _placed(cursor: _Cursor, tensors: dict[str, TensorInfo], alignment: int) -> dict[str, TensorInfo]:
    """The tensors with offsets from the start of the file; GGUFError if they overlap or reach past its end."""
    start = -(-cursor.at // alignment) * alignment
    placed = {}
    for name, info in tensors.items():
        if info.offset % alignment:
            raise cursor.fail(f"{name}: its offset {info.offset} is not a multiple of {alignment}")
        if start + info.offset + info.size_bytes > cursor.data.size:
            raise cursor.fail(f"{name}: offset {info.offset} + {info.size_bytes} bytes lies past the end of the file")
        placed[name] = TensorInfo(name, info.shape, info.kind, start + info.offset)
    end = start
    for info in sorted(placed.values(), key=lambda tensor: tensor.offset):
        if info.offset < end:
            raise cursor.fail(f"{info.name} overlaps the tensor before it")
        end = info.offset + info.size_bytes
    return placed
