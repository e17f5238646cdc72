"""The text model of a GGUF file in torch: packed rows in, final-norm hidden states out.

Items are packed without padding: products and norms run on real tokens only, and attention keeps items apart. The wide
feed-forward part runs in pieces of at most `most_rows` rows, so that a long item needs memory for its keys and values
in one layer only. The residual stream is float32 in every arithmetic.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nestling.engine.hyperparameters import Hyperparameters
from nestling.engine.torch.arithmetic import Arithmetic, Rows
from nestling.engine.torch.attention import Runs, attend

Stage = Callable[[str], AbstractContextManager[None]]
Squares = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Linear:
    """One product: stacked matrices of a layer, with `out` rows, and the A of every LoRA adapter below them.

    `columns`: the adapters' B side by side, (out, lanes) float; None without adapters. `names`: the matrices'.
    """

    names: tuple[str, ...]
    weight: Rows
    bias: Tensor | None
    out: int
    columns: Tensor | None


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights of one layer; norms are (D,) float32."""

    attn_norm: Tensor
    qkv: Linear
    attn_output: Linear
    ffn_norm: Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class Batch:
    """A packed batch, N rows of B items: cosines and sines (N, 1, d / 2), gates of the adapters' lanes.

    `runs`: the items, or a mask (N, N) of which rows attend to which.

    `gates`: for one matrix (N, lanes), a row's adapter's scaling in its lanes, else zero; None without adapters.
    `squares`, if given, collects the sum of squares of each matrix's input over the rows.
    """

    runs: Runs | Tensor
    cos: Tensor
    sin: Tensor
    gates: Tensor | None
    squares: Squares | None


@dataclass(frozen=True, slots=True)
class TextModel:
    """All weights on one device. `table`: embedding rows, (V, D) in floats."""

    shape: Hyperparameters
    arithmetic: Arithmetic
    table: Tensor
    layers: list[Layer]
    output_norm: Tensor
    stage: Stage

    def embedded(self, ids: Tensor) -> Tensor:
        """Embedding rows: (N,) int64 -> (N, D) float32."""
        return functional.embedding(ids, self.table).float()

    def into_basis(self, rows: Tensor) -> Tensor:
        """Input rows (R, D) in the residual stream's basis (rotated or not)."""
        rotation = self.arithmetic.rotation
        return rows if rotation is None else rotation.enter(rows)

    def run(self, x: Tensor, layer: Layer, batch: Batch, most_rows: int) -> None:
        """One layer, in place: (N, D), in pieces of at most `most_rows` rows."""
        self._attention(x, layer, batch, most_rows)
        for piece in pieces(len(x), most_rows):
            x[piece] += self._feed_forward(x[piece], layer, batch, piece)

    def normed(self, x: Tensor) -> Tensor:
        """The final norm without its weight: (N, D) -> (N, D). `finished` turns it into hidden states."""
        return functional.rms_norm(x, x.shape[-1:], eps=self.shape.rms_eps)

    def finished(self, states: Tensor) -> Tensor:
        """Undo the rotation and apply the final norm's weight: (R, D) -> (R, D). Linear, so it may follow pooling."""
        rotation = self.arithmetic.rotation
        return (states if rotation is None else rotation.leave(states)) * self.output_norm

    def _attention(self, x: Tensor, layer: Layer, batch: Batch, most_rows: int) -> None:
        """Add a layer's attention to `x`, in place."""
        shape, every = self.shape, list(pieces(len(x), most_rows))
        parts = [self._projected(x[piece], layer, batch, piece) for piece in every]
        qkv = parts[0] if len(parts) == 1 else torch.cat(parts)
        del parts
        with self.stage("attention"):
            heads = qkv.view(len(x), -1, shape.head_dim)
            q, k, v = heads.split((shape.heads, shape.kv_heads, shape.kv_heads), 1)
            q, k = (rope(side, batch.cos, batch.sin) for side in (q, k))
            mixed = attend(q, k, v, batch.runs, causal=True).view(len(x), -1)
        for piece in every:
            with self.stage("rest of the layers"):
                rows = self.arithmetic.rows(mixed[piece])
            x[piece] += self._times(rows, layer.attn_output, batch, piece)

    def _projected(self, x: Tensor, layer: Layer, batch: Batch, piece: slice) -> Tensor:
        with self.stage("rest of the layers"):
            y = self.arithmetic.normed(x, layer.attn_norm, self.shape.rms_eps)
        return self._times(y, layer.qkv, batch, piece)

    def _feed_forward(self, x: Tensor, layer: Layer, batch: Batch, piece: slice) -> Tensor:
        with self.stage("rest of the layers"):
            y = self.arithmetic.normed(x, layer.ffn_norm, self.shape.rms_eps)
        both = self._times(y, layer.gate_up, batch, piece)
        with self.stage("rest of the layers"):
            inner = self.arithmetic.gated(both)
        return self._times(inner, layer.down, batch, piece)

    def _times(self, x: Rows, linear: Linear, batch: Batch, piece: slice) -> Tensor:
        """A product with its bias and each row's LoRA update: (N, in) -> (N, out)."""
        if batch.squares is not None:
            _observe(x, linear, batch.squares)
        with self.stage("matrix products"):
            y = self.arithmetic.times(x, linear.weight, linear.bias)
            if batch.gates is None or linear.columns is None:
                return y
            whole, low = y.split((linear.out, y.shape[1] - linear.out), 1)
            gates = batch.gates[piece].repeat(1, len(linear.names)).to(y.dtype)
            return torch.addmm(whole, low * gates, linear.columns.T)


def _observe(x: Rows, linear: Linear, squares: Squares) -> None:
    assert isinstance(x, Tensor), "observed in floats"
    total = x.float().square().sum(0)
    for name in linear.names:
        squares[name] = squares[name] + total if name in squares else total


def pieces(rows: int, most: int) -> Iterator[slice]:
    """Slices of at most `most` rows that cover all."""
    return (slice(start, min(rows, start + most)) for start in range(0, rows, most))


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (i, i + d/2) of a head, in float32: (N, H, d), two of (N, 1, d / 2) -> (N, H, d)."""
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)
