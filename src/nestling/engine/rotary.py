"""Rotary position embedding: the angles of every position, computed once, outside the graph.

Inside it, a plugin that computes in bfloat16 would round the positions themselves: from 256 on, several are one.
"""

import numpy as np
from numpy.typing import NDArray

from nestling.engine.protocol import Shape
from nestling.vectors import Floats


class Rotary:
    """Cosines and sines of a model's angles, position times theta ** (-2 i / d); a table that grows as it is needed."""

    def __init__(self, shape: Shape) -> None:
        half = shape.head_dim // 2
        self._speeds = shape.rope_theta ** (-np.arange(half) / half)
        self._table = np.empty((0, shape.head_dim), np.float32)

    def turns(self, positions: NDArray[np.int64]) -> Floats:
        """Of each position the cosines, then the sines: (N,) -> (N, d)."""
        table, most = self._table, int(positions.max()) + 1  # another thread may put a shorter table in its place
        if most > len(table):
            angles = np.arange(1 << (most - 1).bit_length())[:, None] * self._speeds
            self._table = table = np.concatenate((np.cos(angles), np.sin(angles)), 1, dtype=np.float32)
        return table[positions]
