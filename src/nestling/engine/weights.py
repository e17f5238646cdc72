"""Weights of a GGUF file as numpy arrays: whole matrices in float32, or single embedding rows on demand.

Knows nothing of graphs. Quantized tensors are dequantized by ggml's own code.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nestling.engine.protocol import Item
from nestling.errors import EngineError
from nestling.formats import ggml
from nestling.formats.gguf import GGUFFile
from nestling.formats.quant_types import QuantType
from nestling.vectors import Floats


def as_float32(raw: NDArray[np.uint8], kind: QuantType, *, threads: int = 1) -> Floats:
    """Dequantize stored rows: (R, bytes of a row) -> (R, W) float32."""
    if kind is QuantType.F32:
        return raw.view(np.float32)
    if kind is QuantType.F16:
        return raw.view(np.float16).astype(np.float32)
    if kind is QuantType.BF16:
        return np.left_shift(raw.view(np.uint16), 16, dtype=np.uint32).view(np.float32)
    return ggml.dequantize_rows(raw, kind, threads=threads)


def tensor(file: GGUFFile, name: str, *, threads: int = 1) -> Floats:
    """A whole tensor in float32, in its own shape. NaN and infinity are not checked."""
    info = file.tensors[name]
    return as_float32(file.raw(name), info.kind, threads=threads).reshape(info.shape)


def embedding_rows(file: GGUFFile, ids: NDArray[np.int32]) -> Floats:
    """Each id's embedding: (N,) -> (N, D) float32, from the mmapped file; each distinct row is dequantized once."""
    distinct, places = np.unique(ids, return_inverse=True)
    info = file.tensors["token_embd.weight"]
    return as_float32(np.ascontiguousarray(file.raw(info.name)[distinct]), info.kind)[places]


def input_rows(file: GGUFFile, items: Sequence[Item]) -> Floats:
    """The input of the first layer: token embeddings, or the rows that replace them.

    B items with N tokens in total -> (N, D) float32. EngineError for rows of another width than the model's, GGUFError
    for a file that was overwritten since it was opened.
    """
    file.check_unchanged()
    states = embedding_rows(file, np.concatenate([item.ids for item in items]))
    start = 0
    for item in items:
        own, start = states[start : start + len(item)], start + len(item)
        if item.rows is None:
            continue
        if item.rows.values.shape[1:] != own.shape[1:]:
            raise EngineError(
                f"rows of shape {item.rows.values.shape[1:]}: expected the model's {own.shape[1]} dimensions"
            )
        own[item.rows.places] = item.rows.values
    return states
