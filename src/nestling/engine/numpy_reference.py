"""The oracle: the text tower in plain numpy, one text at a time, every weight expanded to float32.

Slow, small enough to be checked by eye, and the measure of the other engines. Formulas: RMSNorm (Zhang and Sennrich
2019), rotary positions in the half-split layout (Su et al. 2021, as Qwen2 has them), grouped-query causal attention,
SwiGLU.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from nestling.engine.lora import Adapter
from nestling.engine.protocol import POOLS, Shape, TokenIds
from nestling.engine.weights import embedding_rows, tensor
from nestling.formats.gguf import GGUFFile
from nestling.spec import Pooling
from nestling.vectors import Floats

QUERY_ROWS = 512
"""Query rows whose attention scores are held at once."""


class ReferenceEngine:
    """A GGUF file run by numpy in float32."""

    name = "reference"

    def __init__(self, file: GGUFFile, *, pooling: Pooling = Pooling.MEAN, adapters: Sequence[Adapter] = ()) -> None:
        self._file, self._shape, self._pooled = file, Shape.of(file), POOLS[pooling]
        self._weights = {name: tensor(file, name) for name in self._shape.tensors() if name != "token_embd.weight"}
        self._adapters = adapters

    def pool(self, sequences: Sequence[TokenIds], *, adapters: Sequence[int] = ()) -> Floats:
        """The final hidden states of each sequence, pooled: B sequences -> (B, D)."""
        every = self.token_states(sequences, adapters=adapters)
        return np.concatenate([self._pooled(states, np.array([len(states)])) for _, states in every])

    def token_states(
        self, sequences: Sequence[TokenIds], *, adapters: Sequence[int] = ()
    ) -> Iterator[tuple[int, Floats]]:
        """The final hidden states of each sequence: yields (its place, (T, D))."""
        chosen: Sequence[int | None] = adapters or [None] * len(sequences)
        pairs = zip(sequences, chosen, strict=True)
        return ((index, self.states(ids, one)) for index, (ids, one) in enumerate(pairs))

    def states(self, ids: TokenIds, adapter: int | None = None) -> Floats:
        """Final-norm hidden states of one text, with an adapter by its place: (T,) -> (T, D)."""
        x, change = embedding_rows(self._file, ids), None if adapter is None else self._adapters[adapter]
        for layer in range(self._shape.layers):
            x = self._layer(x, f"blk.{layer}.", change)
        return self._norm(x, "output_norm.weight")

    def close(self) -> None:
        """Forget the weights."""
        self._weights.clear()

    def _layer(self, x: Floats, at: str, change: Adapter | None) -> Floats:
        times, w = partial(self._times, change=change), self._weights
        y = self._norm(x, at + "attn_norm.weight")
        q, k, v = (times(y, f"{at}attn_{n}.weight") + w[f"{at}attn_{n}.bias"] for n in "qkv")
        x = x + times(attention(q, k, v, shape=self._shape), at + "attn_output.weight")
        y = self._norm(x, at + "ffn_norm.weight")
        return x + times(
            gated(times(y, at + "ffn_gate.weight"), times(y, at + "ffn_up.weight")), at + "ffn_down.weight"
        )

    def _times(self, x: Floats, name: str, *, change: Adapter | None) -> Floats:
        """A product with a matrix and its change: (T, in) -> (T, out)."""
        product = x @ self._weights[name].T
        if change is None:
            return product
        a, b = change.sides(name)
        return np.asarray(product + np.float32(change.scaling) * (x @ a.T @ b.T))

    def _norm(self, x: Floats, name: str) -> Floats:
        return rms_norm(x, self._weights[name], self._shape.rms_eps)


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """RMSNorm of every row: (T, D), (D,) -> (T, D)."""
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(eps)) * weight)


def gated(gate: Floats, up: Floats) -> Floats:
    """SwiGLU: (T, F), (T, F) -> (T, F)."""
    return np.asarray(gate / (1 + np.exp(-gate)) * up)


def attention(q: Floats, k: Floats, v: Floats, *, shape: Shape) -> Floats:
    """Causal attention of one text, positions turned in: (T, D) and two of (T, kv heads * d) -> (T, D)."""
    q = _rope(_heads(q, shape.heads), shape.rope_theta)
    k = _rope(_heads(k, shape.kv_heads), shape.rope_theta)
    k, v = (np.repeat(part, shape.heads // shape.kv_heads, 0) for part in (k, _heads(v, shape.kv_heads)))
    rows = [_attend(q, k, v, start) for start in range(0, q.shape[1], QUERY_ROWS)]
    return np.concatenate(rows, 1).transpose(1, 0, 2).reshape(q.shape[1], -1)


def _heads(flat: Floats, heads: int) -> Floats:
    """(T, heads * d) -> (heads, T, d)."""
    return flat.reshape(len(flat), heads, -1).transpose(1, 0, 2)


def _rope(x: Floats, theta: float) -> Floats:
    """Turn each pair (i, i + d/2) of a head by its position's angle: (H, T, d) -> (H, T, d)."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None] * theta ** (-np.arange(half) / half)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate((a * cos - b * sin, b * cos + a * sin), -1)


def _attend(q: Floats, k: Floats, v: Floats, start: int) -> Floats:
    """Causal attention of the query rows from `start` on: -> (H, rows, d)."""
    stop = min(start + QUERY_ROWS, q.shape[1])
    scores = q[:, start:stop] @ k[:, :stop].transpose(0, 2, 1) / np.sqrt(np.float32(q.shape[-1]))
    scores[:, np.arange(start, stop)[:, None] < np.arange(stop)] = -np.inf
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray((scores / scores.sum(-1, keepdims=True)) @ v[:, :stop])
