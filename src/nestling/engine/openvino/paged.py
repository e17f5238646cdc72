"""Attention in the plugin's paged operation, which takes texts one after another and computes no masked score.

It writes new keys and values into pages that belong to the caller, and reads the past from them: nothing is padded,
gathered or copied, and a chunk of a long text may have as many tokens as a batch. Only for bfloat16, in which it was
measured (`docs/decisions/019`). The operation is not part of OpenVINO's public interface.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from nestling.engine.hyperparameters import Hyperparameters
from nestling.engine.openvino.attention import Feed, Index
from nestling.engine.openvino.nodes import ints
from nestling.engine.openvino.runtime import Node, op, ov, paged_attention

PAGE = 32
"""Tokens of a page: the only size that the plugin takes."""
MOST_PADDING = 64
"""More rows than this are never added to a chunk (`packing.bucket`)."""


@dataclass(frozen=True)
class PagedNodes:
    """For N rows of B texts. Each of the K key heads is a separate sequence: all texts of the first head come first.

    That keeps one head's keys and values in the processor's cache until the next one's turn. `index`: tokens in each
    sequence's past (B K,); where its rows start, and their end (B K + 1,); the pages of each sequence, one sequence
    after another; where they start, and their end (B K + 1,); the longest sequence with its past (). `pages`: each
    layer's keys and values, (pages, 1, PAGE, d); empty for an inactive layer.
    """

    shape: Hyperparameters
    index: Sequence[Node]
    pages: Sequence[Node]
    take: Callable[[Node], Node] = lambda x: x

    @classmethod
    def of(cls, shape: Hyperparameters) -> Self:
        """The nodes of a new graph."""
        index = [op.parameter(size, np.int32) for size in ([-1], [-1], [-1], [-1], [])]
        page = [-1, 1, PAGE, shape.head_dim]
        return cls(shape, index, [op.parameter(page, ov.Type.bf16) for _ in range(2 * shape.layers)])

    @property
    def inputs(self) -> list[Node]:
        """See `AttentionNodes`, as for all methods; the index inputs in the order of `Pages`."""
        return [*self.index, *self.pages]

    def cut(self, take: Callable[[Node], Node]) -> Self:
        """The plugin skips attention without rows, but then its result has the shape of the run before: it is cut."""
        return replace(self, take=take)

    def mixed(self, q: Node, k: Node, v: Node, layer: int) -> tuple[Node, Sequence[Node]]:
        """Nothing is kept outside of the pages."""
        heads, width = self.shape.kv_heads, self.shape.head_dim
        sizes = (width * self.shape.heads // heads, width, width)
        rows = [_by_head(part, heads, size) for part, size in zip((q, k, v), sizes, strict=True)]
        pages = self.pages[2 * layer : 2 * layer + 2]
        mixed = self.take(paged_attention([*rows, *pages], list(self.index), head_dim=width))
        apart = op.reshape(mixed, ints(heads, -1, sizes[0]), special_zero=False)
        return op.reshape(op.transpose(apart, ints(1, 0, 2)), ints(-1, self.shape.hidden), special_zero=False), []


@dataclass(frozen=True, slots=True)
class Pages:
    """The index inputs of a run, for sequences of a past and of new rows."""

    past: Sequence[int]
    rows: Sequence[int]
    pages: Sequence[NDArray[np.integer]]
    longest: int

    def inputs(self) -> list[Index]:
        """In the graph's order."""
        starts, begins = (np.cumsum([0, *counts]) for counts in (self.rows, [len(one) for one in self.pages]))
        arrays = (self.past, starts, np.concatenate(self.pages), begins, self.longest)
        return [np.array(one, np.int32) for one in arrays]


@dataclass(frozen=True)
class Paged:
    """See `Attention`."""

    kept: ClassVar[ov.Type] = ov.Type.bf16
    score_bytes: ClassVar[float] = inf
    """The kernel holds the scores of 32 tokens a thread."""
    spare_pairs: ClassVar[float] = inf
    cost: ClassVar[float] = 2.7
    """Attending to 7,000 past tokens takes as long as a token's matrix products."""

    shape: Hyperparameters

    def nodes(self) -> PagedNodes:
        """See `Attention`, as for all methods."""
        return PagedNodes.of(self.shape)

    def batch(self, lengths: Sequence[int], rows: int) -> Feed:
        """Padding rows follow the last text, where no real row sees them. All layers share the pages."""
        sizes = [*lengths[:-1], lengths[-1] + rows - sum(lengths)] * self.shape.kv_heads
        ends = np.cumsum([pages_of(size) for size in sizes])
        pages = [np.arange(end - pages_of(size), end) for end, size in zip(ends, sizes, strict=True)]
        index = Pages([0] * len(sizes), sizes, pages, max(sizes)).inputs()
        return [*index, *[self.room(int(ends[-1])) for _ in "kv"] * self.shape.layers]

    def text(self, length: int, layers: range) -> "PagedText":
        """Pages of these layers; a layer's first ones are those of the first key head."""
        pages = pages_of(length + MOST_PADDING)
        count = self.shape.kv_heads * pages
        return PagedText(self, layers, pages, [self.room(count) for _ in range(2 * len(layers))])

    def room(self, pages: int) -> ov.Tensor:
        """Uninitialised pages."""
        return ov.Tensor(ov.Type.bf16, ov.Shape([pages, 1, PAGE, self.shape.head_dim]))


@dataclass(frozen=True)
class PagedText:
    """See `LongText`. `pages`: those of one key head in one layer."""

    form: Paged
    layers: range
    pages: int
    sides: Sequence[ov.Tensor]

    def feed(self, start: int, stop: int, rows: int) -> Feed:
        """The longest sequence is always the whole text, so that the kernel's buffers are made once."""
        del stop
        heads, used = range(self.form.shape.kv_heads), np.arange(pages_of(start + rows))
        pages = [head * self.pages + used for head in heads]
        index = Pages([start for _ in heads], [rows for _ in heads], pages, self.pages * PAGE).inputs()
        sides = [self.form.room(0)] * (2 * self.form.shape.layers)
        sides[2 * self.layers.start : 2 * self.layers.stop] = self.sides
        return [*index, *sides]

    def keep(self, start: int, stop: int, request: ov.InferRequest) -> None:
        """Nothing to do: the run has written the pages."""


def pages_of(tokens: int) -> int:
    """Pages for so many tokens."""
    return -(-tokens // PAGE)


def _by_head(part: Node, heads: int, size: int) -> Node:
    """All rows of the first key head, then those of the second: (N, K * n, d) -> (K N, n d), `size` = n d."""
    apart = op.transpose(op.reshape(part, ints(-1, heads, size), special_zero=False), ints(1, 0, 2))
    return op.reshape(apart, ints(-1, size), special_zero=False)
