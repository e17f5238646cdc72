"""A GGUF file's text tower as an OpenVINO graph: no language-model head, no key-value cache, hidden states out.

Texts are rows one after another, without padding: every matrix product and norm sees real tokens alone. Only
attention is laid out as a rectangle (texts x longest), by an index in and an index out; it is causal, so padding on
the right never reaches a real token. Weights of float files stay in their type. Those of quantized files become int8
in groups of 32 with a scale a group, which keeps Q8_0 blocks exactly as they are; the plugin computes with them in
int8 where the processor can and expands them block by block where it cannot.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import openvino as ov
from openvino import Node
from openvino import opset15 as op

from nestling import ggml
from nestling.engine.base import Shape
from nestling.engine.weights import tensor
from nestling.gguf_io import GGUFFile
from nestling.quants import QuantType

GROUP = 32
Q8_0_BLOCK_BYTES = 34


@dataclass(frozen=True)
class _Builder:
    """Makes nodes of one file. `squares` takes the sums of squares of every product's input, when it is there."""

    file: GGUFFile
    shape: Shape
    threads: int
    squares: dict[tuple[str, ...], Node] | None = None

    def vector(self, name: str) -> Node:
        return op.constant(tensor(self.file, name))

    def linear(self, x: Node, *names: str) -> Node:
        """X times one matrix, or several stacked into one product: (N, in) -> (N, sum of out)."""
        if self.squares is not None:
            self.squares[names] = op.reduce_sum(op.multiply(x, x), _ints(0), keep_dims=False)
        return op.matmul(x, self.matrix(names), transpose_a=False, transpose_b=True)

    def matrix(self, names: Sequence[str]) -> Node:
        infos = [self.file.tensors[name] for name in names]
        if all(info.kind.is_float for info in infos) or infos[0].shape[-1] % GROUP:
            return self._float_matrix(names, {info.kind for info in infos})
        parts = [int8_groups(self.file, name, threads=self.threads) for name in names]
        values, scales = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        expanded = op.multiply(op.convert(op.constant(values), "f16"), op.constant(scales))
        flat = op.reshape(expanded, op.constant(np.array([len(values), -1], np.int64)), special_zero=False)
        return op.convert(flat, "f32")

    def _float_matrix(self, names: Sequence[str], kinds: set[QuantType]) -> Node:
        stacked = np.concatenate([tensor(self.file, name) for name in names])
        if kinds == {QuantType.F16}:
            return op.convert(op.constant(stacked.astype(np.float16)), "f32")
        return op.constant(stacked)

    def norm(self, x: Node, name: str) -> Node:
        """RMSNorm in the form that the plugin knows as one operation."""
        mean = op.reduce_mean(op.multiply(x, x), op.constant(np.array([-1], np.int64)), keep_dims=True)
        root = op.sqrt(op.add(mean, op.constant(np.float32(self.shape.rms_eps))))
        return op.multiply(op.divide(x, root), self.vector(name))


