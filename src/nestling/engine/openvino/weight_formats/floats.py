"""Matrices as floating-point numbers: float32, or float16 for products in float16's precision or less."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestling.engine.openvino.nodes import times
from nestling.engine.openvino.runtime import Node, op
from nestling.engine.openvino.weight_formats.base import Arrays, Factor, Space
from nestling.formats.quant_types import QuantType
from nestling.vectors import Floats

_HELD: dict[QuantType, np.dtype[Any]] = {QuantType.F32: np.dtype(np.float32), QuantType.F16: np.dtype(np.float16)}


@dataclass(frozen=True, slots=True)
class FloatFormat:
    """`kind` is F32 or F16."""

    kind: QuantType

    @property
    def name(self) -> str:
        """See `WeightFormat`, as for all methods."""
        return self.kind.name

    def spaces(self, rows: int, width: int) -> Sequence[Space]:
        """One array."""
        return [Space((rows, width), _HELD[self.kind])]

    def copy(self, raw: NDArray[np.uint8], kind: QuantType, into: Arrays) -> bool:
        """Copies values that are stored in this type."""
        if kind is self.kind:
            into[0][...] = raw.view(into[0].dtype)
        return kind is self.kind

    def fill(self, rows: Floats, into: Arrays) -> None:
        """Rounded to nearest."""
        into[0][...] = rows

    def factor(self, x: Node) -> Factor:
        """Activations unchanged."""
        return Factor(x)

    def times(self, x: Factor, matrix: Arrays) -> Node:
        """In float32 or, by the plugin's precision hint, bfloat16."""
        [values] = matrix
        held = op.constant(values, shared_memory=True)
        return times(x.rows, held if self.kind is QuantType.F32 else op.convert(held, "f32"))
