"""Perturbation probe: how far a model's vectors move when matrices are replaced, over a fixed set of texts.

The hidden states before every layer are cached, so that a replacement in layer l recomputes only the layers from l on.
Dequantized weights are cached if all of them fit `KEPT_BYTES`; larger models are read again for every trial.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nestling.engine.hyperparameters import Hyperparameters
from nestling.engine.numpy_reference import rms_norm, run_layer, turn
from nestling.engine.protocol import POOLS, TokenIds, plain
from nestling.engine.weights import embedding_rows, tensor
from nestling.formats.gguf import GGUFFile
from nestling.spec import Pooling
from nestling.vectors import Floats, paired_cosine

EMBEDDING = "token_embd.weight"
KEPT_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class _Exchanged:
    """The original weights, with some matrices replaced."""

    original: Callable[[str], Floats]
    exchanged: Mapping[str, Floats]

    def vector(self, name: str) -> Floats:
        return self.original(name)

    def times(self, x: Floats, name: str) -> Floats:
        return x @ (self.exchanged[name] if name in self.exchanged else self.original(name)).T


class PerturbationProbe:
    """A float model and `texts`: measures how far their vectors move when matrices are replaced."""

    def __init__(self, file: GGUFFile, texts: Sequence[TokenIds], *, pooling: Pooling = Pooling.MEAN) -> None:
        self._file, self._shape, self._pool = file, Hyperparameters.of(file), POOLS[pooling]
        self._ids = np.concatenate(texts)
        self._lengths = np.array([len(text) for text in texts], np.int64)
        self._cos_sin = [turn(item, self._shape) for item in plain(texts)]
        kept = 4 * sum(info.size_bytes for info in file.tensors.values()) < KEPT_BYTES
        self._cache: dict[str, Floats] | None = {} if kept else None
        self._settled: dict[str, Floats] = {}
        self._before: list[Floats] = []
        self.original = self._run(0, self._rows(None), {}, keep=True)

    @property
    def tokens(self) -> int:
        """Total number of tokens of the texts."""
        return len(self._ids)

    @property
    def keeps_weights(self) -> bool:
        """True for a model whose dequantized weights are cached."""
        return self._cache is not None

    def settle(self, exchanged: Mapping[str, Floats]) -> float:
        """Replace matrices (name -> (R, W) weights) for all later calls; returns the error."""
        self._settled = dict(exchanged)
        return self._error(self._run(0, self._rows(self._settled.get(EMBEDDING)), self._settled, keep=True))

    def error(self, exchanged: Mapping[str, Floats]) -> float:
        """Mean over the texts of 1 - cosine to the original, with these matrices replaced besides the settled ones."""
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

    def _error(self, pooled: Floats) -> float:
        return float(1 - paired_cosine(pooled, self.original).mean())

    def _rows(self, table: Floats | None) -> Floats:
        return embedding_rows(self._file, self._ids) if table is None else table[self._ids]

    def _run(self, first: int, x: Floats, exchanged: Mapping[str, Floats], *, keep: bool = False) -> Floats:
        """Pooled vectors of the texts, computed from the hidden states before layer `first`: (N, D) -> (B, D)."""
        if keep:
            self._before = []
        for layer in range(first, self._shape.layers):
            if keep:
                self._before.append(x)
            weights = _Exchanged(self.weights, exchanged)
            x = run_layer(x, layer, weights=weights, shape=self._shape, cos_sin=self._cos_sin)
        x = rms_norm(x, self.weights("output_norm.weight"), self._shape.rms_eps)
        return self._pool(x, self._lengths)
