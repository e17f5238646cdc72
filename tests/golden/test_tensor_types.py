"""Our tables and our bytes against llama.cpp's own quantizing, recorded by record_tensor_types.py."""

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.golden.record_tensor_types import hash_tensors, mean_squares, run_lengths, tensor_shapes, write_source

from nestling.formats.gguf import GGUFFile
from nestling.formats.quant_types import FILE_TYPES
from nestling.pipeline.quantization.file_types import demands_imatrix, tensor_types
from nestling.pipeline.quantization.imatrix import ColumnSums, ImportanceMatrix
from nestling.pipeline.quantization.plan import Mix
from nestling.pipeline.quantization.quantize import quantize

MODELS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "tensor_types.json").read_text())


def _label(model: dict[str, Any]) -> str:
    return "-".join(f"{key}{value}" for key, value in model.items() if key != "types")


@pytest.mark.parametrize("model", MODELS, ids=_label)
def test_the_types_are_those_of_llama_quantize(model: dict[str, Any]) -> None:
    shapes = tensor_shapes(model)
    assert set(model["types"]) == set(FILE_TYPES)
    for file_type, recorded in model["types"].items():
        found = tensor_types(
            shapes,
            file_type=file_type,
            heads=model["heads"],
            kv_heads=model["kv_heads"],
            has_imatrix=model["imatrix"],
        )
        if recorded is not None:
            names = {name: kind.name for name, kind in found.items()}
            assert run_lengths(model, names) == {part: runs for part, runs in recorded.items() if part != "sha256"}
            assert all(found[name].name == "F32" for name, shape in shapes.items() if len(shape) == 1)
        demanding = any(demands_imatrix(name, kind, file_type) for name, kind in found.items())
        assert (demanding and not model["imatrix"]) == (recorded is None), file_type


@pytest.mark.slow
# Every type and every fallback occurs in these two; the 36-layer models would take minutes.
@pytest.mark.skipif(platform.machine() != "x86_64", reason="compilers for other machines fuse other operations")
@pytest.mark.parametrize("model", [model for model in MODELS if model["layers"] < 10], ids=_label)
def test_the_bytes_are_those_of_llama_quantize(model: dict[str, Any], tmp_path: Path) -> None:
    source, out = tmp_path / "source.gguf", tmp_path / "out.gguf"
    write_source(source, model)
    entries = {name: ColumnSums(values, 1) for name, values in mean_squares(model).items()}
    matrix = ImportanceMatrix(entries, ("noise",), 1, 512) if model["imatrix"] else None
    for file_type, recorded in model["types"].items():
        if recorded is not None:
            quantize(source, out=out, mix=Mix(file_type, imatrix=matrix), threads=1)
            assert hash_tensors(GGUFFile.open(out)) == recorded["sha256"], file_type


def test_the_recorded_source_is_noise() -> None:
    values = np.concatenate(list(mean_squares(MODELS[0]).values()))
    assert np.unique(values).size > values.size * 0.9
