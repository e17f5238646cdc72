"""Typed metadata values of GGUF (version 3), with the numbers of the format's specification."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Self

import numpy as np


class ValueKind(IntEnum):
    """`enum gguf_metadata_value_type`."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12

    @property
    def dtype(self) -> np.dtype[Any]:
        """The little-endian numpy type of a number of this kind; strings and arrays have none."""
        return np.dtype(_DTYPES[self])


_DTYPES = {
    ValueKind.UINT8: "u1",
    ValueKind.INT8: "i1",
    ValueKind.UINT16: "<u2",
    ValueKind.INT16: "<i2",
    ValueKind.UINT32: "<u4",
    ValueKind.INT32: "<i4",
    ValueKind.FLOAT32: "<f4",
    ValueKind.BOOL: "u1",
    ValueKind.UINT64: "<u8",
    ValueKind.INT64: "<i8",
    ValueKind.FLOAT64: "<f8",
}


@dataclass(frozen=True, slots=True)
class Field:
    """One metadata value with its type: an int, float, bool, str, or a tuple of those with `item` as their type."""

    kind: ValueKind
    value: Any
    item: ValueKind | None = None

    @classmethod
    def string(cls, value: str) -> Self:
        """A string."""
        return cls(ValueKind.STRING, value)

    @classmethod
    def uint32(cls, value: int) -> Self:
        """An unsigned 32-bit integer, the type of most hyperparameters in llama.cpp."""
        return cls(ValueKind.UINT32, value)

    @classmethod
    def float32(cls, value: float) -> Self:
        """A 32-bit float."""
        return cls(ValueKind.FLOAT32, value)

    @classmethod
    def boolean(cls, value: bool) -> Self:  # noqa: FBT001 - the value is the only argument
        """A boolean."""
        return cls(ValueKind.BOOL, value)

    @classmethod
    def strings(cls, values: Sequence[str]) -> Self:
        """An array of strings."""
        return cls(ValueKind.ARRAY, tuple(values), ValueKind.STRING)

    @classmethod
    def int32s(cls, values: Sequence[int]) -> Self:
        """An array of signed 32-bit integers."""
        return cls(ValueKind.ARRAY, tuple(values), ValueKind.INT32)
