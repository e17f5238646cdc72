"""A GGUF file's text tower as an OpenVINO graph: no language-model head, hidden states out.

Texts are packed without padding: matrix products and norms run on real tokens only. Attention alone is padded to
(texts x longest), gathered by an index and scattered back; it is causal, so padding on the right never reaches a real
token. A text longer than a batch is prefilled in chunks, each with the KV cache of those before it. To hold the KV
cache of a few layers at a time, layers are in groups and one group runs all chunks before the next; inactive groups
receive zero rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Self

import numpy as np

from nestling.engine.hyperparameters import Hyperparameters
from nestling.engine.lora_lanes import StackedAdapters
from nestling.engine.openvino.layers import Products
from nestling.engine.openvino.nodes import integer, ints
from nestling.engine.openvino.runtime import Node, op, ov

END = np.iinfo(np.int32).max
"""An end beyond any row; int32, since OpenVINO computes int64 in 32 bits on CPUs."""


@dataclass(frozen=True)
class _Inputs:
    """The graph's inputs, for N tokens in B texts that all attend to P past tokens too.

    For attention, each of the K key heads is a separate text, with the query heads that share it; head k of token n
    is row n K + k. `states` (N, D): token embeddings. `cos_sin` (N, d): cosines and sines of the rotary angles.
    `queries` (B K, T): the row at each position of each text (any row for padding). `keys` (B K, S): the same, over
    past and new tokens together. `query_places` (T,), `key_places` (S,): the position of each column in its text; a
    query attends to keys at its own position and earlier. `rows` (N, K): the index of each row in the flattened
    `queries`. `adapter` (N,), with LoRA adapters: the index of each row's adapter. `working` (G,), with G > 1 groups of
    layers: 1 for the active groups, which are adjacent, 0 for the others. `past`: each layer's KV cache, keys and
    values of (P, K, d); empty for an inactive layer.
    """

    states: Node
    cos_sin: Node
    queries: Node
    keys: Node
    query_places: Node
    key_places: Node
    rows: Node
    adapter: Node | None
    working: Node | None
    past: list[Node]

    @classmethod
    def of(cls, shape: Hyperparameters, *, adapted: bool, grouped: bool, kept: ov.Type) -> Self:
        return cls(
            states=op.parameter([-1, shape.hidden], np.float32),
            cos_sin=op.parameter([-1, shape.head_dim], np.float32),
            queries=op.parameter([-1, -1], np.int64),
            keys=op.parameter([-1, -1], np.int64),
            query_places=op.parameter([-1], np.int64),
            key_places=op.parameter([-1], np.int64),
            rows=op.parameter([-1, shape.kv_heads], np.int64),
            adapter=op.parameter([-1], np.int64) if adapted else None,
            working=op.parameter([-1], np.int64) if grouped else None,
            past=[op.parameter([-1, shape.kv_heads, shape.head_dim], kept) for _ in range(2 * shape.layers)],
        )

    def all(self) -> list[Node]:
        *single, _ = (getattr(self, one.name) for one in fields(self))
        return [*(one for one in single if one is not None), *self.past]


@dataclass(frozen=True)
class _Share:
    """One layer group's view of the inputs: all rows, or none when it is inactive."""

    inputs: _Inputs
    shape: Hyperparameters
    place: int

    @cached_property
    def rows(self) -> Node:
        """See `_Inputs.rows`; likewise the next two."""
        return self._cut(self.inputs.rows)

    @cached_property
    def queries(self) -> Node:
        return self._cut(self.inputs.queries)

    @cached_property
    def keys(self) -> Node:
        return self._cut(self.inputs.keys)

    def past(self, layer: int) -> list[Node]:
        """A layer's KV cache: keys and values of the past tokens."""
        return self.inputs.past[2 * layer : 2 * layer + 2]

    @cached_property
    def turn(self) -> tuple[Node, Node]:
        """Cosine and sine of every row's rotary angles: two of (N, 1, d/2)."""
        cos, sin = op.split(op.unsqueeze(self._cut(self.inputs.cos_sin), integer(1)), integer(2), 2).outputs()
        return cos, sin

    def gates(self, adapters: StackedAdapters) -> dict[int, Node]:
        """LoRA gates of every row, by the number of stacked matrices: (N, matrices * width)."""
        assert self.inputs.adapter is not None
        table, chosen = adapters.gates(), self._cut(self.inputs.adapter)
        return {count: op.gather(op.constant(np.tile(table, count)), chosen, integer(0)) for count in (1, 3)}

    def entering(self, x: Node | None) -> tuple[Node, Node | None]:
        """(input of this group, final rows that bypass it), given the output `x` of the group before.

        The first active group takes the states.
        """
        if x is None:
            return self._cut(self.inputs.states), None
        before = self._working(self.place - 1)
        fresh = _rows(self.inputs.states, ints(0), op.multiply(self._end, op.subtract(ints(1), before)))
        return op.concat([self._cut(x), fresh], 0), _rows(x, self._end, ints(END))

    @cached_property
    def _end(self) -> Node:
        return op.multiply(self._working(self.place), ints(END))

    def _working(self, place: int) -> Node:
        assert self.inputs.working is not None
        return op.gather(self.inputs.working, ints(place), integer(0))

    def _cut(self, x: Node) -> Node:
        return x if self.inputs.working is None else _rows(x, ints(0), self._end)


def _rows(x: Node, start: Node, stop: Node) -> Node:
    return op.slice(x, start, stop, ints(1), ints(0))


