"""Attention over rectangles of texts by length, in the plugin's fused kernel for matrix product, softmax and product.

Rows are gathered into (texts x longest) and scattered back. Causal: padding on the right never reaches a real token.
The past is copied for every chunk. Runs on every processor and in every precision.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from nestling._util.memory import give_back_freed
from nestling.engine import batching
from nestling.engine.hyperparameters import Hyperparameters
from nestling.engine.openvino import packing
from nestling.engine.openvino.attention import Feed
from nestling.engine.openvino.nodes import integer, ints
from nestling.engine.openvino.runtime import Node, op, ov
from nestling.vectors import Floats


@dataclass(frozen=True)
class RectangleNodes:
    """For N tokens in B texts that all attend to P past tokens too.

    Each of the K key heads is a separate text, with the query heads that share it; head k of token n is row n K + k.
    `queries` (B K, T): the row at each position of each text (any row for padding). `keys` (B K, S): the same, over
    past and new tokens together. `query_places` (T,), `key_places` (S,): the position of each column in its text; a
    query attends to keys at its own position and earlier. `rows` (N, K): the index of each row in the flattened
    `queries`. `past`: each layer's keys and values of (P, K, d) in type `kept`; empty for an inactive layer.
    """

    shape: Hyperparameters
    kept: ov.Type
    index: Sequence[Node]
    past: Sequence[Node]
    mask: Node
    taken: Sequence[Node]

    @classmethod
    def of(cls, shape: Hyperparameters, kept: ov.Type) -> Self:
        """The nodes of a new graph."""
        widths = ([-1, -1], [-1, -1], [-1], [-1], [-1, shape.kv_heads])
        index = [op.parameter(width, np.int64) for width in widths]
        past = [op.parameter([-1, shape.kv_heads, shape.head_dim], kept) for _ in range(2 * shape.layers)]
        return cls(shape, kept, index, past, _mask(*index[2:4]), index)

    @property
    def inputs(self) -> list[Node]:
        """See `AttentionNodes`, as for all methods; the index inputs in the order of `packing.Packed`."""
        return [*self.index, *self.past]

    def cut(self, take: Callable[[Node], Node]) -> Self:
        """Only gathers' indices are cut: without them, nothing is left to attend."""
        queries, keys, *places, rows = self.index
        return replace(self, taken=[take(queries), take(keys), *places, take(rows)])

    def mixed(self, q: Node, k: Node, v: Node, layer: int) -> tuple[Node, Sequence[Node]]:
        """Key heads are the batch axis and the query heads that share them the head axis: no key is copied."""
        shape, (query_rows, key_rows, *_, rows) = self.shape, self.taken
        shared = shape.heads // shape.kv_heads
        before = (op.convert(past, "f32") for past in self.past[2 * layer : 2 * layer + 2])
        sides = [op.concat(pair, 0) for pair in zip(before, (k, v), strict=True)]
        keys, values = (_to_rectangle(side, key_rows, 1, shape.head_dim) for side in sides)
        queries = _to_rectangle(q, query_rows, shared, shape.head_dim)
        mixed = op.scaled_dot_product_attention(queries, keys, values, self.mask, causal=False)
        flat = op.reshape(op.transpose(mixed, ints(0, 2, 1, 3)), ints(-1, shared * shape.head_dim), special_zero=False)
        back = op.reshape(op.gather(flat, rows, integer(0)), ints(-1, shape.hidden), special_zero=False)
        return back, [op.convert(part, self.kept) for part in (k, v)]


@dataclass(frozen=True)
class Rectangles:
    """See `Attention`."""

    score_bytes: ClassVar[float] = 136 << 20
    """The kernel holds all scores: with 16 heads, 64 tokens that attend to 32,768."""
    spare_pairs: ClassVar[float] = batching.SPARE_PAIRS
    cost: ClassVar[float] = 2.3
    """Attending to 8,192 past tokens takes as long as a token's matrix products."""

    shape: Hyperparameters
    kept: ov.Type = ov.Type.f32

    def nodes(self) -> RectangleNodes:
        """See `Attention`, as for all methods."""
        return RectangleNodes.of(self.shape, self.kept)

    def batch(self, lengths: Sequence[int], rows: int) -> Feed:
        """Without a past."""
        packed = packing.side_by_side(list(lengths), heads=self.shape.kv_heads).padded(rows)
        return [*packed.inputs(), *self.nothing()]

    def text(self, length: int, layers: range) -> "RectangleText":
        """Keys and values of these layers, in two arrays a layer."""
        size = packing.padded_past(length), self.shape.kv_heads, self.shape.head_dim
        return RectangleText(self, layers, [np.zeros(size, self.kept.to_dtype()) for _ in range(2 * len(layers))])

    def nothing(self) -> list[ov.Tensor]:
        """An empty past for every layer."""
        return [self.past(np.zeros(0, self.kept.to_dtype()))] * (2 * self.shape.layers)

    def past(self, values: Floats) -> ov.Tensor:
        """Past keys or values as an input, not copied."""
        shape = (len(values), self.shape.kv_heads, self.shape.head_dim)
        return ov.Tensor(values.reshape(shape), ov.Shape(shape), self.kept)


class RectangleText:
    """See `LongText`."""

    def __init__(self, form: Rectangles, layers: range, sides: list[Floats]) -> None:
        self._form, self._layers, self._sides, self._before = form, layers, sides, 0

    def feed(self, start: int, stop: int, rows: int) -> Feed:
        """See `LongText`; the plugin's buffers grow with the past and fragment the heap, which is trimmed."""
        if (before := packing.padded_past(start)) != self._before:
            give_back_freed()
        self._before, past = before, self._form.nothing()
        past[2 * self._layers.start : 2 * self._layers.stop] = [self._form.past(one[:before]) for one in self._sides]
        return [*packing.piece(start, stop, heads=self._form.shape.kv_heads).padded(rows).inputs(), *past]

    def keep(self, start: int, stop: int, request: ov.InferRequest) -> None:
        """Copy the outputs."""
        for place, side in enumerate(self._sides, 1 + 2 * self._layers.start):
            side[start:stop] = request.get_output_tensor(place).data[: stop - start]


def _mask(query_places: Node, key_places: Node) -> Node:
    """The additive attention mask, 0 or -inf: positions (T,), (S,) -> (1, 1, T, S)."""
    seen = op.less_equal(op.unsqueeze(key_places, integer(0)), op.unsqueeze(query_places, integer(1)))
    added = op.select(seen, op.constant(np.float32(0)), op.constant(np.float32(-np.inf)))
    return op.unsqueeze(added, ints(0, 1))


def _to_rectangle(part: Node, rectangle: Node, heads: int, width: int) -> Node:
    """Gather rows into padded texts: (N, K * heads, d) -> (B K, heads, T, d)."""
    rows = op.reshape(part, ints(-1, heads, width), special_zero=False)
    return op.transpose(op.gather(rows, rectangle, integer(0)), ints(0, 2, 1, 3))
