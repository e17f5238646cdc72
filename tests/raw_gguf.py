"""GGUF bytes put together by hand, so that any of them can be wrong; the layout is that of the specification."""

import struct
from collections.abc import Sequence

UINT8, INT8, UINT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 0, 1, 4, 6, 7, 8, 9, 10
F32, Q8_0 = 0, 8
ALIGNMENT = 32


def string(text: str | bytes, *, length: int | None = None) -> bytes:
    """A string; `length` is what the file says that it has."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    """A metadata key with its value."""
    return string(key) + struct.pack("<I", kind) + value


def array(item: int, count: int, items: bytes = b"") -> bytes:
    """An array's value."""
    return struct.pack("<IQ", item, count) + items


def number(value: int) -> bytes:
    """A UINT32 value."""
    return struct.pack("<I", value)


def tensor(name: str | bytes = "t", sizes: Sequence[int] = (8,), kind: int = F32, offset: int = 0) -> bytes:
    """A tensor's head; sizes in the file's order, the row first."""
    head = string(name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
    return head + struct.pack("<IQ", kind, offset)


def gguf(
    pairs: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    *,
    data: bytes = b"",
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = ALIGNMENT,
) -> bytes:
    """A whole file; `counts` are those of tensors and keys that the header tells."""
    told = counts or (len(tensors), len(pairs))
    head = magic + struct.pack("<IQQ", version, *told) + b"".join(pairs) + b"".join(tensors)
    return head + b"\0" * (-len(head) % alignment if tensors else 0) + data
