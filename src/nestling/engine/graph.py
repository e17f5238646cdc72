"""A GGUF file's text tower as an OpenVINO graph: no language-model head, hidden states out.

Texts are rows one after another, without padding: every matrix product and norm sees real tokens alone. Only
attention is laid out as a rectangle (texts x longest), by an index in and an index out; it is causal, so padding on
the right never reaches a real token. A text that is too long to go through at once goes in pieces: each piece is
handed the keys and values of those before it. Weights of float files stay in their type. Those of quantized files
become int8 in groups with a scale a group (`int8`); the plugin computes with them in int8 where the processor can and
expands them group by group where it cannot.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import pairwise
from typing import Self

import numpy as np

from nestling.engine import expanded, int8
from nestling.engine.adapters import Adapter
from nestling.engine.base import Shape
from nestling.engine.low_rank import SideBySide
from nestling.engine.runtime import Node, op, ov
from nestling.engine.weights import tensor
from nestling.gguf_io import GGUFFile
from nestling.quants import QuantType
from nestling.vectors import Floats


@dataclass(frozen=True)
class _Builder:
    """Makes nodes of one file. `squares` takes the sums of squares of every product's input, when it is there."""

    file: GGUFFile
    shape: Shape
    threads: int
    squares: dict[tuple[str, ...], Node] | None = None
    adapters: SideBySide | None = None
    store: expanded.Store = field(default_factory=expanded.InMemory)
    gates: dict[int, Node] = field(default_factory=dict)

    @cached_property
    def group(self) -> int:
        """Values that share a scale, where a matrix becomes int8."""
        return int8.group_of(self.file)

    def vector(self, name: str) -> Node:
        return op.constant(tensor(self.file, name))

    def linear(self, x: Node, *names: str) -> Node:
        """X times one matrix, or several stacked into one product: (N, in) -> (N, sum of out)."""
        self._observe(x, names)
        return self._product(x, names)

    def each(self, x: Node, *names: str) -> list[Node]:
        """X times several matrices, a product each, so that what follows one is fused with it: (N, in) -> (N, out)s."""
        self._observe(x, names)
        return [self._product(x, (name,)) for name in names]

    def _observe(self, x: Node, names: tuple[str, ...]) -> None:
        if self.squares is not None:
            self.squares[names] = op.reduce_sum(op.multiply(x, x), _ints(0), keep_dims=False)

    def _product(self, x: Node, names: Sequence[str]) -> Node:
        """With adapters, their rows lie below the matrices, which costs no pass of its own over `x`."""
        if self.adapters is None:
            return _times(x, self._matrix(names))
        out = sum(self.file.tensors[name].shape[0] for name in names)
        product = _times(x, self._matrix(names, self.adapters.rows(names)))
        whole, low = op.variadic_split(product, _int(1), _ints(out, len(names) * self.adapters.width)).outputs()
        gated = op.multiply(low, self.gates[len(names)])
        return op.add(whole, _times(gated, self._added(names, self.adapters.columns(names))))

    def _matrix(self, names: Sequence[str], below: Floats | None = None) -> Node:
        """Matrices one under another, and rows of the adapters below them, all in one arithmetic."""
        more = [] if below is None else [below]
        infos = [self.file.tensors[name] for name in names]
        if self._in_floats(names):
            stacked = np.concatenate([tensor(self.file, name) for name in names] + more)
            return _float_matrix(stacked, self._kinds(names))

        heights = [info.shape[0] for info in infos] + [len(rows) for rows in more]
        tops = np.cumsum([0, *heights]).tolist()

        def fill(whole: int8.Groups) -> None:
            parts = [whole.rows(top, bottom) for top, bottom in pairwise(tops)]
            for name, part in zip(names, parts, strict=False):
                int8.expand(self.file, name, part, threads=self.threads)
            for rows, part in zip(more, parts[len(names) :], strict=True):
                int8.quantize(rows, part, threads=self.threads)

        return self._int8(tops[-1], infos[0].shape[-1], fill)

    def _added(self, names: Sequence[str], columns: Floats) -> Node:
        """The other side of the adapters, in floats: what comes to it has been rounded to int8 once already."""
        kinds = self._kinds(names)
        return _float_matrix(columns, kinds if self._in_floats(names) else {QuantType.F16})

    def _int8(self, rows: int, width: int, fill: int8.Fill) -> Node:
        return _int8_matrix(self.store.matrix(rows, width, self.group, fill))

    def _kinds(self, names: Sequence[str]) -> set[QuantType]:
        return {self.file.tensors[name].kind for name in names}

    def _in_floats(self, names: Sequence[str]) -> bool:
        every_float = all(kind.is_float for kind in self._kinds(names))
        return every_float or bool(self.file.tensors[names[0]].shape[-1] % self.group)

    def norm(self, x: Node, name: str) -> Node:
        """RMSNorm in the form that the plugin knows as one operation."""
        mean = op.reduce_mean(op.multiply(x, x), op.constant(np.array([-1], np.int64)), keep_dims=True)
        root = op.sqrt(op.add(mean, op.constant(np.float32(self.shape.rms_eps))))
        return op.multiply(op.divide(x, root), self.vector(name))


