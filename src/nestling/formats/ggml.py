"""ctypes bindings of ggml's quantizers: float rows to quantized rows and back.

The library is the extension module of the `xllamacpp` wheel, which exports ggml's C functions. It is loaded on first
use. Does not know files, tensor names or which type a tensor should have.

Rows are quantized independently, so any number of threads gives the same bytes. Calls release the GIL.
"""

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from nestling.errors import BuildError, UsageError
from nestling.formats.quant_types import QuantType

_ToFloat = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class _TypeTraits(ctypes.Structure):
    """The first fields of `struct ggml_type_traits` in ggml.h, up to the dequantization function."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("block", ctypes.c_int64),
        ("block_interleave", ctypes.c_int64),
        ("block_bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", _ToFloat),
    )


def quantize_rows(
    rows: NDArray[np.float32], kind: QuantType, importance: NDArray[np.float32] | None = None, *, threads: int = 1
) -> NDArray[np.uint8]:
    """Quantize finite rows: (R, W) float32, column weights (W,) or None -> (R, bytes of a row).

    UsageError for a type that needs an importance matrix when there is none. Values that overflow the type (float16
    ends at 65,504) are found by `all_finite`.
    """
    count, width = rows.shape
    assert rows.dtype == np.float32, rows.dtype
    assert importance is None or (importance.shape == (width,) and importance.dtype == np.float32)
    if kind.needs_imatrix and importance is None:
        raise UsageError(f"{kind.name} needs an importance matrix; give one, or choose a type of 3 bits or more")
    library, rows = _library(kind), np.ascontiguousarray(rows)
    out = np.empty((count, kind.row_bytes(width)), np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance).ctypes.data

    def convert(first: int, last: int) -> None:
        source, target = rows[first:last].ctypes.data, out[first:last].ctypes.data
        library.ggml_quantize_chunk(kind.ggml_id, source, target, 0, last - first, width, weights)

    _split(count, threads, convert)
    return out


def dequantize_rows(raw: NDArray[np.uint8], kind: QuantType, *, threads: int = 1) -> NDArray[np.float32]:
    """Dequantize rows: (R, bytes of a row) -> (R, W) float32."""
    count, row_bytes = raw.shape
    assert raw.dtype == np.uint8, raw.dtype
    assert row_bytes % kind.value.block_bytes == 0, f"{kind.name}: {row_bytes} bytes are not whole blocks"
    raw = np.ascontiguousarray(raw)
    if kind is QuantType.F32:
        return raw.view(np.float32)
    width = row_bytes // kind.value.block_bytes * kind.block
    to_float = _traits(kind).to_float
    out = np.empty((count, width), np.float32)

    def convert(first: int, last: int) -> None:
        to_float(raw[first:last].ctypes.data, out[first:last].ctypes.data, (last - first) * width)

    _split(count, threads, convert)
    return out


def all_finite(raw: NDArray[np.uint8], kind: QuantType) -> bool:
    """True when every scale and float of quantized rows is finite and every block is valid."""
    raw = np.ascontiguousarray(raw)
    return bool(_load().ggml_validate_row_data(kind.ggml_id, raw.ctypes.data, raw.nbytes))


def _split(count: int, threads: int, convert: Callable[[int, int], None]) -> None:
    """Run `convert` on `threads` about equal ranges of `count` rows."""
    assert threads >= 1, threads
    parts = min(threads, count)
    if parts <= 1:
        convert(0, count)
        return
    edges = [count * part // parts for part in range(parts + 1)]
    with ThreadPoolExecutor(parts) as pool:
        for done in [pool.submit(convert, first, last) for first, last in pairwise(edges)]:
            done.result()


@cache
def _library(kind: QuantType) -> ctypes.CDLL:
    """The library with its tables for `kind` initialized: seconds for types of 1 and 2 bits; not thread-safe."""
    library = _load()
    library.ggml_quantize_init(kind.ggml_id)
    return library


@cache
def _load() -> ctypes.CDLL:
    package = find_spec("xllamacpp")
    # Not find_spec("xllamacpp.xllamacpp"): that would import the whole package.
    module = package and PathFinder.find_spec("xllamacpp.xllamacpp", package.submodule_search_locations)
    if not module or not module.origin:
        raise BuildError("ggml's quantizers come with xllamacpp, which is not installed; pip install xllamacpp")
    library = ctypes.CDLL(module.origin)
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    for kind in QuantType:
        _check_layout(library, kind)
    return library


_SIGNATURES = {
    "ggml_quantize_init": (None, (ctypes.c_int,)),
    "ggml_quantize_chunk": (
        ctypes.c_size_t,
        (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *3 * (ctypes.c_int64,), ctypes.c_void_p),
    ),
    "ggml_validate_row_data": (ctypes.c_bool, (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)),
    "ggml_get_type_traits": (ctypes.POINTER(_TypeTraits), (ctypes.c_int,)),
    "ggml_blck_size": (ctypes.c_int64, (ctypes.c_int,)),
    "ggml_type_size": (ctypes.c_size_t, (ctypes.c_int,)),
}


def _check_layout(library: ctypes.CDLL, kind: QuantType) -> None:
    """Check the library's block sizes against ours, which also checks the layout of the struct."""
    ours = (kind.block, kind.value.block_bytes)
    theirs = (library.ggml_blck_size(kind.ggml_id), library.ggml_type_size(kind.ggml_id))
    traits = library.ggml_get_type_traits(kind.ggml_id).contents
    if not ours == theirs == (traits.block, traits.block_bytes):
        raise BuildError(
            f"xllamacpp: {kind.name} has blocks of {theirs} (weights, bytes), expected {ours}; "
            "install the pinned version"
        )


def _traits(kind: QuantType) -> _TypeTraits:
    traits: _TypeTraits = _load().ggml_get_type_traits(kind.ggml_id).contents
    return traits
