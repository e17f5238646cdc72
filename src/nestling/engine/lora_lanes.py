"""Several LoRA adapters of one base, stacked, so that one matrix product serves rows with different adapters.

    y = W x + B (gate * (A x))

A stacks the adapters' rows, B concatenates their columns, and the gate of a row is its own adapter's scaling in that
adapter's lanes and 0 in the others. Lanes are zero-padded to a multiple of `LANES`, the kernels' width. Pure numpy.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nestling.engine.lora import Adapter
from nestling.vectors import Floats

LANES = 32


@dataclass(frozen=True)
class StackedAdapters:
    """Stacked adapters of one base; a text selects one by its index."""

    adapters: Sequence[Adapter]

    @property
    def width(self) -> int:
        """Lanes of one matrix: the sum of the ranks, rounded up to a multiple of `LANES`."""
        return -(-sum(one.rank for one in self.adapters) // LANES) * LANES

    def rows(self, names: Sequence[str]) -> Floats:
        """A of several matrices, stacked: (matrices * width, in)."""
        return np.concatenate([self._padded([one.sides(name)[0] for one in self.adapters], 0) for name in names])

    def columns(self, names: Sequence[str]) -> Floats:
        """B of several matrices, block-diagonal: (sum of out, matrices * width)."""
        blocks = [self._padded([one.sides(name)[1] for one in self.adapters], 1) for name in names]
        whole = np.zeros((sum(map(len, blocks)), len(names) * self.width), np.float32)
        top = 0
        for place, block in enumerate(blocks):
            whole[top : top + len(block), place * self.width : (place + 1) * self.width] = block
            top += len(block)
        return whole

    def gates(self) -> Floats:
        """Row i is the gate of a text with adapter i: (adapters, width)."""
        table, left = np.zeros((len(self.adapters), self.width), np.float32), 0
        for place, one in enumerate(self.adapters):
            table[place, left : left + one.rank] = one.scaling
            left += one.rank
        return table

    def _padded(self, parts: Sequence[Floats], axis: int) -> Floats:
        whole = np.concatenate(parts, axis)
        missing = [(0, self.width - whole.shape[axis] if at == axis else 0) for at in (0, 1)]
        return np.pad(whole, missing)
