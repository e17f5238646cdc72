"""The bytes of converted files: recorded once, equal on every machine and every run.

A change of these hashes is a change of the file format, of the merge, of rounding, or of the starter's tokenizer, whose
first entries the small checkpoint borrows. Record anew, with the values of the failure, only when that was meant.
"""

from pathlib import Path

import gguf
import numpy as np
import pytest

from nestling._util.files import sha256_file
from nestling.formats.gguf import GGUFFile
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.conversion.convert import convert
from nestling.spec import Task

SHA256 = {
    (Task.RETRIEVAL, "F16"): "0a6a8372abe66950bd6d5f112407f69bd83b194374d9a12cab63d0263da63486",
    (Task.TEXT_MATCHING, "F16"): "dc162be576fe4f7274aa0bec224e8a5c31fb358f3e96b81e4eb8682d3c5fe0f4",
    (Task.CODE, "F16"): "bb8168e3e434ff579a50fdd7065ff86487d30fb70680dc9b30d0e139e72f83d3",
    (Task.CODE, "F32"): "76aa1bc1f5fe458957a567851743fed4e56b137385abfa1bfe615e34e8b81840",
    (Task.CODE, "BF16"): "6a028d87c5cd210eb18bb30749a6de0b113bcb7668b05cf8ad50afa57fefe87d",
}


@pytest.mark.parametrize(("task", "file_type"), SHA256)
def test_recorded_bytes(small_checkpoint: Path, tmp_path: Path, task: Task, file_type: str) -> None:
    out = tmp_path / "model.gguf"
    report = convert(Checkpoint.open(small_checkpoint), task=task, out=out, family="tiny", file_type=file_type)
    assert report.sha256 == sha256_file(out) == SHA256[task, file_type]


def test_gguf_py_reads_what_our_reader_reads(small_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    convert(Checkpoint.open(small_checkpoint), task=Task.CODE, out=out, family="tiny")
    ours, theirs = GGUFFile.open(out), gguf.GGUFReader(out)
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert list(fields) == list(ours.metadata)
    for name, field in ours.metadata.items():
        want = list(field.value) if isinstance(field.value, tuple) else field.value
        assert fields[name] == want
    assert [tensor.name for tensor in theirs.tensors] == list(ours.tensors)
    for tensor in theirs.tensors:
        assert tuple(reversed(tensor.shape.tolist())) == ours.tensors[tensor.name].shape
        np.testing.assert_array_equal(np.ravel(tensor.data.view(np.uint8)), np.ravel(ours.raw(tensor.name)))
