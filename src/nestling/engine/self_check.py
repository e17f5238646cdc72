"""One short text through an engine and through plain numpy: does this processor's kernel compute what it should?

A kernel that returns zeros, or misreads its weight format, is found before the first answer. The reference dequantizes
a model once, a matrix at a time; for models in the weight cache its hidden states are cached next to the weights.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nestling._util import files
from nestling.engine.hyperparameters import Hyperparameters
from nestling.engine.lora import Adapter
from nestling.engine.numpy_reference import rms_norm, run_layer, turn
from nestling.engine.protocol import Engine, Item
from nestling.engine.weights import input_rows, tensor
from nestling.errors import NestlingError
from nestling.formats.gguf import GGUFFile
from nestling.vectors import Floats, paired_cosine

TOKENS = 16
NEAR = 0.98
"""Lowest cosine that passes. Correct kernels are above it in every arithmetic, broken ones near 0."""


@dataclass(frozen=True, slots=True)
class _Weights:
    """A file's weights, dequantized on use and not kept."""

    file: GGUFFile
    threads: int
    adapter: Adapter | None

    def vector(self, name: str) -> Floats:
        """See `numpy_reference.Weights`."""
        return tensor(self.file, name)

    def times(self, x: Floats, name: str) -> Floats:
        """See `numpy_reference.Weights`."""
        product = x @ tensor(self.file, name, threads=self.threads).T
        if self.adapter is None:
            return np.asarray(product)
        a, b = self.adapter.sides(name)
        return np.asarray(product + np.float32(self.adapter.scaling) * (x @ a.T @ b.T))


def cosine(engine: Engine, file: GGUFFile, *, adapters: Sequence[Adapter], threads: int, kept: Path | None) -> float:
    """The cosine of the engine's states and the reference's, over all tokens; 1 where the reference's are not finite.

    `adapters`: those of the engine, of which the first is used. `kept`: the file that caches the
    reference's states. An engine that returns zeros, or states of another shape, has a cosine of 0.
    """
    item, first = probe(file), next(iter(adapters), None)
    expected = _recorded(kept) if kept else None
    if expected is None:
        expected = reference(file, item, adapter=first, threads=threads)
        if kept:
            _record(kept, expected)
    if not np.isfinite(expected).all():
        return 1.0
    [found] = engine.token_states([item], adapters=[0][: len(adapters)])
    if found.shape != expected.shape:
        return 0.0
    with np.errstate(invalid="ignore"):
        return float(np.nan_to_num(paired_cosine(found.reshape(1, -1), expected.reshape(1, -1))[0]))


def probe(file: GGUFFile) -> Item:
    """Tokens from all over the vocabulary."""
    return Item(np.linspace(0, Hyperparameters.of(file).vocabulary - 1, TOKENS).astype(np.int32))


def reference(file: GGUFFile, item: Item, *, adapter: Adapter | None, threads: int) -> Floats:
    """The final states of one item in float32: T tokens -> (T, D)."""
    shape, weights = Hyperparameters.of(file), _Weights(file, threads, adapter)
    x, cos_sin = input_rows(file, [item]), [turn(item, shape)]
    for layer in range(shape.layers):
        x = run_layer(x, layer, weights=weights, shape=shape, cos_sin=cos_sin)
    return rms_norm(x, weights.vector("output_norm.weight"), shape.rms_eps)


def _recorded(path: Path) -> Floats | None:
    try:
        found: Floats = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.dtype == np.float32 and found.ndim == 2 and len(found) == TOKENS else None  # noqa: PLR2004


def _record(path: Path, states: Floats) -> None:
    with suppress(OSError, NestlingError), files.atomic_write(path) as out:
        np.save(out, states, allow_pickle=False)
