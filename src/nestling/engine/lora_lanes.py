"""Several adapters of one base side by side: what a matrix product of rows of mixed adapters takes, as arrays.

    y = W x + B (gate * (A x))

with A the adapters' rows one under another, B their columns one beside another, and a gate that lets through the rows
of a text's own adapter, scaled, and nothing of the others. The lanes of one matrix are filled up with zeros to a
multiple of `LANES`, so that kernels meet no rest. Pure numpy.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nestling.engine.lora import Adapter
from nestling.vectors import Floats

LANES = 32


@dataclass(frozen=True)
class SideBySide:
    """The adapters of one base, in the order by which a text names its own."""

    adapters: Sequence[Adapter]

    @property
    def width(self) -> int:
        """Lanes of one matrix: the adapters' ranks together, rounded up."""
        return -(-sum(one.rank for one in self.adapters) // LANES) * LANES

    def rows(self, names: Sequence[str]) -> Floats:
        """A of every matrix, one under another: (matrices * width, in)."""
        return np.concatenate([self._padded([one.sides(name)[0] for one in self.adapters], 0) for name in names])

    def columns(self, names: Sequence[str]) -> Floats:
        """B of every matrix along the diagonal: (sum of out, matrices * width)."""
        blocks = [self._padded([one.sides(name)[1] for one in self.adapters], 1) for name in names]
        whole = np.zeros((sum(map(len, blocks)), len(names) * self.width), np.float32)
        top = 0
        for place, block in enumerate(blocks):
            whole[top : top + len(block), place * self.width : (place + 1) * self.width] = block
            top += len(block)
        return whole

    def gates(self) -> Floats:
        """Row i is the gate of a text that takes adapter i: (adapters, width)."""
        table, left = np.zeros((len(self.adapters), self.width), np.float32), 0
        for place, one in enumerate(self.adapters):
            table[place, left : left + one.rank] = one.scaling
            left += one.rank
        return table

    def _padded(self, parts: Sequence[Floats], axis: int) -> Floats:
        whole = np.concatenate(parts, axis)
        missing = [(0, self.width - whole.shape[axis] if at == axis else 0) for at in (0, 1)]
        return np.pad(whole, missing)
