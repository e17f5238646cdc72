from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tests.small_gguf import small_imatrix, small_tensors

from nestling.errors import BuildError
from nestling.pipeline.quantization.imatrix import (
    MIN_TOKENS,
    ColumnSums,
    ImportanceMatrix,
    TensorSums,
    collect_imatrix,
)

SHAPES = {name: values.shape for name, values in small_tensors().items()}


def test_a_written_matrix_is_read_back(tmp_path: Path) -> None:
    matrix = small_imatrix()
    assert matrix.write(tmp_path / "m.gguf") == matrix.write(tmp_path / "again.gguf")
    found = ImportanceMatrix.read(tmp_path / "m.gguf")
    assert (found.datasets, found.chunk_count, found.chunk_size) == (("calibration.txt",), 3, 512)
    assert found.file_name == "m.gguf"
    assert found.entries.keys() == matrix.entries.keys()
    for name, entry in matrix.entries.items():
        np.testing.assert_array_equal(found.entries[name].in_sum2, entry.in_sum2)
        assert found.entries[name].count == entry.count == 3


def test_gguf_py_finds_what_llama_quantize_looks_for(tmp_path: Path) -> None:
    small_imatrix().write(tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert fields == {
        "general.type": "imatrix",
        "imatrix.datasets": ["calibration.txt"],
        "imatrix.chunk_count": 3,
        "imatrix.chunk_size": 512,
    }
    names = [tensor.name for tensor in reader.tensors]
    assert names[:2] == ["blk.0.attn_k.weight.in_sum2", "blk.0.attn_k.weight.counts"]
    assert names[::2] == sorted(names[::2])
    # ggml's order of dimensions: the row first, one matrix
    assert [list(map(int, tensor.shape)) for tensor in reader.tensors[:2]] == [[256, 1], [1, 1]]


def write_as_llama_imatrix(path: Path, entries: dict[str, np.ndarray[Any, Any]]) -> None:
    """As newer versions write it: sums of the inputs beside the sums of their squares."""
    writer = gguf.GGUFWriter(path, arch="")
    writer.kv_data[0].pop("general.architecture", None)
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["a.txt", "b.txt"])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, sums in entries.items():
        writer.add_tensor(f"{name}.in_sum2", sums[None])
        writer.add_tensor(f"{name}.counts", np.array([[3584]], np.float32))
        writer.add_tensor(f"{name}.in_sum", np.zeros((1, sums.size), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_file_of_llama_imatrix_is_read(tmp_path: Path) -> None:
    sums = np.arange(1, 65, dtype=np.float32)
    write_as_llama_imatrix(tmp_path / "theirs.gguf", {"blk.0.attn_q.weight": sums})
    found = ImportanceMatrix.read(tmp_path / "theirs.gguf")
    assert (found.datasets, found.chunk_count, found.chunk_size) == (("a.txt", "b.txt"), 7, 512)
    importance = found.importance("blk.0.attn_q.weight")
    assert importance is not None
    np.testing.assert_array_equal(importance, sums / np.float32(3584))
    assert found.importance("token_embd.weight") is None


def test_a_matrix_covers_its_model() -> None:
    small_imatrix().check_covers(SHAPES)


def test_embeddings_and_output_may_be_in_the_matrix() -> None:
    matrix = small_imatrix()
    extra = {"output.weight": ColumnSums(np.ones(256, np.float32), 1)}
    ImportanceMatrix({**matrix.entries, **extra}, (), 1, 512).check_covers(SHAPES)


class Recorder:
    """A `collect` whose answer for a batch is known: column c of `a` sums c times the ids, `b` counts twice."""

    def __init__(self) -> None:
        self.batches: list[list[list[int]]] = []

    def __call__(self, batch: Sequence[Sequence[int]]) -> dict[str, TensorSums]:
        self.batches.append([list(ids) for ids in batch])
        ids = np.concatenate([np.asarray(ids, np.float32) for ids in batch])
        return {
            "a": (ids.sum() * np.arange(1, 5, dtype=np.float32), ids.size),
            "b": (np.ones(2, np.float32), 2 * ids.size),
        }


def test_collecting_adds_up_batches() -> None:
    chunks = [[number] * 512 for number in range(1, 6)] + [[9] * 100]
    told: list[tuple[int, int]] = []
    recorder = Recorder()
    matrix = collect_imatrix(
        chunks, collect=recorder, dataset="text", chunk_size=512, batch=2, progress=lambda *counts: told.append(counts)
    )
    assert recorder.batches == [chunks[0:2], chunks[2:4], chunks[4:6]]
    total = 512 * 15 + 900
    np.testing.assert_array_equal(matrix.entries["a"].in_sum2, np.float32(total) * np.arange(1, 5, dtype=np.float32))
    assert (matrix.entries["a"].count, matrix.entries["b"].count) == (2660, 5320)
    np.testing.assert_array_equal(matrix.entries["b"].in_sum2, [3, 3])
    assert (matrix.datasets, matrix.chunk_count, matrix.chunk_size, matrix.file_name) == (("text",), 6, 512, "")
    assert told == [(1024, 2660), (2048, 2660), (2660, 2660)]


def test_sums_of_many_batches_lose_nothing() -> None:
    # One big batch, then ones that float32 sums would swallow: 2^25 + 1 is 2^25 in float32.
    values = iter([2.0**25, *[1.0] * 63])

    def collect(batch: Sequence[Sequence[int]]) -> dict[str, TensorSums]:
        return {"a": (np.array([next(values)], np.float32), len(batch[0]))}

    matrix = collect_imatrix([[0] * 32] * 64, collect=collect, dataset="text", chunk_size=32, batch=1)
    assert matrix.entries["a"].in_sum2[0] == np.float32(2.0**25 + 63)


def test_text_that_is_too_short_is_refused_before_it_is_run() -> None:
    recorder = Recorder()
    with pytest.raises(BuildError, match=f"0 tokens of calibration text; at least {MIN_TOKENS}"):
        collect_imatrix([], collect=recorder, dataset="text", chunk_size=512)
    with pytest.raises(BuildError, match="text: 1023 tokens"):
        collect_imatrix([[1] * 511, [1] * 512], collect=recorder, dataset="text", chunk_size=512)
    assert recorder.batches == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 0.0, 3e38])
def test_sums_that_make_no_sense_are_refused(value: float) -> None:
    def collect(batch: Sequence[Sequence[int]]) -> dict[str, TensorSums]:
        return {"blk.0.attn_q.weight": (np.full(4, value, np.float32), len(batch[0]))}

    with pytest.raises(BuildError, match=r"text: blk\.0\.attn_q\.weight( holds|: expected)"):
        collect_imatrix([[1] * 512] * 4, collect=collect, dataset="text", chunk_size=512, batch=1)