def _times(x: Node, matrix: Node) -> Node:
    return op.matmul(x, matrix, transpose_a=False, transpose_b=True)


def _int8_matrix(groups: int8.Groups) -> Node:
    """Groups with their scales as one matrix, in the form that the plugin multiplies in int8; not copied."""
    values = op.convert(op.constant(groups.values, shared_memory=True), "f32")
    numbers = op.multiply(values, op.constant(groups.scales, shared_memory=True))
    return op.reshape(numbers, _ints(len(groups.values), -1), special_zero=False)


def _float_matrix(rows: Floats, kinds: set[QuantType]) -> Node:
    if kinds == {QuantType.F16}:
        return op.convert(op.constant(rows.astype(np.float16)), "f32")
    return op.constant(rows)


@dataclass(frozen=True)
class _Inputs:
    """The graph's inputs, for N tokens in B texts that all attend to P earlier tokens too.

    `states` (N, D) embedding rows; `positions` (N,) place in its text; `past` (P, layers, 2, kv heads, d) keys and
    values of earlier tokens; `queries` (B, T) row of each place of each text (any row for padding); `keys` (B, S) the
    same among the earlier tokens and the rows together; `query_places` (T,) and `key_places` (S,) which place of its
    text each column is, a key being seen by queries of its own place and later; `rows` (N,) place in the flattened
    `queries` of each row. With adapters, `adapter` (N,) is the place of each row's own.
    """

    states: Node
    positions: Node
    past: Node
    queries: Node
    keys: Node
    query_places: Node
    key_places: Node
    rows: Node
    adapter: Node | None

    @classmethod
    def of(cls, shape: Shape, *, adapted: bool) -> Self:
        return cls(
            states=op.parameter([-1, shape.hidden], np.float32),
            positions=op.parameter([-1], np.int64),
            past=op.parameter([-1, shape.layers, 2, shape.kv_heads, shape.head_dim], np.float32),
            queries=op.parameter([-1, -1], np.int64),
            keys=op.parameter([-1, -1], np.int64),
            query_places=op.parameter([-1], np.int64),
            key_places=op.parameter([-1], np.int64),
            rows=op.parameter([-1], np.int64),
            adapter=op.parameter([-1], np.int64) if adapted else None,
        )

    def all(self) -> list[Node]:
        every = (getattr(self, one.name) for one in fields(self))
        return [one for one in every if one is not None]


def build(
    file: GGUFFile, *, threads: int, store: expanded.Store | None = None, adapters: Sequence[Adapter] = ()
) -> ov.Model:
    """The tower as a graph; `packing.Packed` holds its inputs after the first, in their order.

    `store` keeps the int8 matrices; without one they are made here and now.
    With adapters there is one more input at the end: which of them each row takes, (N,) int64.

    Outputs for N tokens: (N, D) final-norm hidden states, then every layer's keys and values, each (N, kv heads, d).
    """
    side = SideBySide(adapters) if adapters else None
    return _tower(_Builder(file, Shape.of(file), threads, adapters=side, store=store or expanded.InMemory()))


def build_observed(
    file: GGUFFile, *, threads: int, adapters: Sequence[Adapter] = ()
) -> tuple[ov.Model, list[tuple[str, ...]]]:
    """The same graph with more outputs, one for every product: the sum over tokens of its input's squares, (W,).

    Also answers with the names of the matrices that share each of those outputs, in the outputs' order.
    """
    squares: dict[tuple[str, ...], Node] = {}
    model = _tower(_Builder(file, Shape.of(file), threads, squares, SideBySide(adapters) if adapters else None))
    model.add_outputs([node.output(0) for node in squares.values()])
    return model, list(squares)


def _tower(b: _Builder) -> ov.Model:
    inputs = _Inputs.of(b.shape, adapted=b.adapters is not None)
    if b.adapters is not None:
        b.gates.update(_gates(b.adapters, inputs))
    turn, mask = _angles(inputs.positions, b.shape), _mask(inputs)
    x: Node = inputs.states
    memory: list[Node] = []
    for layer in range(b.shape.layers):
        at = f"blk.{layer}."
        q, k, v = _projections(b, b.norm(x, at + "attn_norm.weight"), at, turn)
        memory += [k, v]
        x = op.add(x, b.linear(_attention(b, (q, k, v), inputs, mask, layer), at + "attn_output.weight"))
        x = op.add(x, _feed_forward(b, b.norm(x, at + "ffn_norm.weight"), at))
    x = b.norm(x, "output_norm.weight")
    return ov.Model([x.output(0), *memory], inputs.all(), "nestling")


