"""Int8 matrices with one scale per row, times int8 activations with one scale per row: the form int8 hardware wants.

The plugin's low-precision pass turns a static FakeQuantize into an int8 product. As its range is fixed, activations are
divided by their row's scale before it, and the product is multiplied by that scale. Rows that come out of a norm need
neither: their mean square is 1 and, after a rotation, their tails are those of a normal distribution (`rotation`), so
that one range fits all of them.
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
    """`limit`: the fixed range of all rows of activations; None takes each row's own absmax.

    `block`: size of the Hadamard blocks in which both sides are rotated before quantization, None for no rotation: for
    inputs whose rotation cannot be folded into other matrices.
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
        """Always False: no file stores such rows."""
        del raw, kind, into
        return False

    def fill(self, rows: Floats, into: Arrays) -> None:
        """Symmetric absmax quantization to [-127, 127] per row; NaN and infinity propagate to the scale."""
        absmax(rows if self.block is None else spread(rows, self.block), into)

    def factor(self, x: Node) -> Factor:
        """Activations rotated and quantized."""
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
    """Quantize to 255 levels from -limit to limit, with clipping."""
    low, high = number(-limit), number(limit)
    return op.fake_quantize(x, low, high, low, high, 2 * LEVELS + 1)


def _turned(x: Node, block: int) -> Node:
    parts = op.reshape(x, ints(0, -1, block), special_zero=True)
    turned = op.matmul(parts, op.constant(hadamard(block)), transpose_a=False, transpose_b=False)
    return op.reshape(turned, op.shape_of(x), special_zero=False)
