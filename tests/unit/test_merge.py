import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests import tiny

from nestling.errors import CheckpointError
from nestling.formats.quant_types import QuantType
from nestling.pipeline.conversion import merge
from nestling.pipeline.conversion.casts import cast_rows
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.conversion.config import TextConfig
from nestling.pipeline.conversion.merge import Cast, ParameterCounts, TaskModel, task_model, text_tensors
from nestling.spec import Task

ADAPTERS = "adapters/adapter_model.safetensors"
MATRICES = {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}


def keep(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows


def whole(model: TaskModel, cast: Cast = keep) -> dict[str, NDArray[Any]]:
    return {merged.tensor.name: np.concatenate(list(merged.pieces(cast))) for merged in model.tensors}


def test_parameter_counts_of_the_full_model() -> None:
    """3.09 billion weights of 3,754,622,976 are the text tower's; the rest, 668,684,288, is vision."""
    config = TextConfig(36, 2048, 16, 2, 128, 11008, 151936, 1e-6, 1e6, (16, 24, 24), 128000, (2048,), tiny.TASKS)
    tensors = text_tensors(config)
    assert len(tensors) == 434
    assert sum(int(np.prod(tensor.shape)) for tensor in tensors) == 3_754_622_976 - 668_684_288


def test_parts_are_counted(small_checkpoint: Path) -> None:
    sizes = {name: int(np.prod(shape)) for name, shape in tiny.base_shapes(tiny.SMALL_VOCAB).items()}
    vision = sum(size for name, size in sizes.items() if name.startswith("visual."))
    projector = 32 * 64 + 32
    base = sum(sizes.values()) - projector
    adapters = sum(int(np.prod(shape)) for shape in tiny.adapter_shapes().values())
    assert task_model(Checkpoint.open(small_checkpoint), Task.CODE).counts == ParameterCounts(
        base=base, vision=vision, projector=projector, adapters=adapters, result=base - vision
    )


def test_nothing_of_vision_and_projector_is_left(small_checkpoint: Path) -> None:
    names = [merged.tensor.name for merged in task_model(Checkpoint.open(small_checkpoint), Task.CODE).tensors]
    kinds = {*(f"{name}.weight" for name in MATRICES), "attn_q.bias", "attn_k.bias", "attn_v.bias"}
    kinds |= {"attn_norm.weight", "ffn_norm.weight"}
    layers = {f"blk.{layer}.{kind}" for layer in range(2) for kind in kinds}
    assert sorted(names) == sorted({"token_embd.weight", "output_norm.weight", *layers})


@pytest.mark.parametrize("task", Task)
def test_every_matrix_moves_by_the_scaled_product(small_checkpoint: Path, task: Task) -> None:
    """Tolerance: one rounding of the product and one of the sum, each half a unit in the last place of float32."""
    checkpoint = Checkpoint.open(small_checkpoint)
    merged = whole(task_model(checkpoint, task))
    for tensor in text_tensors(checkpoint.config):
        base = checkpoint.read_rows(tensor.source).astype(np.float64)
        adapter = checkpoint.adapters[task].get(tensor.source.removesuffix(".weight"))
        if tensor.name.split(".")[-2] not in MATRICES or tensor.name.endswith("bias"):
            assert adapter is None
            np.testing.assert_array_equal(merged[tensor.name], base)
            continue
        assert adapter is not None
        delta = 2.0 * np.einsum("or,ri->oi", adapter.b.read_rows(), adapter.a.read_rows(), dtype=np.float64)
        assert np.abs(delta).max() > 0.1
        np.testing.assert_allclose(merged[tensor.name], base + delta, rtol=1e-7, atol=5e-7)


def test_pieces_do_not_change_the_result(small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = task_model(Checkpoint.open(small_checkpoint), Task.RETRIEVAL)
    want = whole(model)
    monkeypatch.setattr(merge, "PIECE_BYTES", 7 * 64 * 4)  # seven rows of 64, four of 96
    sizes = [piece.nbytes for merged in model.tensors for piece in merged.pieces(keep)]
    assert max(sizes) <= 7 * 64 * 4
    for name, rows in whole(model).items():
        np.testing.assert_array_equal(rows, want[name])


class TestAMergeThatChangesNothing:
    """One matrix's B for one task is scaled; the merge of that task, and of no other, must be refused."""

    NAME = "base_model.model.model.language_model.layers.1.mlp.up_proj.lora_B.code.weight"

    @pytest.fixture
    def folder(self, small_checkpoint: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(small_checkpoint, tmp_path / "checkpoint"))

    def scale(self, folder: Path, factor: float) -> Checkpoint:
        header, data = tiny.read_raw_safetensors(folder / ADAPTERS)
        start, stop = header[self.NAME]["data_offsets"]
        wide = np.frombuffer(data[start:stop], "<u2").astype(np.uint32) << 16
        scaled = tiny.bf16(wide.view(np.float32) * np.float32(factor)).tobytes()
        tiny.write_raw_safetensors(folder / ADAPTERS, header, data[:start] + scaled + data[stop:])
        return Checkpoint.open(folder)

    @pytest.mark.parametrize(("factor", "kind"), [(0.0, QuantType.F32), (1e-30, QuantType.F32), (1e-9, QuantType.BF16)])
    def test_is_refused_by_the_tensors_name(self, folder: Path, factor: float, kind: QuantType) -> None:
        checkpoint = self.scale(folder, factor)
        whole(task_model(checkpoint, Task.RETRIEVAL))
        with pytest.raises(CheckpointError, match=rf"{self.NAME}: the merge changes no stored weight"):
            whole(task_model(checkpoint, Task.CODE), partial(cast_rows, kind=kind, name="w"))

    def test_a_small_delta_is_enough_where_the_type_holds_it(self, folder: Path) -> None:
        assert whole(task_model(self.scale(folder, 1e-9), Task.CODE))
