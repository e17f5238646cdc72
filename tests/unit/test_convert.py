import json
import shutil
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nestling.errors import BuildError, UsageError
from nestling.formats.gguf import GGUFFile
from nestling.formats.quant_types import QuantType
from nestling.inputs.tokenizer import Tokenizer
from nestling.pipeline.conversion.casts import cast_rows
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.conversion.convert import convert
from nestling.pipeline.conversion.merge import task_model
from nestling.spec import ModelSpec, Task


@pytest.fixture(scope="module")
def checkpoint(small_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(small_checkpoint)


@pytest.fixture(scope="module")
def files(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """File type -> the code model."""
    folder = tmp_path_factory.mktemp("converted")
    paths = {kind: folder / f"tiny-{kind}.gguf" for kind in ("F32", "F16", "BF16")}
    for kind, path in paths.items():
        convert(checkpoint, task=Task.CODE, out=path, family="tiny", file_type=kind)
    return paths


def merged(checkpoint: Checkpoint) -> dict[str, NDArray[np.float32]]:
    model = task_model(checkpoint, Task.CODE)
    return {tensor.tensor.name: np.concatenate(list(tensor.pieces(lambda rows: rows))) for tensor in model.tensors}


@pytest.mark.parametrize(("kind", "bits"), [("F32", 23), ("F16", 10), ("BF16", 7)])
def test_weights_are_rounded_once(files: dict[str, Path], checkpoint: Checkpoint, kind: str, bits: int) -> None:
    """Tolerance: half a unit in the last place, 2^-(bits + 1) of the number, 2^-25 where F16 is subnormal."""
    file, want = GGUFFile.open(files[kind]), merged(checkpoint)
    assert list(file.tensors) == list(want)
    for name, info in file.tensors.items():
        flat = len(info.shape) == 1
        assert info.kind.name == ("F32" if flat else kind)
        found = gguf.quants.dequantize(file.raw(name), gguf.GGMLQuantizationType[info.kind.name])
        tolerance = 0.0 if flat or kind == "F32" else 2.0 ** -(bits + 1)
        atol = 2**-25 if kind == "F16" else 0
        np.testing.assert_allclose(found.reshape(info.shape), want[name], rtol=tolerance, atol=atol)


def test_metadata(files: dict[str, Path], checkpoint: Checkpoint) -> None:
    file = GGUFFile.open(files["F16"])
    found = {key: field.value for key, field in file.metadata.items() if not key.startswith("tokenizer.")}
    spec = ModelSpec.from_json(found.pop("nestling.spec"))
    assert (spec.name, spec.dimensions, spec.max_tokens) == ("tiny-code", (16, 32, 64), 4096)
    assert spec.source == checkpoint.source
    eps = struct.unpack("<f", struct.pack("<f", 1e-6))[0]
    assert found == {
        "general.architecture": "qwen2vl", "general.type": "model", "general.name": "tiny-text-code",
        "general.file_type": 1, "general.quantization_version": 2, "qwen2vl.context_length": 4096,
        "qwen2vl.embedding_length": 64, "qwen2vl.block_count": 2, "qwen2vl.feed_forward_length": 96,
        "qwen2vl.attention.head_count": 4, "qwen2vl.attention.head_count_kv": 2,
        "qwen2vl.attention.layer_norm_rms_epsilon": eps, "qwen2vl.rope.freq_base": 1e6,
        "qwen2vl.rope.dimension_sections": (2, 3, 3, 0), "qwen2vl.pooling_type": 1,
    }  # fmt: skip
    assert Tokenizer.from_gguf(file).size == 384


def test_the_licence_is_carried_through(small_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_checkpoint, tmp_path / "licensed"))
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: research-only\n---\n")
    convert(Checkpoint.open(folder), task=Task.CODE, out=tmp_path / "m.gguf", family="tiny")
    file = GGUFFile.open(tmp_path / "m.gguf")
    assert file.value("general.license") == "other"
    assert file.value("general.license.name") == "research-only"


def test_equal_builds_give_equal_bytes(checkpoint: Checkpoint, files: dict[str, Path], tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    report = convert(
        checkpoint, task=Task.CODE, out=tmp_path / "again.gguf", family="tiny", progress=lambda *step: told.append(step)
    )
    assert report.path.read_bytes() == files["F16"].read_bytes()
    assert report.size_bytes == report.path.stat().st_size
    assert report.counts == task_model(checkpoint, Task.CODE).counts
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] > 2 * report.counts.result


@pytest.mark.parametrize("kind", ["Q8_0", "f16", ""])
def test_other_file_types_are_refused(checkpoint: Checkpoint, tmp_path: Path, kind: str) -> None:
    with pytest.raises(UsageError, match="expected one of F32, F16, BF16"):
        convert(checkpoint, task=Task.CODE, out=tmp_path / "m.gguf", family="tiny", file_type=kind)
    assert not list(tmp_path.iterdir())


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_bf16_is_the_nearest_and_ties_go_to_even(value: float) -> None:
    row = np.array([[value]], np.float32)
    try:
        found = int(cast_rows(row, kind=QuantType.BF16, name="w")[0, 0])
    except BuildError:
        assert abs(value) >= (2 - 2**-8) * 2.0**127  # halfway from the largest BF16 number to the next power of two
        return
    neighbours = [number for number in (found - 1, found, found + 1) if 0 <= number & 0x7FFF < 0x7F80]
    distances = {number: abs(widened(number) - value) for number in neighbours}
    assert distances[found] == min(distances.values())
    tied = [number for number, distance in distances.items() if distance == distances[found] and number != found]
    assert not tied or found % 2 == 0


def widened(bits: int) -> float:
    number: float = struct.unpack("<f", struct.pack("<I", bits << 16))[0]
    return number


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("F16", 65520.0, "blk.0.w: 65520 does not fit F16; F32 and BF16 hold up to 3.4e38"),
        ("F16", -1e30, "blk.0.w: -1e[+]30 does not fit F16"),
        ("BF16", 3.4e38, "blk.0.w: 3.4e[+]38 does not fit BF16"),
        ("F32", float("inf"), "blk.0.w: inf does not fit F32"),
    ],
)
def test_overflow_names_the_tensor(kind: str, value: float, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        cast_rows(np.array([[1.0, value]], np.float32), kind=QuantType[kind], name="blk.0.w")


def test_the_largest_f16_number_fits() -> None:
    found: Any = cast_rows(np.array([[65519.0, 1e-9]], np.float32), kind=QuantType.F16, name="w")
    assert found.tolist() == [[65504.0, 0.0]]


def test_the_specification_in_the_file_is_compact_json(files: dict[str, Path]) -> None:
    text = GGUFFile.open(files["BF16"]).value("nestling.spec")
    assert json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False) == text
