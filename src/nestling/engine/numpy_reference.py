"""The oracle: the text tower in plain numpy, one item at a time, every weight expanded to float32.

Slow, small enough to check by eye, and the reference for the other engines. Formulas: RMSNorm (Zhang and Sennrich
2019), rotary positions in the half-split layout (Su et al. 2021, as in Qwen2; M-RoPE with sections for time, height
and width as in Qwen2-VL), grouped-query causal attention, SwiGLU.

`run_layer` takes its weights through `Weights`, so that they can be adapted (LoRA) or replaced (the recipe search).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

import numpy as np

from nestling.engine.batching import TOKEN_BUDGET
from nestling.engine.hyperparameters import AXES, Hyperparameters
from nestling.engine.lora import Adapter
from nestling.engine.protocol import Item, pool_states
from nestling.engine.weights import input_rows, tensor
from nestling.errors import EngineError
from nestling.formats.gguf import GGUFFile
from nestling.spec import Pooling
from nestling.vectors import Floats

QUERY_ROWS = 512
"""Query rows whose attention scores are in memory at a time."""
Turn = tuple[Floats, Floats]
"""Cosines and sines of an item's rotary angles: two of (T, d / 2)."""


class Weights(Protocol):
    """The weights of a tower, by their names in GGUF files."""

    def vector(self, name: str) -> Floats:
        """A norm's weights or a bias: (W,)."""
        ...

    def times(self, x: Floats, name: str) -> Floats:
        """Rows times a matrix: (N, in) -> (N, out)."""
        ...


@dataclass(frozen=True, slots=True)
class _Adapted:
    """Dequantized weights, and a LoRA adapter if there is one."""

    expanded: dict[str, Floats]
    change: Adapter | None

    def vector(self, name: str) -> Floats:
        return self.expanded[name]

    def times(self, x: Floats, name: str) -> Floats:
        product = x @ self.expanded[name].T
        if self.change is None:
            return product
        a, b = self.change.sides(name)
        return np.asarray(product + np.float32(self.change.scaling) * (x @ a.T @ b.T))


class ReferenceEngine:
    """A GGUF file run by numpy in float32."""

    name = "reference"
    token_budget = TOKEN_BUDGET
    spare_pairs = inf
    reason = "asked for by name"

    def __init__(self, file: GGUFFile, *, pooling: Pooling = Pooling.MEAN, adapters: Sequence[Adapter] = ()) -> None:
        self._file, self._shape, self._pooling = file, Hyperparameters.of(file), pooling
        self._weights = {name: tensor(file, name) for name in self._shape.tensors() if name != "token_embd.weight"}
        self._adapters = adapters

    def pool(self, items: Sequence[Item], *, adapters: Sequence[int] = ()) -> Floats:
        """Pooled hidden states of a batch: B items -> (B, D)."""
        every = self.token_states(items, adapters=adapters)
        return pool_states(self._pooling, np.concatenate(every), items)

    def token_states(self, items: Sequence[Item], *, adapters: Sequence[int] = ()) -> list[Floats]:
        """Hidden states of a batch: B items -> B arrays of (T, D)."""
        chosen: Sequence[int | None] = adapters or [None] * len(items)
        return [self.states(item, one) for item, one in zip(items, chosen, strict=True)]

    def states(self, item: Item, adapter: int | None = None) -> Floats:
        """Final-norm hidden states of one item, with the adapter of this index: T tokens -> (T, D)."""
        weights = _Adapted(self._weights, None if adapter is None else self._adapters[adapter])
        x, cos_sin = input_rows(self._file, [item]), [turn(item, self._shape)]
        for layer in range(self._shape.layers):
            x = run_layer(x, layer, weights=weights, shape=self._shape, cos_sin=cos_sin)
        return rms_norm(x, weights.vector("output_norm.weight"), self._shape.rms_eps)

    def close(self) -> None:
        """Free the weights."""
        self._weights.clear()


