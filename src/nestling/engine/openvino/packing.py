"""Token ids as the graph's inputs: texts side by side, or one long text piece by piece. Pure functions of lengths.

What the inputs mean stands in `graph`; here are their values.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Self

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]
PAST_STEP = 1024
"""The earlier tokens that a piece is handed are padded to a multiple of this at least: the graph meets few shapes."""
SMALLEST_PIECE = 16
NEVER = np.iinfo(np.int32).max
"""The place of a key that no query sees: the largest, since OpenVINO computes int64 in 32 bits on a CPU."""


@dataclass(frozen=True, slots=True)
class Packed:
    """The graph's index inputs, in its order."""

    queries: Index
    keys: Index
    query_places: Index
    key_places: Index
    rows: Index

    def inputs(self) -> list[Index]:
        """The arrays, in the graph's order."""
        return [getattr(self, one.name) for one in fields(self)]

    def in_room(self, rows: int) -> Self:
        """The same with rows of padding at the end, which no text has and no row sees."""
        return replace(self, rows=np.pad(self.rows, ((0, rows - len(self.rows)), (0, 0))))


def room(rows: int) -> int:
    """How many rows, or places of a text, the graph is given for so many: an eighth more at most, or three.

    For every number that it meets for the first time the plugin makes kernels, which takes longer than embedding a
    short text, and keeps them. Its int8 kernels work on 64 rows at a time anyway.
    """
    step = min(64, max(4, 1 << max(0, rows.bit_length() - 4)))
    return -(-rows // step) * step


def side_by_side(lengths: list[int], *, heads: int) -> Packed:
    """Texts of these lengths, one after another, each with so many heads of keys.

    Their rectangle has `room` for the longest.
    """
    counts = np.asarray(lengths, np.int64)
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
    places = np.arange(room(int(counts.max())))
    real = places[None] < counts[:, None]
    rectangle = _by_head(np.where(real, starts[:, None] + places[None], 0), heads)
    return Packed(rectangle, rectangle, places, places, _back(len(lengths), len(places), heads)[real])


def piece(start: int, stop: int, *, heads: int) -> Packed:
    """Tokens [start, stop) of one text, handed `handed(start)` earlier ones; what lies beyond `start` none sees."""
    own, earlier = np.arange(stop - start), np.arange(handed(start))
    key_places = np.concatenate((np.where(earlier < start, earlier, NEVER), own + start))
    keys = _by_head(np.arange(len(key_places))[None], heads)
    return Packed(_by_head(own[None], heads), keys, own + start, key_places, _back(1, len(own), heads)[0])


def handed(start: int) -> int:
    """How many places of earlier tokens a piece that starts here is handed: an eighth more at most, from 8,192 on."""
    step = max(PAST_STEP, 1 << max(0, (start - 1).bit_length() - 4)) if start else 1
    return -(-start // step) * step


def pieces(length: int, *, heads: int, most_tokens: int, score_bytes: int) -> Iterator[tuple[int, int]]:
    """Cut a long text: yields (start, stop) of pieces of powers of two, at most `most_tokens`, and a rest.

    A piece's attention scores, heads x piece x what it sees in float32, stay below `score_bytes`, unless a piece of
    `SMALLEST_PIECE` tokens already has more.
    """
    start = 0
    while start < length:
        size = 1 << (most_tokens.bit_length() - 1)
        while size > SMALLEST_PIECE and 4 * heads * size * (handed(start) + size) > score_bytes:
            size //= 2
        yield start, min(length, start + size)
        start += size


def layer_groups(layers: int, *, layer_bytes: int, most_bytes: int) -> list[range]:
    """Layers in few groups of like size, such that what a group remembers, so much a layer, is within `most_bytes`."""
    count = -(-layers // max(1, most_bytes // layer_bytes))
    ends = [layers * place // count for place in range(count + 1)]
    return [range(*pair) for pair in pairwise(ends)]


def _by_head(rectangle: Index, heads: int) -> Index:
    """Rows of tokens to rows of their heads, each head a text of its own: (B, T) -> (B * heads, T)."""
    apart = rectangle[:, None] * heads + np.arange(heads)[None, :, None]
    return apart.reshape(-1, rectangle.shape[1])


def _back(texts: int, places: int, heads: int) -> Index:
    """Where each place's heads lie in a flattened rectangle of `_by_head`: -> (texts, places, heads)."""
    return np.arange(texts * heads * places).reshape(texts, heads, places).swapaxes(1, 2)
