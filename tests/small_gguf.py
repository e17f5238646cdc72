"""Small random float GGUF files, and importance matrices for them, without a checkpoint."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nestling.formats.ggml import quantize_rows
from nestling.formats.gguf import Field, TensorPlan, write_gguf
from nestling.formats.quant_types import QuantType
from nestling.pipeline.quantization.imatrix import ColumnSums, ImportanceMatrix

Edit = Callable[[dict[str, NDArray[np.float32]]], None]


def small_tensors(
    *, layers: int = 2, width: int = 256, ff: int = 512, rows: int = 24
) -> dict[str, NDArray[np.float32]]:
    """Tensors named as a tiny decoder's: tied embeddings, one bias and one norm a layer, the seven matrices.

    Every matrix has `rows` rows: quantizing looks at names and widths only.
    """
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (rows, width), "output_norm.weight": (width,)}
    matrices = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    for layer in range(layers):
        shapes |= {f"blk.{layer}.attn_norm.weight": (width,), f"blk.{layer}.attn_q.bias": (width,)}
        shapes |= {f"blk.{layer}.{name}.weight": (rows, ff if name == "ffn_down" else width) for name in matrices}
    rng = np.random.default_rng(7)
    return {name: rng.standard_normal(shape, np.float32) / np.float32(16) for name, shape in shapes.items()}


def write_small_gguf(
    path: Path,
    *,
    tensors: Mapping[str, NDArray[np.float32]] | None = None,
    kind: QuantType = QuantType.F32,
    fields: Mapping[str, Field] | None = None,
) -> Path:
    """Write the tensors, matrices as `kind`, as a `qwen2vl` model with 8 heads and 2 key-value heads."""
    metadata = {
        "general.architecture": Field.string("qwen2vl"),
        "general.file_type": Field.uint32(0),
        "qwen2vl.attention.head_count": Field.uint32(8),
        "qwen2vl.attention.head_count_kv": Field.uint32(2),
        "general.license": Field.string("apache-2.0"),
    }
    plans = [_plan(name, values, kind) for name, values in (tensors or small_tensors()).items()]
    write_gguf(path, metadata | dict(fields or {}), plans)
    return path


def small_imatrix(tensors: Mapping[str, NDArray[np.float32]] | None = None) -> ImportanceMatrix:
    """A matrix that fits the tensors."""
    rng = np.random.default_rng(8)
    names = {name: values for name, values in (tensors or small_tensors()).items() if name.startswith("blk.")}
    entries = {
        name: ColumnSums((rng.random(values.shape[-1:]) + 0.01).astype(np.float32), 3)
        for name, values in names.items()
        if values.ndim > 1
    }
    return ImportanceMatrix(entries, ("calibration.txt",), 3, 512, "imatrix.gguf")


def _plan(name: str, values: NDArray[np.float32], kind: QuantType) -> TensorPlan:
    if values.ndim == 1:
        kind = QuantType.F32
    return TensorPlan(name, values.shape, kind, lambda: [quantize_rows(np.atleast_2d(values), kind)])