def run_layer(x: Floats, layer: int, *, weights: Weights, shape: Hyperparameters, cos_sin: Sequence[Turn]) -> Floats:
    """One layer over the rows of several items, one after another: (N, D) -> (N, D). `cos_sin`: of each item."""
    at, w = f"blk.{layer}.", weights
    y = rms_norm(x, w.vector(at + "attn_norm.weight"), shape.rms_eps)
    projected = (w.times(y, f"{at}attn_{n}.weight") + w.vector(f"{at}attn_{n}.bias") for n in "qkv")
    ends = np.cumsum([len(cos) for cos, _ in cos_sin])[:-1]
    items = zip(*(np.split(part, ends) for part in projected), cos_sin, strict=True)
    mixed = np.concatenate([attention(q, k, v, shape=shape, turned=turned) for q, k, v, turned in items])
    x = np.asarray(x + w.times(mixed, at + "attn_output.weight"))
    y = rms_norm(x, w.vector(at + "ffn_norm.weight"), shape.rms_eps)
    return x + w.times(
        gated(w.times(y, at + "ffn_gate.weight"), w.times(y, at + "ffn_up.weight")), at + "ffn_down.weight"
    )


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """RMSNorm of every row: (T, D), (D,) -> (T, D)."""
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(eps)) * weight)


def gated(gate: Floats, up: Floats) -> Floats:
    """SwiGLU: (T, F), (T, F) -> (T, F)."""
    return np.asarray(gate / (1 + np.exp(-gate)) * up)


def turn(item: Item, shape: Hyperparameters) -> Turn:
    """Cosines and sines of an item's rotary angles: position * theta ** (-2 i / d), on the axis of i's section."""
    half = shape.head_dim // 2
    speeds = shape.rope_theta ** (-np.arange(half) / half)
    if item.positions is None:
        angles = np.arange(len(item))[:, None] * speeds
    else:
        if len(shape.rope_sections) != AXES or sum(shape.rope_sections) != half:
            raise EngineError(f"rope.dimension_sections {list(shape.rope_sections)}: expected three that sum to {half}")
        parts = np.split(speeds, np.cumsum(shape.rope_sections)[:-1])
        angles = np.concatenate([axis[:, None] * part for axis, part in zip(item.positions, parts, strict=True)], 1)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def attention(q: Floats, k: Floats, v: Floats, *, shape: Hyperparameters, turned: Turn) -> Floats:
    """Causal attention of one item, rotary positions applied: (T, D), two of (T, kv heads * d) -> (T, D)."""
    q, k = _rope(_heads(q, shape.heads), turned), _rope(_heads(k, shape.kv_heads), turned)
    k, v = (np.repeat(part, shape.heads // shape.kv_heads, 0) for part in (k, _heads(v, shape.kv_heads)))
    rows = [_attend(q, k, v, start) for start in range(0, q.shape[1], QUERY_ROWS)]
    return np.concatenate(rows, 1).transpose(1, 0, 2).reshape(q.shape[1], -1)


def _heads(flat: Floats, heads: int) -> Floats:
    """(T, heads * d) -> (heads, T, d)."""
    return flat.reshape(len(flat), heads, -1).transpose(1, 0, 2)


def _rope(x: Floats, turned: Turn) -> Floats:
    """Rotate each pair (i, i + d/2) of a head by its angle: (H, T, d) -> (H, T, d)."""
    (cos, sin), half = turned, x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return np.concatenate((a * cos - b * sin, b * cos + a * sin), -1)


def _attend(q: Floats, k: Floats, v: Floats, start: int) -> Floats:
    """Causal attention of the query rows from `start` on: -> (H, rows, d)."""
    stop = min(start + QUERY_ROWS, q.shape[1])
    scores = q[:, start:stop] @ k[:, :stop].transpose(0, 2, 1) / np.sqrt(np.float32(q.shape[-1]))
    scores[:, np.arange(start, stop)[:, None] < np.arange(stop)] = -np.inf
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray((scores / scores.sum(-1, keepdims=True)) @ v[:, :stop])
