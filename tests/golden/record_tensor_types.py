"""Record what llama.cpp's quantizing makes of small models: the tensor types, their bytes, and what it refuses.

    python tests/golden/record_tensor_types.py libllama.so tests/golden/tensor_types.json

The library is llama.cpp's, built as a shared library (recorded with the llama.cpp inside llama-cpp-python 0.3.36).
The struct is that of this version; another layout is refused. Types are stored as run lengths over the layers, bytes as
one SHA-256 over all tensors in the order of their names. None stands for a file type refused without a matrix.
"""

import ctypes
import hashlib
import json
import sys
import tempfile
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestling.formats.gguf import Field, GGUFFile, TensorPlan, write_gguf
from nestling.formats.quant_types import FILE_TYPES, QuantType

MODELS: tuple[dict[str, Any], ...] = (
    {"layers": 36, "heads": 16, "kv_heads": 2, "width": 256, "ff": 512, "tied": True, "imatrix": True},
    {"layers": 16, "heads": 8, "kv_heads": 2, "width": 256, "ff": 512, "tied": True, "imatrix": False},
    {"layers": 28, "heads": 4, "kv_heads": 4, "width": 256, "ff": 512, "tied": False, "imatrix": False},
    {"layers": 33, "heads": 4, "kv_heads": 2, "width": 256, "ff": 512, "tied": False, "imatrix": True},
    {"layers": 9, "heads": 8, "kv_heads": 2, "width": 288, "ff": 320, "tied": True, "imatrix": True},
    {"layers": 9, "heads": 8, "kv_heads": 4, "width": 288, "ff": 512, "tied": False, "imatrix": False},
    {"layers": 1, "heads": 4, "kv_heads": 1, "width": 512, "ff": 288, "tied": True, "imatrix": True},
)
PARTS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def tensor_shapes(model: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor's shape; the numbers of rows are cut to a few, since no choice depends on them."""
    width, ff = model["width"], model["ff"]
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (4, width), "output_norm.weight": (width,)}
    if not model["tied"]:
        shapes["output.weight"] = (4, width)
    for layer in range(model["layers"]):
        shapes[f"blk.{layer}.attn_norm.weight"] = (width,)
        shapes[f"blk.{layer}.attn_q.bias"] = (4,)
        for part in PARTS:
            shapes[f"blk.{layer}.{part}.weight"] = (4, ff if part == "ffn_down" else width)
    return shapes


def run_lengths(model: dict[str, Any], types: dict[str, str]) -> dict[str, str]:
    """Tensor name -> type, as "TYPE*COUNT TYPE*COUNT ..." over the layers for every part."""
    rows = {part: [types[f"blk.{layer}.{part}.weight"] for layer in range(model["layers"])] for part in PARTS}
    found = {part: " ".join(f"{kind}*{len(list(run))}" for kind, run in groupby(row)) for part, row in rows.items()}
    outer = [name for name in ("token_embd", "output") if f"{name}.weight" in types]
    return {name: types[f"{name}.weight"] + "*1" for name in outer} | found


class _Params(ctypes.Structure):
    _fields_ = (
        ("nthread", ctypes.c_int32),
        ("ftype", ctypes.c_int),
        ("output_tensor_type", ctypes.c_int),
        ("token_embedding_type", ctypes.c_int),
        ("flags", ctypes.c_bool * 6),
        ("imatrix", ctypes.c_void_p),
        ("others", ctypes.c_void_p * 3),
        ("max_buf_size", ctypes.c_size_t),
    )


class _Entry(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("size", ctypes.c_size_t))


def write_source(path: Path, model: dict[str, Any]) -> None:
    keys = {"block_count": "layers", "embedding_length": "width", "feed_forward_length": "ff"}
    keys |= {"attention.head_count": "heads", "attention.head_count_kv": "kv_heads"}
    metadata = {"general.architecture": Field.string("qwen2vl")}
    metadata |= {f"qwen2vl.{key}": Field.uint32(model[name]) for key, name in keys.items()}
    metadata["qwen2vl.context_length"] = metadata["qwen2vl.vocab_size"] = Field.uint32(4)
    metadata["qwen2vl.attention.layer_norm_rms_epsilon"] = Field.float32(1e-6)
    metadata["qwen2vl.rope.dimension_sections"] = Field.int32s([1, 1, 1, 0])
    plans = [_random_plan(name, shape) for name, shape in tensor_shapes(model).items()]
    write_gguf(path, metadata, plans)


def _random_plan(name: str, shape: tuple[int, ...]) -> TensorPlan:
    values = (noise(name, prod(shape)) - np.float32(0.5)) / 8
    return TensorPlan(name, shape, QuantType.F32, lambda: [values])


def noise(name: str, count: int) -> NDArray[np.float32]:
    """Numbers in [0, 1), (count,), the same on any machine: a bit generator's raw stream through exact arithmetic."""
    raw = np.random.PCG64(list(name.encode())).random_raw(count)
    return (raw >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)


def mean_squares(model: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
    """An importance matrix: every layer's tensor -> (W,)."""
    shapes = {name: shape for name, shape in tensor_shapes(model).items() if name.startswith("blk.") and len(shape) > 1}
    return {name: noise(name + ".imatrix", shape[-1]) + np.float32(0.125) for name, shape in shapes.items()}


def hash_tensors(file: GGUFFile) -> str:
    """One SHA-256 over every tensor's bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(file.tensors):
        digest.update(file.raw(name).tobytes())
    return digest.hexdigest()


def _entries(matrix: dict[str, NDArray[np.float32]]) -> ctypes.Array[_Entry]:
    rows = [_Entry(name.encode(), values.ctypes.data, values.size) for name, values in matrix.items()]
    return (_Entry * (len(rows) + 1))(*rows)


def _record(library: ctypes.CDLL, model: dict[str, Any], folder: Path) -> dict[str, dict[str, str] | None]:
    source, out = folder / "source.gguf", folder / "out.gguf"
    write_source(source, model)
    params = library.llama_model_quantize_default_params()
    assert params.max_buf_size == 8 << 30, "another layout of llama_model_quantize_params"
    matrix = mean_squares(model)
    entries = _entries(matrix)
    params.nthread, params.imatrix = 1, ctypes.addressof(entries) if model["imatrix"] else None
    found: dict[str, dict[str, str] | None] = {}
    for file_type, number in FILE_TYPES.items():
        params.ftype = number
        if library.llama_model_quantize(bytes(source), bytes(out), ctypes.byref(params)):
            found[file_type] = None
            continue
        file = GGUFFile.open(out)
        kinds = {name: info.kind.name for name, info in file.tensors.items()}
        found[file_type] = {"sha256": hash_tensors(file)} | run_lengths(model, kinds)
    return found


def main() -> None:
    """Record every model with every file type."""
    library = ctypes.CDLL(sys.argv[1])
    library.llama_model_quantize_default_params.restype = _Params
    library.llama_backend_init()
    with tempfile.TemporaryDirectory() as folder:
        found = [{**model, "types": _record(library, model, Path(folder))} for model in MODELS]
    Path(sys.argv[2]).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