def int8_groups(file: GGUFFile, name: str, *, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """A matrix as int8 in groups of 32: -> values (R, G, 32) int8, scales (R, G, 1) float16; Q8_0 is taken as it is."""
    info, raw = file.tensors[name], file.raw(name)
    if info.kind is QuantType.Q8_0:
        blocks = raw.reshape(len(raw), -1, Q8_0_BLOCK_BYTES)
    else:
        rows = tensor(file, name, threads=threads)
        blocks = ggml.quantize_rows(rows, QuantType.Q8_0, threads=threads).reshape(len(rows), -1, Q8_0_BLOCK_BYTES)
    return blocks[..., 2:].view(np.int8), blocks[..., :2].copy().view(np.float16)


def build(file: GGUFFile, *, threads: int) -> ov.Model:
    """The tower as a graph, for N tokens in B texts of at most T.

    Inputs: `states` (N, D) embedding rows; `positions` (N,) place in its text; `rectangle` (B, T) row of each place
    (any row for padding); `rows` (N,) place in the flattened rectangle of each row. Output: (N, D) final-norm hidden
    states.
    """
    return _tower(_Builder(file, Shape.of(file), threads))


def build_observed(file: GGUFFile, *, threads: int) -> tuple[ov.Model, list[tuple[str, ...]]]:
    """The same graph with an output more for every product: the sum over tokens of its input's squares, (W,).

    Also answers with the names of the matrices that share each of those outputs, in the outputs' order.
    """
    squares: dict[tuple[str, ...], Node] = {}
    model = _tower(_Builder(file, Shape.of(file), threads, squares))
    model.add_outputs([node.output(0) for node in squares.values()])
    return model, list(squares)


def _tower(builder: _Builder) -> ov.Model:
    shape = builder.shape
    states = op.parameter([-1, shape.hidden], np.float32, name="states")
    positions = op.parameter([-1], np.int64, name="positions")
    rectangle = op.parameter([-1, -1], np.int64, name="rectangle")
    rows = op.parameter([-1], np.int64, name="rows")
    turn = _angles(positions, shape)
    x: Node = states
    for layer in range(shape.layers):
        x = _layer(builder, x, f"blk.{layer}.", turn, rectangle, rows)
    x = builder.norm(x, "output_norm.weight")
    return ov.Model([x], [states, positions, rectangle, rows], "nestling")


def _layer(b: _Builder, x: Node, at: str, turn: tuple[Node, Node], rectangle: Node, rows: Node) -> Node:
    y = b.norm(x, at + "attn_norm.weight")
    mixed = _attention(b, y, at, turn, rectangle, rows)
    x = op.add(x, b.linear(mixed, at + "attn_output.weight"))
    y = b.norm(x, at + "ffn_norm.weight")
    both = b.linear(y, at + "ffn_gate.weight", at + "ffn_up.weight")
    gate, up = op.split(both, op.constant(np.int64(1)), 2).outputs()
    return op.add(x, b.linear(op.multiply(op.swish(gate), up), at + "ffn_down.weight"))


def _attention(b: _Builder, y: Node, at: str, turn: tuple[Node, Node], rectangle: Node, rows: Node) -> Node:
    """Causal grouped-query attention over each text: (N, D) -> (N, D)."""
    shape = b.shape
    bias = np.concatenate([tensor(b.file, f"{at}attn_{n}.bias") for n in "qkv"])
    flat = op.add(b.linear(y, *(f"{at}attn_{n}.weight" for n in "qkv")), op.constant(bias))
    heads = op.reshape(flat, _ints(0, shape.heads + 2 * shape.kv_heads, shape.head_dim), special_zero=True)
    turned, v = op.variadic_split(heads, _int(1), _ints(shape.heads + shape.kv_heads, shape.kv_heads)).outputs()
    q, k = op.variadic_split(_rope(turned, turn), _int(1), _ints(shape.heads, shape.kv_heads)).outputs()
    q, k, v = (_to_rectangle(part, rectangle) for part in (q, k, v))
    group = op.constant(np.repeat(np.arange(shape.kv_heads), shape.heads // shape.kv_heads))
    k, v = (op.gather(part, group, _int(1)) for part in (k, v))
    mixed = op.transpose(op.scaled_dot_product_attention(q, k, v, causal=True), _ints(0, 2, 1, 3))
    return op.gather(op.reshape(mixed, _ints(-1, shape.hidden), special_zero=False), rows, _int(0))


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


def layout(lengths: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The index inputs of `build` for texts of these lengths: -> positions (N,), rectangle (B, T), rows (N,)."""
    counts = np.asarray(lengths, np.int64)
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
    places = np.arange(counts.max())
    real = places[None] < counts[:, None]
    rectangle = np.where(real, starts[:, None] + places[None], 0)
    return np.broadcast_to(places, real.shape)[real].copy(), rectangle, np.flatnonzero(real)
