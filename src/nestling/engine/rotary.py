"""Rotary position embedding (RoPE, and M-RoPE for images): every token's angles, computed outside the graph.

Inside the graph, a plugin that computes in bfloat16 would round the positions: from 256 on, neighbours coincide.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nestling.engine.hyperparameters import AXES, Hyperparameters
from nestling.engine.protocol import Item, Positions
from nestling.errors import EngineError
from nestling.vectors import Floats


class Rotary:
    """Cosines and sines of a model's angles, position * theta ** (-2 i / d), in a table that grows on demand."""

    def __init__(self, shape: Hyperparameters) -> None:
        half = shape.head_dim // 2
        self._half, self._sections = half, shape.rope_sections
        self._speeds = shape.rope_theta ** (-np.arange(half) / half)
        self._table = np.empty((0, shape.head_dim), np.float32)

    def cos_sin(self, positions: NDArray[np.int64]) -> Floats:
        """Each token's cosines, then its sines, of float64 angles: positions (N,) or (3, N) -> (N, d) float32.

        With M-RoPE positions (3, N), each frequency uses the axis of its section, so that three equal positions give
        the same bits as a 1-D one. EngineError when the model has no M-RoPE sections.
        """
        table = self._grown(int(positions.max(initial=0)) + 1)
        if positions.ndim == 1:
            return table[positions]
        if len(self._sections) != AXES or sum(self._sections) != self._half:
            raise EngineError(
                f"rope.dimension_sections {list(self._sections)}: expected three that sum to {self._half} for an"
                " item with M-RoPE positions"
            )
        axes = np.tile(np.repeat(np.arange(AXES), self._sections), 2)
        return table[positions.T[:, axes], np.arange(2 * self._half)]

    def _grown(self, most: int) -> Floats:
        table = self._table  # another thread may put a shorter table in its place
        if most > len(table):
            angles = np.arange(1 << (most - 1).bit_length())[:, None] * self._speeds
            self._table = table = np.concatenate((np.cos(angles), np.sin(angles)), 1, dtype=np.float32)
        return table


def positions(items: Sequence[Item]) -> Positions:
    """Every token's position, items concatenated: (N,), or (3, N) when any item has M-RoPE positions."""
    every = [np.arange(len(one)) if one.positions is None else one.positions for one in items]
    if any(one.ndim > 1 for one in every):
        every = [np.broadcast_to(one, (AXES, one.shape[-1])) for one in every]
    return np.concatenate(every, -1)
