"""Matrices as int8 in groups with a float32 scale a group: the form that the graph multiplies.

Expanding any stored type goes chunk by chunk in several threads, from the file's bytes to where the groups are to lie.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nestling.engine.weights import as_float32
from nestling.formats.gguf import GGUFFile, TensorInfo
from nestling.formats.quant_types import QuantType
from nestling.vectors import Floats

FINE = 32
GROUPS = ((6.0, FINE), (5.0, 64), (0.0, 128))
"""Values that share a scale, weights and activations alike, by the bits per weight from which on a file is in such
groups. Larger ones are faster and move a vector further: always much less than the file's own rounding has moved it
(`benchmarks/results/int8-cost.json`)."""
CHUNK_ROWS = 64
"""Rows that are expanded at once: with the widths of this family they stay in the processor's second cache."""

Values = NDArray[np.int8]
Fill = Callable[["Groups"], None]


@dataclass(frozen=True, slots=True)
class Groups:
    """A matrix: values (rows, width / group, group), scales (rows, width / group, 1)."""

    values: Values
    scales: Floats

    @classmethod
    def empty(cls, rows: int, width: int, group: int) -> Self:
        """Room for a matrix."""
        values = np.empty((rows, width // group, group), np.int8)
        return cls(values, np.empty((*values.shape[:2], 1), np.float32))

    def rows(self, start: int, stop: int) -> "Groups":
        """Some of the rows, as views."""
        return Groups(self.values[start:stop], self.scales[start:stop])


def group_of(file: GGUFFile) -> int:
    """The size of the groups of all of a file's matrices: the largest allowed that divides every width."""
    infos = matrices(file)
    bits = 8 * sum(info.size_bytes for info in infos) / sum(prod(info.shape) for info in infos)
    most = next(group for least, group in GROUPS if bits >= least)
    fitting = (group for _, group in GROUPS if group <= most and not any(info.shape[-1] % group for info in infos))
    return max(fitting, default=FINE)


def matrices(file: GGUFFile) -> list[TensorInfo]:
    """The layers' matrices."""
    return [info for info in file.tensors.values() if len(info.shape) > 1 and info.name.startswith("blk.")]


def expand(file: GGUFFile, name: str, into: Groups, *, threads: int) -> None:
    """A matrix of any type; in fine groups, Q8_0 blocks are taken as they are, bit for bit."""
    raw, kind = file.raw(name), file.tensors[name].kind
    as_it_is = kind is QuantType.Q8_0 and into.values.shape[-1] == kind.block

    def one(start: int, stop: int) -> None:
        if as_it_is:
            _take_blocks(raw[start:stop], into.rows(start, stop))
        else:
            _round(as_float32(np.ascontiguousarray(raw[start:stop]), kind), into.rows(start, stop))

    _in_chunks(one, len(raw), threads)


def quantize(rows: Floats, into: Groups, *, threads: int) -> None:
    """Rows in float32: (R, W)."""
    _in_chunks(lambda start, stop: _round(rows[start:stop], into.rows(start, stop)), len(rows), threads)


def _in_chunks(one: Callable[[int, int], None], count: int, threads: int) -> None:
    starts = range(0, count, CHUNK_ROWS)
    with ThreadPoolExecutor(threads) as pool:
        deque(pool.map(one, starts, [min(count, start + CHUNK_ROWS) for start in starts]), maxlen=0)


def _take_blocks(raw: NDArray[np.uint8], into: Groups) -> None:
    """Q8_0: a float16 scale and 32 values a block."""
    blocks = raw.reshape(len(raw), -1, QuantType.Q8_0.value.block_bytes)
    into.values[...] = blocks[..., 2:].view(np.int8)
    into.scales[...] = blocks[..., :2].copy().view(np.float16)


def _round(rows: Floats, into: Groups) -> None:
    """To the nearest of 255 steps, the last being the largest of its group; what is not finite makes such a scale."""
    groups = rows.reshape(into.values.shape)
    largest = np.maximum(groups.max(-1, keepdims=True), -groups.min(-1, keepdims=True))
    into.scales[...] = largest / 127
    with np.errstate(invalid="ignore"):
        steps = groups * np.divide(127, largest, out=np.zeros_like(largest), where=largest > 0)
        into.values[...] = np.rint(steps, out=steps)
