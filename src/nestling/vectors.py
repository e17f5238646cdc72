"""Vector arithmetic: pooling, normalising, truncating, similarity, quantized output types. Pure numpy, no models.

The order for one text is pool, normalise, truncate, normalise, as in the original model's `encode`.
"""

import base64
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nestling.errors import EngineError

Floats = NDArray[np.float32]


def mean_pool(states: Floats, lengths: NDArray[np.int64]) -> Floats:
    """Mean pooling: (N, D) hidden states of B packed texts, (B,) lengths -> (B, D)."""
    ends = np.cumsum(lengths)
    sums = [states[end - length : end].sum(0, dtype=np.float64) for end, length in zip(ends, lengths, strict=True)]
    return (np.stack(sums) / lengths[:, None]).astype(np.float32)


def last_pool(states: Floats, lengths: NDArray[np.int64]) -> Floats:
    """Last-token pooling: (N, D) hidden states of B packed texts, (B,) lengths -> (B, D)."""
    return states[np.cumsum(lengths) - 1]


def normalise(rows: Floats) -> Floats:
    """Scale every row to unit length: (B, D) -> (B, D). EngineError for a zero or non-finite row."""
    exact = rows.astype(np.float64)
    norms = np.sqrt(np.vecdot(exact, exact))
    bad = ~(np.isfinite(norms) & (norms > 0))
    if bad.any():
        raise EngineError(f"vector {int(np.flatnonzero(bad)[0])} is zero or not finite, so it cannot be normalised")
    exact /= norms[..., None]
    return exact.astype(np.float32)


def finish(pooled: Floats, dimension: int) -> Floats:
    """Pooled states to vectors: (B, D) -> (B, dimension), unit rows; normalise, truncate, normalise."""
    return normalise(normalise(pooled)[:, :dimension])


def cosine(left: Floats, right: Floats) -> NDArray[np.float64]:
    """Cosine of every row of `left` with every row of `right`: (A, D), (B, D) -> (A, B), in float64."""
    a, b = left.astype(np.float64), right.astype(np.float64)
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    b /= np.linalg.norm(b, axis=1, keepdims=True)
    return np.asarray(a @ b.T)


def paired_cosine(left: Floats, right: Floats) -> NDArray[np.float64]:
    """Cosine of each row with its counterpart: (B, D), (B, D) -> (B,), in float64."""
    a, b = left.astype(np.float64), right.astype(np.float64)
    return np.asarray((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)))


def maxsim(query: Floats, documents: Sequence[Floats]) -> NDArray[np.float64]:
    """MaxSim of late interaction (Khattab and Zaharia 2020): (Tq, P), B arrays of (Td, P), unit rows -> (B,).

    The sum over query tokens of the largest dot product with a document token: from -Tq to Tq.
    """
    return np.array([(query @ document.T).max(1).sum(dtype=np.float64) for document in documents], np.float64)


def to_int8(rows: Floats) -> NDArray[np.int8]:
    """Symmetric absmax quantization of each row to [-127, 127]: (B, D) -> (B, D); compare by cosine."""
    packed: NDArray[np.int8] = np.rint(rows * (127 / np.abs(rows).max(-1, keepdims=True))).astype(np.int8)
    return packed


def from_int8(packed: NDArray[np.int8]) -> Floats:
    """Dequantize `to_int8` to unit rows: (B, D) -> (B, D)."""
    return normalise(packed.astype(np.float32))


def to_ubinary(rows: Floats) -> NDArray[np.uint8]:
    """Sign bits, 1 above zero, packed with the first component in the highest bit: (B, D) -> (B, D / 8)."""
    return np.packbits(rows > 0, axis=-1)


def from_ubinary(packed: NDArray[np.uint8]) -> Floats:
    """Unpack `to_ubinary` to unit rows of equal magnitudes: (B, D / 8) -> (B, D)."""
    signs = np.unpackbits(packed, axis=-1).astype(np.float32) * 2 - 1
    return np.asarray(signs / np.sqrt(np.float32(signs.shape[-1])))


def to_base64(vector: Floats) -> str:
    """Little-endian float32 bytes in base64, as the OpenAI API's `encoding_format: base64`."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
