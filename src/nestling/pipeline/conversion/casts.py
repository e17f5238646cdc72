"""Float32 rows to the float types of a GGUF file, rounded to nearest, ties to even."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestling.errors import BuildError
from nestling.formats.quant_types import QuantType
from nestling.formats.safetensors import Floats

_BF16_EXPONENT = np.uint16(0x7F80)


def cast_rows(rows: Floats, *, kind: QuantType, name: str) -> NDArray[Any]:
    """Cast rows to float32, float16, or BF16 as uint16 (the upper half of a float32); same shape.

    BuildError naming the tensor for a weight that overflows the type.
    """
    stored, holds = _CASTS[kind](rows)
    if not holds.all():
        value = float(rows[~holds][0])
        wider = "" if kind is QuantType.F32 else "; F32 and BF16 hold up to 3.4e38" if abs(value) > F16_MAX else ""
        raise BuildError(f"{name}: {value:g} does not fit {kind.name}{wider}")
    return stored


F16_MAX = 65504.0


def _to_f32(rows: Floats) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    return rows, np.isfinite(rows)


def _to_f16(rows: Floats) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    with np.errstate(over="ignore"):
        half = rows.astype(np.float16)
    return half, np.isfinite(half)


def _to_bf16(rows: Floats) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    bits = np.ascontiguousarray(rows).view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    upper = rounded.astype(np.uint16)
    return upper, (upper & _BF16_EXPONENT) != _BF16_EXPONENT


_CASTS: dict[QuantType, Callable[[Floats], tuple[NDArray[Any], NDArray[np.bool_]]]] = {
    QuantType.F32: _to_f32,
    QuantType.F16: _to_f16,
    QuantType.BF16: _to_bf16,
}
