import sys
from pathlib import Path

import pytest
from benchmarks import make_checkpoint
from benchmarks.make_checkpoint import SHAPES

from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.conversion.merge import task_model
from nestling.pipeline.conversion.tokenizer_fields import tokenizer_fields
from nestling.spec import Task


def test_the_published_counts_come_out() -> None:
    shape = SHAPES["jina-v4"]
    make_checkpoint.check_counts(shape)  # raises when base, projector or adapters differ from the published counts
    assert shape.counts == (3_754_622_976, 262_272, 59_936_768)
    assert len(make_checkpoint.adapter_shapes(shape)) == 1518


def test_a_small_one_is_a_sound_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["make_checkpoint.py", "--shape", "tiny", "--out", str(tmp_path / "made")])
    monkeypatch.setattr(make_checkpoint, "PERIOD", 100_003)
    make_checkpoint.main()
    checkpoint = Checkpoint.open(tmp_path / "made")
    for task in Task:
        for merged in task_model(checkpoint, task).tensors:
            assert sum(len(piece) for piece in merged.pieces(lambda rows: rows)) == merged.tensor.shape[0]
    fields = tokenizer_fields(checkpoint.tokenizer_json, vocab_size=checkpoint.config.vocab)
    tokens = fields["tokenizer.ggml.tokens"].value
    assert tokens.index("<|endoftext|>") == SHAPES["tiny"].entries
    assert tokens.index("<|image_pad|>") == SHAPES["tiny"].entries + 12
