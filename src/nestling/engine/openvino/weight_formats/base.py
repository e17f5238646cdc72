"""The interface of weight formats: arrays that hold a matrix, filled from float32 rows, and the product as graph nodes.

A format knows no files and no tensor names. The first axis of its arrays is that of the matrix's rows: slices of it
stack matrices, and are filled chunk by chunk on several threads.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nestling.engine.openvino.runtime import Node
from nestling.formats.quant_types import QuantType
from nestling.vectors import Floats

CHUNK_ROWS = 64
"""Rows converted at a time: at this family's widths they fit the L2 cache."""
Arrays = tuple[NDArray[Any], ...]


@dataclass(frozen=True, slots=True)
class Space:
    """Shape and type of one array."""

    shape: tuple[int, ...]
    kind: np.dtype[Any]

    @property
    def size_bytes(self) -> int:
        """Bytes of the array."""
        return prod(self.shape) * self.kind.itemsize


@dataclass(frozen=True, slots=True)
class Factor:
    """The left side of products: activations as a node, and the scales (N, 1) of the product's rows, if any."""

    rows: Node
    scale: Node | None = None


class WeightFormat(Protocol):
    """One way to hold and multiply a matrix of (rows, width)."""

    @property
    def name(self) -> str:
        """The format with its parameters; part of the weight cache's key."""
        ...

    def spaces(self, rows: int, width: int) -> Sequence[Space]:
        """The arrays of a matrix."""
        ...

    def copy(self, raw: NDArray[np.uint8], kind: QuantType, into: Arrays) -> bool:
        """Copy stored rows unchanged; False where the format differs from the stored one."""
        ...

    def fill(self, rows: Floats, into: Arrays) -> None:
        """Convert rows; NaN and infinity must reach the products."""
        ...

    def factor(self, x: Node) -> Factor:
        """Activations in the form that this format multiplies; one factor serves several products."""
        ...

    def times(self, x: Factor, matrix: Arrays) -> Node:
        """The product: (N, width) -> (N, rows). The arrays are not copied."""
        ...


def empty(spaces: Sequence[Space]) -> Arrays:
    """Uninitialised memory."""
    return tuple(np.empty(one.shape, one.kind) for one in spaces)


def part(arrays: Arrays, start: int, stop: int) -> Arrays:
    """Some of the matrix's rows, as views."""
    return tuple(one[start:stop] for one in arrays)


def in_chunks(one: Callable[[int, int], None], count: int, threads: int) -> None:
    """Call `one(start, stop)` for all rows, a chunk at a time, on several threads."""
    starts = range(0, count, CHUNK_ROWS)
    with ThreadPoolExecutor(threads) as pool:
        deque(pool.map(one, starts, [min(count, start + CHUNK_ROWS) for start in starts]), maxlen=0)
