"""Rotary position embedding (RoPE, and M-RoPE for images): the angles of every token, computed outside the graph.

Inside it, a plugin that computes in bfloat16 would round the positions themselves: from 256 on, several are one.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nestling.engine.hyperparameters import AXES, Hyperparameters
from nestling.engine.protocol import Item, Positions
from nestling.errors import EngineError
from nestling.vectors import Floats


class Rotary:
    """Cosines and sines of a model's angles, position times theta ** (-2 i / d); a table that grows as it is needed."""

    def __init__(self, shape: Hyperparameters) -> None:
        half = shape.head_dim // 2
        self._half, self._sections = half, shape.rope_sections
        self._speeds = shape.rope_theta ** (-np.arange(half) / half)
        self._table = np.empty((0, shape.head_dim), np.float32)

    def turns(self, positions: NDArray[np.int64]) -> Floats:
        """Of each token the cosines, then the sines, float64 angles rounded once: (N,) or (3, N) -> (N, d) float32.

        With three positions a token (M-RoPE) each frequency turns by the one that its section names, so that three
        equal ones give the bits of a plain one. EngineError where the model has no such sections.
        """
        table = self._grown(int(positions.max(initial=0)) + 1)
        if positions.ndim == 1:
            return table[positions]
        if len(self._sections) != AXES or sum(self._sections) != self._half:
            raise EngineError(
                f"rope.dimension_sections {list(self._sections)}: three that sum to {self._half} are needed for an"
                " item with three positions a token"
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
    """Every token's position, item after item: (N,), or (3, N) where an item has three a token."""
    every = [np.arange(len(one)) if one.positions is None else one.positions for one in items]
    if any(one.ndim > 1 for one in every):
        every = [np.broadcast_to(one, (AXES, one.shape[-1])) for one in every]
    return np.concatenate(every, -1)