def _gates(adapters: SideBySide, inputs: _Inputs) -> dict[int, Node]:
    """Of every row, for products of so many matrices at once: (N, matrices * width)."""
    table = adapters.gates()
    return {count: op.gather(op.constant(np.tile(table, count)), inputs.adapter, _int(0)) for count in (1, 3)}


def _feed_forward(b: _Builder, y: Node, at: str) -> Node:
    gate, up = b.each(y, at + "ffn_gate.weight", at + "ffn_up.weight")
    return b.linear(op.multiply(op.swish(gate), up), at + "ffn_down.weight")


def _projections(b: _Builder, y: Node, at: str, turn: tuple[Node, Node]) -> tuple[Node, Node, Node]:
    """Queries, keys and values with their positions turned in: (N, D) -> (N, heads, d) and two of (N, kv heads, d)."""
    shape = b.shape
    bias = np.concatenate([tensor(b.file, f"{at}attn_{n}.bias") for n in "qkv"])
    flat = op.add(b.linear(y, *(f"{at}attn_{n}.weight" for n in "qkv")), op.constant(bias))
    heads = op.reshape(flat, _ints(0, shape.heads + 2 * shape.kv_heads, shape.head_dim), special_zero=True)
    turned, v = op.variadic_split(heads, _int(1), _ints(shape.heads + shape.kv_heads, shape.kv_heads)).outputs()
    q, k = op.variadic_split(_rope(turned, turn), _int(1), _ints(shape.heads, shape.kv_heads)).outputs()
    return q, k, v


def _attention(b: _Builder, qkv: tuple[Node, Node, Node], inputs: _Inputs, mask: Node, layer: int) -> Node:
    """Causal grouped-query attention over each text and what came before it: -> (N, D)."""
    shape = b.shape
    past = op.gather(inputs.past, _int(layer), _int(1))
    group = op.constant(np.repeat(np.arange(shape.kv_heads), shape.heads // shape.kv_heads))
    sides = []
    for place, part in enumerate(qkv[1:]):
        whole = op.concat([op.gather(past, _int(place), _int(1)), part], 0)
        sides.append(op.gather(_to_rectangle(whole, inputs.keys), group, _int(1)))
    mixed = op.scaled_dot_product_attention(_to_rectangle(qkv[0], inputs.queries), *sides, mask, causal=False)
    flat = op.reshape(op.transpose(mixed, _ints(0, 2, 1, 3)), _ints(-1, shape.hidden), special_zero=False)
    return op.gather(flat, inputs.rows, _int(0))


def _mask(inputs: _Inputs) -> Node:
    """What is added to the scores, 0 or -inf: (T,), (S,) places -> (1, 1, T, S)."""
    keys, queries = op.unsqueeze(inputs.key_places, _int(0)), op.unsqueeze(inputs.query_places, _int(1))
    seen = op.less_equal(keys, queries)
    added = op.select(seen, op.constant(np.float32(0)), op.constant(np.float32(-np.inf)))
    return op.unsqueeze(added, _ints(0, 1))


def _to_rectangle(part: Node, rectangle: Node) -> Node:
    """Rows to texts: (N, H, d) -> (B, H, T, d)."""
    return op.transpose(op.gather(part, rectangle, _int(0)), _ints(0, 2, 1, 3))


def _angles(positions: Node, shape: Shape) -> tuple[Node, Node]:
    """Cosine and sine of every position's rotary angles: (N,) -> two of (N, 1, d/2)."""
    half = shape.head_dim // 2
    speeds = (shape.rope_theta ** (-np.arange(half) / half)).astype(np.float32)
    column = op.reshape(op.convert(positions, "f32"), _ints(-1, 1, 1), special_zero=False)
    angle = op.multiply(column, op.constant(speeds[None, None]))
    return op.cos(angle), op.sin(angle)


def _rope(x: Node, turn: tuple[Node, Node]) -> Node:
    """Turn each pair (i, i + d/2) of a head: (N, H, d) -> (N, H, d)."""
    cos, sin = turn
    a, b = op.split(x, _int(2), 2).outputs()
    first = op.subtract(op.multiply(a, cos), op.multiply(b, sin))
    return op.concat([first, op.add(op.multiply(b, cos), op.multiply(a, sin))], -1)


def _int(value: int) -> Node:
    return op.constant(np.int64(value))


def _ints(*values: int) -> Node:
    return op.constant(np.array(values, np.int64))
