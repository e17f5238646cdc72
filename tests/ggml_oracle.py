"""ggml's quantizers called in the plainest way, with sizes from gguf-py: what nestling.formats.ggml must equal."""

import ctypes
from importlib.util import find_spec

import gguf
import numpy as np
from numpy.typing import NDArray

from nestling.formats.quant_types import QuantType

SLOW_TYPES = (QuantType.IQ1_S, QuantType.IQ1_M, QuantType.IQ2_XXS, QuantType.IQ2_XS, QuantType.IQ2_S)
"""ggml needs seconds to build its tables for quantizing to these: they are for tests/golden."""


def library() -> ctypes.CDLL:
    """The extension module of xllamacpp."""
    spec = find_spec("xllamacpp.xllamacpp")
    assert spec is not None
    return ctypes.CDLL(spec.origin)


def theirs(kind: QuantType) -> gguf.GGMLQuantizationType:
    """gguf-py's name for the type."""
    return gguf.GGMLQuantizationType[kind.name]


def one_call(rows: NDArray[np.float32], kind: QuantType, importance: NDArray[np.float32]) -> NDArray[np.uint8]:
    """All rows, (R, W) with column weights (W,), in one call of ggml_quantize_chunk: (R, bytes of a row)."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[theirs(kind)]
    out = np.zeros((len(rows), rows.shape[1] // block * block_bytes), np.uint8)
    quantize = library().ggml_quantize_chunk
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *3 * [ctypes.c_int64], ctypes.c_void_p]
    quantize.restype = ctypes.c_size_t
    arrays = rows.ctypes.data, out.ctypes.data
    assert quantize(int(theirs(kind)), *arrays, 0, *rows.shape, importance.ctypes.data) == out.nbytes
    return out
