"""Token ids as the graph's inputs: texts side by side, or one long text piece by piece. Pure functions of lengths.

What the inputs mean stands in `graph`; here are their values.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]
PAST_STEP = 1024
"""The earlier tokens that a piece is handed are padded to a multiple of this, so that the graph meets few shapes."""
SMALLEST_PIECE = 16
NEVER = np.iinfo(np.int32).max
"""The place of a key that no query sees: the largest, since OpenVINO computes int64 in 32 bits on a CPU."""


@dataclass(frozen=True, slots=True)
class Packed:
    """The graph's inputs after the embedding rows, in its order."""

    positions: Index
    past: NDArray[np.float32]
    queries: Index
    keys: Index
    query_places: Index
    key_places: Index
    rows: Index

    def inputs(self) -> list[NDArray[Any]]:
        """The arrays, in the graph's order."""
        return [getattr(self, one.name) for one in fields(self)]

    def in_room(self, rows: int) -> Self:
        """The same with rows of padding at the end, which no text has and no row sees."""
        missing = (0, rows - len(self.rows))
        return replace(self, positions=np.pad(self.positions, missing), rows=np.pad(self.rows, missing))


def room(rows: int) -> int:
    """How many rows, or places of a text, the graph is given for so many: an eighth more at most, or three.

    For every number that it meets for the first time the plugin makes kernels, which takes longer than embedding a
    short text, and keeps them. Its int8 kernels work on 64 rows at a time anyway.
    """
    step = min(64, max(4, 1 << max(0, rows.bit_length() - 4)))
    return -(-rows // step) * step


def side_by_side(lengths: Sequence[int], *, memory: tuple[int, ...]) -> Packed:
    """Texts of these lengths, one after another; `memory` is the shape of one token's keys and values.

    Their rectangle has `room` for the longest.
    """
    counts = np.asarray(lengths, np.int64)
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
    places = np.arange(room(int(counts.max())))
    real = places[None] < counts[:, None]
    rectangle = np.where(real, starts[:, None] + places[None], 0)
    positions = np.broadcast_to(places, real.shape)[real].copy()
    nothing = np.empty((0, *memory), np.float32)
    return Packed(positions, nothing, rectangle, rectangle, places, places, np.flatnonzero(real))


def piece(start: int, stop: int, *, past: NDArray[np.float32]) -> Packed:
    """Tokens [start, stop) of one text; `past` (longest, ...) holds the keys and values of those before `start`.

    As much of `past` is handed on as a multiple of `PAST_STEP` needs; what lies beyond `start` in it is seen by none.
    """
    handed = min(len(past), -(-start // PAST_STEP) * PAST_STEP)
    own = np.arange(stop - start)
    earlier = np.arange(handed)
    key_places = np.concatenate((np.where(earlier < start, earlier, NEVER), own + start))
    return Packed(
        own + start, past[:handed], own[None], np.arange(handed + len(own))[None], own + start, key_places, own
    )


def pieces(length: int, *, heads: int, most_tokens: int, score_bytes: int) -> Iterator[tuple[int, int]]:
    """Cut a long text: yields (start, stop) of pieces of one power of two, at most `most_tokens`, and a rest.

    The last piece's attention scores, heads x piece x length in float32, stay below `score_bytes`, unless a piece of
    `SMALLEST_PIECE` tokens already has more.
    """
    fitting = min(most_tokens, score_bytes // (4 * heads * length))
    size = max(SMALLEST_PIECE, 1 << (max(1, fitting).bit_length() - 1))
    for start in range(0, length, size):
        yield start, min(length, start + size)
