"""Read safetensors files lazily, checking every length before it is used.

The header is read when a file is opened, rows when they are needed; no page of the file stays in memory afterwards.
The format is the safetensors project's: 8 bytes of header length, a JSON header, then the tensors without gaps. Its
header limit is 100 MB; ours is huggingface_hub's, 25 MB. Does not know models.
"""

import json
import os
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestling._util.text import LFS_POINTER, is_lfs_pointer
from nestling.errors import CheckpointError

Floats = NDArray[np.float32]

MAX_HEADER_BYTES = 25_000_000
MAX_JSON_ITEMS = 1 << 18
"""Far above any real file (1,518 adapter tensors make 12,000); 24 MB of empty objects take 20 s and 700 MB to parse."""
MAX_DIMENSIONS = 8
MAX_NAME = 512
ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor is: `name` as in the file, `offset` in bytes from the start of the file."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        return self.parameters * ITEM_BYTES[self.dtype]

    def read_rows(self, *, start: int = 0, stop: int | None = None) -> Floats:
        """Rows [start, stop) of the first axis as float32, shape (stop - start, ...).

        CheckpointError naming the tensor for a truncated file or a weight that is NaN or infinite.
        """
        stop = self.shape[0] if stop is None else stop
        assert 0 <= start <= stop <= self.shape[0], f"{self.name}: rows {start} to {stop} of {self.shape[0]}"
        row_bytes = self.size_bytes // self.shape[0]
        raw = self._read(self.offset + start * row_bytes, (stop - start) * row_bytes)
        rows = _to_float32(raw, self.dtype).reshape(stop - start, *self.shape[1:])
        if not np.isfinite(rows).all():
            row = start + int(np.flatnonzero(~np.isfinite(rows.reshape(stop - start, -1)).all(1))[0])
            raise CheckpointError(f"{self.path}: {self.name}: row {row} holds NaN or infinity: expected finite weights")
        return rows

    def _read(self, offset: int, size: int) -> NDArray[np.uint8]:
        raw = np.empty(size, np.uint8)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(offset)
                done = 0
                while done < size and (count := file.readinto(raw[done:].data)):
                    done += count
        except OSError as error:
            raise CheckpointError(f"{self.path}: {self.name}: cannot be read: {error.strerror or error}") from error
        if done < size:
            raise CheckpointError(f"{self.path}: {self.name}: the file ends {size - done} bytes early")
        return raw


def _to_float32(raw: NDArray[np.uint8], dtype: str) -> Floats:
    if dtype != "BF16":
        return raw.view("<f4" if dtype == "F32" else "<f2").astype(np.float32, copy=False)
    wide = raw.view("<u2").astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name; CheckpointError when the file is not valid."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if is_lfs_pointer(file.read(MAX_NAME)):
                raise CheckpointError(f"{path}: {LFS_POINTER}")
            file.seek(0)
            length = _header_length(path, file.read(8), size)
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        header = parse_json(raw.decode("utf-8"), what=f"{path}: header")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: header: not valid JSON ({error})") from None
    header.pop("__metadata__", None)
    tensors = {name: _stored(path, name, entry, 8 + length) for name, entry in header.items()}
    _check_places(path, tensors, 8 + length, size)
    return tensors


def parse_json(raw: str, *, what: str) -> dict[str, Any]:
    """A JSON object; CheckpointError for anything else, duplicate keys, deep nesting or too many items."""
    if (items := sum(map(raw.count, "{[,"))) > MAX_JSON_ITEMS:
        raise CheckpointError(f"{what}: {items} items; at most {MAX_JSON_ITEMS} are allowed")
    try:
        value = json.loads(raw, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{what}: expected a JSON object, not {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"duplicate key {twice[:MAX_NAME]!r}")
    return found


def _header_length(path: Path, raw: bytes, size: int) -> int:
    if len(raw) < 8:  # noqa: PLR2004 - the length field
        raise CheckpointError(f"{path}: {size} bytes are too few for a safetensors file")
    length: int = struct.unpack("<Q", raw)[0]
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"{path}: a header of {length} bytes; at most {MAX_HEADER_BYTES} are allowed")
    if length > size - 8:
        raise CheckpointError(f"{path}: a header of {length} bytes, but the file has {size} bytes: it is truncated")
    return length


def _stored(path: Path, name: str, entry: object, data_start: int) -> StoredTensor:
    where = f"{path}: {name[:MAX_NAME]}"
    if len(name) > MAX_NAME:
        raise CheckpointError(f"{where}...: a name of {len(name)} characters; at most {MAX_NAME} are allowed")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise CheckpointError(f"{where}: dtype {_short(dtype)}: expected one of {', '.join(ITEM_BYTES)}")
    if not _are_counts(shape) or not 1 <= len(shape) <= MAX_DIMENSIONS or min(shape) < 1:
        raise CheckpointError(f"{where}: shape {_short(shape)}: expected 1 to {MAX_DIMENSIONS} positive sizes")
    if not _are_counts(offsets) or len(offsets) != 2:  # noqa: PLR2004 - begin and end
        raise CheckpointError(f"{where}: data_offsets {_short(offsets)}: expected begin and end")
    tensor = StoredTensor(path, name, dtype, tuple(shape), data_start + offsets[0])
    if offsets[1] - offsets[0] != tensor.size_bytes:
        wanted = f"{dtype} {_short(shape)} takes {_short(tensor.size_bytes)} bytes"
        raise CheckpointError(f"{where}: data_offsets {_short(offsets)}: {wanted}")
    return tensor


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= MAX_NAME else f"{text[:MAX_NAME]}..."


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 1 << 63 for number in value)


def _check_places(path: Path, tensors: dict[str, StoredTensor], data_start: int, size: int) -> None:
    """Check that the tensors follow each other without gaps or overlaps, to the end of the file."""
    for tensor in tensors.values():
        if tensor.offset + tensor.size_bytes > size:
            raise CheckpointError(f"{path}: {tensor.name}: lies past the end of the file, which is truncated")
    end = data_start
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
        if tensor.offset != end:
            fault = "overlaps the tensor before it" if tensor.offset < end else "has a gap before it"
            raise CheckpointError(f"{path}: {tensor.name}: {fault}; tensors must follow each other without gaps")
        end += tensor.size_bytes
    if end != size:
        raise CheckpointError(f"{path}: {size - end} bytes after the last tensor belong to no tensor")
