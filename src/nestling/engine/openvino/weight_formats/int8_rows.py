"""Matrices as int8 with one scale a row, times rows of int8 with one scale each: the form that int8 hardware wants.

Written as a static FakeQuantize, which the plugin's low-precision pass turns into a product of int8 by int8, although
a row's scale is its own: it is divided by before and multiplied with after. Rows that come out of a norm need neither:
their mean square is 1 and, after a rotation, their tails are those of a normal distribution (`rotation`), so that the
range of the steps is the same for all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nestling.engine.openvino.nodes import ints, number, times
from nestling.engine.openvino.runtime import Node, op
from nestling.engine.openvino.weight_formats.base import Arrays, Factor, Space
from nestling.engine.openvino.weight_formats.int8_groups import LEVELS, absmax
from nestling.engine.rotation import hadamard, spread
from nestling.formats.quant_types import QuantType
from nestling.vectors import Floats

TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True)
class Int8Rows:
    """`limit`: the largest number of a row, where it is known for all rows; else each row's own absmax.

    `block`: both sides are rotated in Hadamard blocks of this size before they are rounded, if it is given: for
    inputs whose rotation no other matrix can undo.
    """

    limit: float | None = None
    block: int | None = None

    @property
    def name(self) -> str:
        """See `WeightFormat`, as for all methods."""
        return "int8 rows" if self.block is None else f"int8 rows, turned in blocks of {self.block}"

    def spaces(self, rows: int, width: int) -> Sequence[Space]:
        """Values (rows, width), scales (rows, 1)."""
        return [Space((rows, width), np.dtype(np.int8)), Space((rows, 1), np.dtype(np.float32))]

    def copy(self, raw: NDArray[np.uint8], kind: QuantType, into: Arrays) -> bool:
        """No file has such rows."""
        del raw, kind, into
        return False

    def fill(self, rows: Floats, into: Arrays) -> None:
        """Symmetric absmax quantization to [-127, 127] per row; NaN and infinity propagate to the scale."""
        absmax(rows if self.block is None else spread(rows, self.block), into)

    def factor(self, x: Node) -> Factor:
        """Rotated, rounded."""
        turned = x if self.block is None else _turned(x, self.block)
        if self.limit is not None:
            return Factor(_rounded(turned, self.limit))
        largest = op.maximum(op.reduce_max(op.abs(turned), ints(-1), keep_dims=True), number(TINY))
        return Factor(_rounded(op.divide(turned, largest), 1), largest)

    def times(self, x: Factor, matrix: Arrays) -> Node:
        """int8 by int8, then each row's scale."""
        values, scales = (op.constant(one, shared_memory=True) for one in matrix)
        product = times(x.rows, op.multiply(op.convert(values, "f32"), scales))
        return product if x.scale is None else op.multiply(product, x.scale)


def _rounded(x: Node, limit: float) -> Node:
    """To the nearest of 255 steps from -limit to limit; what lies beyond becomes the last."""
    low, high = number(-limit), number(limit)
    return op.fake_quantize(x, low, high, low, high, 2 * LEVELS + 1)


def _turned(x: Node, block: int) -> Node:
    parts = op.reshape(x, ints(0, -1, block), special_zero=True)
    turned = op.matmul(parts, op.constant(hadamard(block)), transpose_a=False, transpose_b=False)
    return op.reshape(turned, op.shape_of(x), special_zero=False)