def build(b: Products, *, groups: Sequence[range], kept: ov.Type = ov.Type.f32) -> ov.Model:
    """Build the tower's graph; `packing.Packed` holds its index inputs, in their order.

    `groups`: layers that run together. With adapters one more input follows, each row's adapter, (N,) int64; with
    several groups another, which are active, (G,) int64; then each layer's KV cache in type `kept`.

    Outputs for N tokens: hidden states (N, D), normalised if the last group is active; then each layer's new keys and
    values in type `kept`, (N, kv heads, d) each, empty for an inactive layer. In a rotated arithmetic states come in
    and go out rotated, and the final norm's scales are left to the caller.
    """
    inputs = _Inputs.of(b.shape, adapted=b.adapters is not None, grouped=len(groups) > 1, kept=kept)
    mask = _mask(inputs)
    x, out, memory = None, [], []
    for place, layers in enumerate(groups):
        share = _Share(inputs, b.shape, place)
        x, left = share.entering(x)
        out += [left] if left else []
        if b.adapters is not None:
            b = replace(b, gates=share.gates(b.adapters))
        for layer in layers:
            x, *new = _layer(b, x, share, mask, layer)
            memory += [op.convert(part, kept) for part in new]
    out.append(b.norm(x, "output_norm.weight"))
    states = op.concat(out, 0) if len(out) > 1 else out[0]
    return ov.Model([node.output(0) for node in (states, *memory)], inputs.all(), "nestling")


def _layer(b: Products, x: Node, share: _Share, mask: Node, layer: int) -> tuple[Node, Node, Node]:
    """One layer, and its new keys and values: (N, D) -> (N, D) and two of (N, kv heads, d)."""
    at = f"blk.{layer}."
    q, k, v = _projections(b, b.norm(x, at + "attn_norm.weight"), at, share.turn)
    before = (op.convert(past, "f32") for past in share.past(layer))
    sides = [op.concat(pair, 0) for pair in zip(before, (k, v), strict=True)]
    x = op.add(x, b.linear(_attention(q, sides, share, mask), at + "attn_output.weight"))
    return op.add(x, _feed_forward(b, b.norm(x, at + "ffn_norm.weight"), at)), k, v


def _feed_forward(b: Products, y: Node, at: str) -> Node:
    gate, up = b.each(y, at + "ffn_gate.weight", at + "ffn_up.weight")
    return b.linear(op.multiply(op.swish(gate), up), at + "ffn_down.weight")


def _projections(b: Products, y: Node, at: str, turn: tuple[Node, Node]) -> tuple[Node, Node, Node]:
    """Queries, keys and values, rotary positions applied: (N, D) -> (N, heads, d) and two of (N, kv heads, d)."""
    shape = b.shape
    flat = op.add(b.linear(y, *(f"{at}attn_{n}.weight" for n in "qkv")), b.bias(*(f"{at}attn_{n}.bias" for n in "qkv")))
    heads = op.reshape(flat, ints(0, shape.heads + 2 * shape.kv_heads, shape.head_dim), special_zero=True)
    turned, v = op.variadic_split(heads, integer(1), ints(shape.heads + shape.kv_heads, shape.kv_heads)).outputs()
    q, k = op.variadic_split(_rope(turned, turn), integer(1), ints(shape.heads, shape.kv_heads)).outputs()
    return q, k, v


def _attention(q: Node, sides: Sequence[Node], share: _Share, mask: Node) -> Node:
    """Causal grouped-query attention over each text and its past: -> (N, D).

    Key heads are the batch axis and the query heads that share them the head axis, so that no key is copied.
    """
    shape = share.shape
    shared = shape.heads // shape.kv_heads
    keys, values = (_to_rectangle(side, share.keys, 1, shape.head_dim) for side in sides)
    queries = _to_rectangle(q, share.queries, shared, shape.head_dim)
    mixed = op.scaled_dot_product_attention(queries, keys, values, mask, causal=False)
    flat = op.reshape(op.transpose(mixed, ints(0, 2, 1, 3)), ints(-1, shared * shape.head_dim), special_zero=False)
    return op.reshape(op.gather(flat, share.rows, integer(0)), ints(-1, shape.hidden), special_zero=False)


def _mask(inputs: _Inputs) -> Node:
    """The additive attention mask, 0 or -inf: positions (T,), (S,) -> (1, 1, T, S)."""
    keys, queries = op.unsqueeze(inputs.key_places, integer(0)), op.unsqueeze(inputs.query_places, integer(1))
    seen = op.less_equal(keys, queries)
    added = op.select(seen, op.constant(np.float32(0)), op.constant(np.float32(-np.inf)))
    return op.unsqueeze(added, ints(0, 1))


def _to_rectangle(part: Node, rectangle: Node, heads: int, width: int) -> Node:
    """Gather rows into padded texts: (N, K * heads, d) -> (B K, heads, T, d)."""
    rows = op.reshape(part, ints(-1, heads, width), special_zero=False)
    return op.transpose(op.gather(rows, rectangle, integer(0)), ints(0, 2, 1, 3))


def _rope(x: Node, turn: tuple[Node, Node]) -> Node:
    """Rotate each pair (i, i + d/2) of a head: (N, H, d) -> (N, H, d)."""
    cos, sin = turn
    a, b = op.split(x, integer(2), 2).outputs()
    first = op.subtract(op.multiply(a, cos), op.multiply(b, sin))
    return op.concat([first, op.add(op.multiply(b, cos), op.multiply(a, sin))], -1)
