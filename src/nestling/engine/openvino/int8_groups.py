"""Matrices as int8 with one float32 scale per group: the format that the graph multiplies.

Any stored type is converted chunk by chunk on several threads, from the mmapped file straight into the weight store.
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
"""(least bits per weight of the file, group size), for weights and activations alike. Larger groups are faster and less
exact; the error stays far below that of the file's own quantization (`benchmarks/results/int8-cost.json`)."""
CHUNK_ROWS = 64
"""Rows converted at a time: at this family's widths they fit the L2 cache."""

Values = NDArray[np.int8]
Fill = Callable[["Groups"], None]


@dataclass(frozen=True, slots=True)
class Groups:
    """A matrix: values (rows, width / group, group), scales (rows, width / group, 1)."""

    values: Values
    scales: Floats

    @classmethod
    def empty(cls, rows: int, width: int, group: int) -> Self:
        """Uninitialised memory for a matrix of (rows, width)."""
        values = np.empty((rows, width // group, group), np.int8)
        return cls(values, np.empty((*values.shape[:2], 1), np.float32))

    def rows(self, start: int, stop: int) -> "Groups":
        """Some of the rows, as views."""
        return Groups(self.values[start:stop], self.scales[start:stop])


def group_of(file: GGUFFile) -> int:
    """The group size for all of a file's matrices: the largest allowed one that divides every width."""
    infos = matrices(file)
    bits = 8 * sum(info.size_bytes for info in infos) / sum(prod(info.shape) for info in infos)
    most = next(group for least, group in GROUPS if bits >= least)
    fitting = (group for _, group in GROUPS if group <= most and not any(info.shape[-1] % group for info in infos))
    return max(fitting, default=FINE)


def matrices(file: GGUFFile) -> list[TensorInfo]:
    """The matrices of the layers; neither embeddings nor vectors."""
    return [info for info in file.tensors.values() if len(info.shape) > 1 and info.name.startswith("blk.")]


def expand(file: GGUFFile, name: str, into: Groups, *, threads: int) -> None:
    """Convert a matrix of any type into int8 groups. With groups of 32, Q8_0 blocks are copied bit for bit."""
    raw, kind = file.raw(name), file.tensors[name].kind
    as_it_is = kind is QuantType.Q8_0 and into.values.shape[-1] == kind.block

    def one(start: int, stop: int) -> None:
        if as_it_is:
            _take_blocks(raw[start:stop], into.rows(start, stop))
        else:
            _round(as_float32(np.ascontiguousarray(raw[start:stop]), kind), into.rows(start, stop))

    _in_chunks(one, len(raw), threads)


def quantize(rows: Floats, into: Groups, *, threads: int) -> None:
    """Quantize float32 rows (R, W) into int8 groups."""
    _in_chunks(lambda start, stop: _round(rows[start:stop], into.rows(start, stop)), len(rows), threads)


def _in_chunks(one: Callable[[int, int], None], count: int, threads: int) -> None:
    starts = range(0, count, CHUNK_ROWS)
    with ThreadPoolExecutor(threads) as pool:
        deque(pool.map(one, starts, [min(count, start + CHUNK_ROWS) for start in starts]), maxlen=0)


def _take_blocks(raw: NDArray[np.uint8], into: Groups) -> None:
    """Copy Q8_0 blocks: a float16 scale and 32 int8 values each."""
    blocks = raw.reshape(len(raw), -1, QuantType.Q8_0.value.block_bytes)
    into.values[...] = blocks[..., 2:].view(np.int8)
    into.scales[...] = blocks[..., :2].copy().view(np.float16)


def _round(rows: Floats, into: Groups) -> None:
    """Symmetric absmax quantization to [-127, 127] per group; NaN and infinity propagate to the scale."""
    groups = rows.reshape(into.values.shape)
    largest = np.maximum(groups.max(-1, keepdims=True), -groups.min(-1, keepdims=True))
    into.scales[...] = largest / 127
    with np.errstate(invalid="ignore"):
        steps = groups * np.divide(127, largest, out=np.zeros_like(largest), where=largest > 0)
        into.values[...] = np.rint(steps, out=steps)
