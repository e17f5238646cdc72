"""What exchanging matrices of a model does to its vectors: the text tower in numpy over a fixed set of texts.

The hidden states before every layer are kept, so that an exchange in layer l costs the layers from l on. Weights are
expanded from the file a layer at a time and kept only while they all fit into `KEPT_BYTES`: a large model is read anew
for every trial, a small one once. The formulas are the reference engine's.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from nestling.engine.numpy_reference import attention, gated, rms_norm
from nestling.engine.protocol import LAYER_MATRICES, POOLS, Shape, TokenIds
from nestling.engine.weights import embedding_rows, tensor
from nestling.formats.gguf import GGUFFile
from nestling.spec import Pooling
from nestling.vectors import Floats, paired_cosine

EMBEDDING = "token_embd.weight"
KEPT_BYTES = 1 << 28


class Tower:
    """A float model over `texts`; answers how far their vectors move when matrices are exchanged."""

    def __init__(self, file: GGUFFile, texts: Sequence[TokenIds], *, pooling: Pooling = Pooling.MEAN) -> None:
        self._file, self._shape, self._pool = file, Shape.of(file), POOLS[pooling]
        self._ids = np.concatenate(texts)
        self._lengths = np.array([len(text) for text in texts], np.int64)
        kept = 4 * sum(info.size_bytes for info in file.tensors.values()) < KEPT_BYTES
        self._cache: dict[str, Floats] | None = {} if kept else None
        self._settled: dict[str, Floats] = {}
        self._before: list[Floats] = []
        self.original = self._run(0, self._rows(None), {}, keep=True)

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return len(self._ids)

    @property
    def keeps_weights(self) -> bool:
        """True for a model small enough to be kept in memory expanded."""
        return self._cache is not None

    def settle(self, exchanged: Mapping[str, Floats]) -> float:
        """Exchange matrices for good: name -> (R, W) weights. Answers with `error()` from now on."""
        self._settled = dict(exchanged)
        return self._error(self._run(0, self._rows(self._settled.get(EMBEDDING)), self._settled, keep=True))

    def error(self, exchanged: Mapping[str, Floats]) -> float:
        """Mean over the texts of 1 - cosine to the original, these exchanged beside the settled ones."""
        together = self._settled | dict(exchanged)
        if EMBEDDING in exchanged:
            return self._error(self._run(0, self._rows(exchanged[EMBEDDING]), together))
        first = min((int(name.split(".")[1]) for name in exchanged), default=self._shape.layers - 1)
        return self._error(self._run(first, self._before[first], together))

    def weights(self, name: str) -> Floats:
        """The original matrix."""
        if self._cache is None:
            return tensor(self._file, name)
        if name not in self._cache:
            self._cache[name] = tensor(self._file, name)
        return self._cache[name]

    def _matrix(self, name: str, exchanged: Mapping[str, Floats]) -> Floats:
        return exchanged[name] if name in exchanged else self.weights(name)

    def _error(self, pooled: Floats) -> float:
        return float(1 - paired_cosine(pooled, self.original).mean())

    def _rows(self, table: Floats | None) -> Floats:
        return embedding_rows(self._file, self._ids) if table is None else table[self._ids]

    def _run(self, first: int, x: Floats, exchanged: Mapping[str, Floats], *, keep: bool = False) -> Floats:
        """Pooled vectors of the texts, from the states before layer `first` on: (N, D) -> (B, D)."""
        if keep:
            self._before = []
        for layer in range(first, self._shape.layers):
            if keep:
                self._before.append(x)
            x = self._layer(x, f"blk.{layer}.", exchanged)
        x = rms_norm(x, self.weights("output_norm.weight"), self._shape.rms_eps)
        return self._pool(x, self._lengths)

    def _layer(self, x: Floats, at: str, exchanged: Mapping[str, Floats]) -> Floats:
        w = {name: self._matrix(f"{at}{name}.weight", exchanged) for name in LAYER_MATRICES}
        y = rms_norm(x, self.weights(at + "attn_norm.weight"), self._shape.rms_eps)
        q, k, v = (y @ w[f"attn_{n}"].T + self.weights(f"{at}attn_{n}.bias") for n in "qkv")
        ends = np.cumsum(self._lengths)[:-1]
        texts = zip(np.split(q, ends), np.split(k, ends), np.split(v, ends), strict=True)
        mixed = np.concatenate([attention(*qkv, shape=self._shape) for qkv in texts])
        x = np.asarray(x + mixed @ w["attn_output"].T)
        y = rms_norm(x, self.weights(at + "ffn_norm.weight"), self._shape.rms_eps)
        return x + gated(y @ w["ffn_gate"].T, y @ w["ffn_up"].T) @ w["ffn_down"].T
