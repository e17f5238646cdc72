"""Matrices as int8 with one float32 scale per group of a row; the plugin quantizes activations in the same groups.

It does so (`DYNAMIC_QUANTIZATION_GROUP_SIZE`) where the processor has int8 dot products; elsewhere it dequantizes the
weights group by group and multiplies in floating point.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nestling.engine.openvino.nodes import ints, times
from nestling.engine.openvino.runtime import Node, op
from nestling.engine.openvino.weight_formats.base import Arrays, Factor, Space
from nestling.formats.quant_types import QuantType
from nestling.vectors import Floats

LEVELS = 127
"""Largest int8 value used: symmetric absmax quantization."""


@dataclass(frozen=True, slots=True)
class Int8Groups:
    """`group`: values that share a scale."""

    group: int

    @property
    def name(self) -> str:
        """See `WeightFormat`, as for all methods."""
        return f"int8 groups of {self.group}"

    def spaces(self, rows: int, width: int) -> Sequence[Space]:
        """Values (rows, width / group, group), scales (rows, width / group, 1)."""
        count = width // self.group
        return [
            Space((rows, count, self.group), np.dtype(np.int8)),
            Space((rows, count, 1), np.dtype(np.float32)),
        ]

    def copy(self, raw: NDArray[np.uint8], kind: QuantType, into: Arrays) -> bool:
        """Q8_0 blocks, a float16 scale and 32 int8 values each, are groups of 32 bit for bit."""
        if kind is not QuantType.Q8_0 or self.group != kind.block:
            return False
        values, scales = into
        blocks = raw.reshape(len(raw), -1, kind.value.block_bytes)
        values[...] = blocks[..., 2:].view(np.int8)
        scales[...] = blocks[..., :2].copy().view(np.float16)
        return True

    def fill(self, rows: Floats, into: Arrays) -> None:
        """Symmetric absmax quantization to [-127, 127] per group; NaN and infinity propagate to the scale."""
        absmax(rows.reshape(into[0].shape), into)

    def factor(self, x: Node) -> Factor:
        """Activations unchanged: the plugin quantizes them."""
        return Factor(x)

    def times(self, x: Factor, matrix: Arrays) -> Node:
        """In the pattern that the plugin multiplies in int8."""
        values, scales = (op.constant(one, shared_memory=True) for one in matrix)
        numbers = op.multiply(op.convert(values, "f32"), scales)
        return times(x.rows, op.reshape(numbers, ints(len(matrix[0]), -1), special_zero=False))


def absmax(groups: Floats, into: Arrays) -> None:
    """Quantize floats (..., n) to int8 values (..., n) and float32 scales (..., 1)."""
    values, scales = into
    largest = np.maximum(groups.max(-1, keepdims=True), -groups.min(-1, keepdims=True))
    scales[...] = largest / LEVELS
    with np.errstate(invalid="ignore"):
        steps = groups * np.divide(LEVELS, largest, out=np.zeros_like(largest), where=largest > 0)
        values[...] = np.rint(steps, out=steps)
