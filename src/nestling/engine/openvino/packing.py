"""Index inputs of the graph: a batch of texts, or one prefill chunk of a long text. Pure functions of lengths.

`text_graph._Inputs` says what the inputs mean.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Self

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]
PAST_STEP = 1024
"""A chunk's past is padded to a multiple of at least this, so that the graph compiles few shapes."""
SMALLEST_PIECE = 16
NEVER = np.iinfo(np.int32).max
"""The position of padding keys, beyond every query's. The largest int32: OpenVINO computes int64 in 32 bits on CPUs."""


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

    def padded(self, rows: int) -> Self:
        """The same, with padding rows appended up to `rows`; no real row attends to them."""
        return replace(self, rows=np.pad(self.rows, ((0, rows - len(self.rows)), (0, 0))))


def bucket(rows: int) -> int:
    """The bucket of a number of rows (or of a text's length): padded by at most an eighth, or by three.

    The plugin compiles and caches kernels for each new shape, which takes longer than embedding a short text. Its int8
    kernels work on 64 rows at a time anyway.
    """
    step = min(64, max(4, 1 << max(0, rows.bit_length() - 4)))
    return -(-rows // step) * step


def side_by_side(lengths: list[int], *, heads: int) -> Packed:
    """Pack texts of these lengths, each with `heads` key heads.

    For attention they are padded to the `bucket` of the longest.
    """
    counts = np.asarray(lengths, np.int64)
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
    places = np.arange(bucket(int(counts.max())))
    real = places[None] < counts[:, None]
    rectangle = _by_head(np.where(real, starts[:, None] + places[None], 0), heads)
    return Packed(rectangle, rectangle, places, places, _back(len(lengths), len(places), heads)[real])


def piece(start: int, stop: int, *, heads: int) -> Packed:
    """Prefill chunk [start, stop) of one text, with a past padded to `padded_past(start)`; the padding is masked."""
    own, earlier = np.arange(stop - start), np.arange(padded_past(start))
    key_places = np.concatenate((np.where(earlier < start, earlier, NEVER), own + start))
    keys = _by_head(np.arange(len(key_places))[None], heads)
    return Packed(_by_head(own[None], heads), keys, own + start, key_places, _back(1, len(own), heads)[0])


def padded_past(start: int) -> int:
    """Length of the padded past of a chunk that starts here: from 8,192 on, padded by at most an eighth."""
    step = max(PAST_STEP, 1 << max(0, (start - 1).bit_length() - 4)) if start else 1
    return -(-start // step) * step


@dataclass(frozen=True, slots=True)
class PieceLimits:
    """What bounds a prefill chunk: its tokens (a power of two), bytes of its float32 attention scores, and its work.

    Work is counted in tokens without a past: a token costs one, and one more for each `past_work` tokens before it.
    """

    tokens: int
    score_bytes: float
    work: float
    past_work: float

    def work_of(self, size: int, start: int) -> float:
        """The work of a chunk of `size` tokens that starts here."""
        return size * (1 + start / self.past_work)

    def allow(self, size: int, start: int, heads: int) -> bool:
        """Whether a chunk stays within all limits; its scores are heads x size x (past + size)."""
        scores = 4 * heads * size * (padded_past(start) + size)
        return scores <= self.score_bytes and self.work_of(size, start) <= self.work


def pieces(length: int, *, heads: int, limits: PieceLimits) -> Iterator[tuple[int, int]]:
    """Split a long text into prefill chunks within the limits, or of `SMALLEST_PIECE` tokens: yields (start, stop)."""
    start = 0
    while start < length:
        size = 1 << (limits.tokens.bit_length() - 1)
        while size > SMALLEST_PIECE and not limits.allow(size, start, heads):
            size //= 2
        yield start, min(length, start + size)
        start += size


def layer_groups(layers: int, *, layer_bytes: int, most_bytes: int) -> list[range]:
    """Split layers into as few groups of similar size as keep each group's KV cache within `most_bytes`."""
    count = -(-layers // max(1, most_bytes // layer_bytes))
    ends = [layers * place // count for place in range(count + 1)]
    return [range(*pair) for pair in pairwise(ends)]


def _by_head(rectangle: Index, heads: int) -> Index:
    """Token rows to head rows, each head as a separate text: (B, T) -> (B * heads, T)."""
    apart = rectangle[:, None] * heads + np.arange(heads)[None, :, None]
    return apart.reshape(-1, rectangle.shape[1])


def _back(texts: int, places: int, heads: int) -> Index:
    """Index of each place's heads in a flattened rectangle of `_by_head`: -> (texts, places, heads)."""
    return np.arange(texts * heads * places).reshape(texts, heads, places).swapaxes(1, 2)
