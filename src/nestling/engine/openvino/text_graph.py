"""A GGUF file's text tower as an OpenVINO graph: no language-model head, hidden states out.

Texts are packed without padding: matrix products and norms run on real tokens only. `attention` says how tokens attend
to those before them. A text longer than a batch is prefilled in chunks, each with the KV cache of those before it. To
hold the KV cache of a few layers at a time, layers are in groups and one group runs all chunks before the next;
inactive groups receive zero rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np

from nestling.engine.hyperparameters import Hyperparameters
from nestling.engine.lora_lanes import StackedAdapters
from nestling.engine.openvino.attention import AttentionNodes
from nestling.engine.openvino.layers import Products
from nestling.engine.openvino.nodes import integer, ints
from nestling.engine.openvino.runtime import Node, op, ov

END = np.iinfo(np.int32).max
"""An end beyond any row; int32, since OpenVINO computes int64 in 32 bits on CPUs."""


@dataclass(frozen=True)
class _Inputs:
    """The graph's inputs, for N tokens.

    `states` (N, D): token embeddings. `cos_sin` (N, d): cosines and sines of the rotary angles. `adapter` (N,), with
    LoRA adapters: the index of each row's adapter. `working` (G,), with G > 1 groups of layers: 1 for the active
    groups, which are adjacent, 0 for the others.
    """

    states: Node
    cos_sin: Node
    adapter: Node | None
    working: Node | None
    attention: AttentionNodes

    @classmethod
    def of(cls, shape: Hyperparameters, attention: AttentionNodes, *, adapted: bool, grouped: bool) -> Self:
        return cls(
            states=op.parameter([-1, shape.hidden], np.float32),
            cos_sin=op.parameter([-1, shape.head_dim], np.float32),
            adapter=op.parameter([-1], np.int64) if adapted else None,
            working=op.parameter([-1], np.int64) if grouped else None,
            attention=attention,
        )

    def all(self) -> list[Node]:
        single = (self.states, self.cos_sin, self.adapter, self.working)
        return [*(one for one in single if one is not None), *self.attention.inputs]


@dataclass(frozen=True)
class _Share:
    """One layer group's view of the inputs: all rows, or none when it is inactive."""

    inputs: _Inputs
    place: int

    @cached_property
    def attention(self) -> AttentionNodes:
        """Attention of this group's rows."""
        return self.inputs.attention.cut(self._cut)

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


def build(b: Products, attention: AttentionNodes, *, groups: Sequence[range]) -> ov.Model:
    """Build the tower's graph.

    `groups`: layers that run together. Inputs: states and `cos_sin`; with adapters each row's adapter, (N,) int64; with
    several groups those that are active, (G,) int64; then attention's.

    Outputs for N tokens: hidden states (N, D), normalised if the last group is active; then what attention keeps of
    each layer. In a rotated arithmetic states come in and go out rotated, and the final norm's scales are left to the
    caller.
    """
    inputs = _Inputs.of(b.shape, attention, adapted=b.adapters is not None, grouped=len(groups) > 1)
    x, out = None, []
    memory: list[Node] = []
    for place, layers in enumerate(groups):
        share = _Share(inputs, place)
        x, left = share.entering(x)
        out += [left] if left else []
        if b.adapters is not None:
            b = replace(b, gates=share.gates(b.adapters))
        for layer in layers:
            x, new = _layer(b, x, share, layer)
            memory += new
    out.append(b.norm(x, "output_norm.weight"))
    states = op.concat(out, 0) if len(out) > 1 else out[0]
    return ov.Model([node.output(0) for node in (states, *memory)], inputs.all(), "nestling")


def _layer(b: Products, x: Node, share: _Share, layer: int) -> tuple[Node, Sequence[Node]]:
    """One layer, and what attention keeps: (N, D) -> (N, D)."""
    at = f"blk.{layer}."
    q, k, v = _projections(b, b.norm(x, at + "attn_norm.weight"), at, share.turn)
    mixed, kept = share.attention.mixed(q, k, v, layer)
    x = op.add(x, b.linear(mixed, at + "attn_output.weight"))
    return op.add(x, _feed_forward(b, b.norm(x, at + "ffn_norm.weight"), at)), kept


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


def _rope(x: Node, turn: tuple[Node, Node]) -> Node:
    """Rotate each pair (i, i + d/2) of a head: (N, H, d) -> (N, H, d)."""
    cos, sin = turn
    a, b = op.split(x, integer(2), 2).outputs()
    first = op.subtract(op.multiply(a, cos), op.multiply(b, sin))
    return op.concat([first, op.add(op.multiply(b, cos), op.multiply(a, sin))], -1)
