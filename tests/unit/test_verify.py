from pathlib import Path

import numpy as np
import pytest
from tests import tiny_gguf

from nestling.engine.protocol import TokenIds
from nestling.errors import UsageError
from nestling.evaluation import verify as module
from nestling.evaluation.verify import Check, verify
from nestling.formats.gguf import GGUFFile
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.pipeline import Pipeline
from nestling.spec import ModelSpec, Task
from nestling.vectors import Floats

ENGINES = ["alone = in a batch", "openvino = llamacpp"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two short probes: what is checked does not depend on how many there are."""
    monkeypatch.setattr(module, "PROBES", ("sunset", "海滩上美丽的日落"))


@pytest.fixture
def with_card(small_checkpoint: Path, tmp_path: Path) -> Path:
    """A Q8_0 file with its card."""
    return Pipeline(Checkpoint.open(small_checkpoint), tmp_path, "small", 1).build([Task.CODE], ["Q8_0"])[-1].path


def failed(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if not check.passed]


def spoil(path: Path, tensor: str, value: bytes) -> None:
    offset = GGUFFile.open(path).tensors[tensor].offset
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(value)


def test_a_sound_file_passes_every_check(with_card: Path) -> None:
    checks = verify(with_card)
    assert [check.name for check in checks] == ["structure", "hash", "weights", *ENGINES]
    assert failed(checks) == []
    assert "small-code, 2 layers of 64" in checks[0].detail
    assert "as on the card" in checks[1].detail
    assert "needed 0.999" in checks[4].detail


def test_a_file_without_a_card_is_said_to_have_none(tiny_models: dict[str, Path]) -> None:
    checks = verify(tiny_models["F32"])
    assert failed(checks) == []
    assert "no card to compare with" in checks[1].detail
    assert "needed 0.9999" in checks[4].detail


def test_a_flipped_bit_of_a_weight_is_a_wrong_hash_and_the_rest_is_still_checked(with_card: Path) -> None:
    spoil(with_card, "blk.0.ffn_up.weight", b"\1\2")
    checks = verify(with_card)
    assert failed(checks) == ["hash"]
    assert "the card says" in checks[1].detail
    assert [check.name for check in checks][3:] == ENGINES


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named_and_no_engine_is_run(with_card: Path, value: float) -> None:
    spoil(with_card, "blk.1.ffn_down.weight", np.float16(value).tobytes())  # the scale of a Q8_0 block
    checks = verify(with_card)
    assert failed(checks) == ["hash", "weights"]
    assert "blk.1.ffn_down.weight holds NaN or infinity" in checks[-1].detail


def test_what_is_no_model_is_one_failed_check(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(60))
    (check,) = verify(tmp_path / "x.gguf")
    assert (check.name, check.passed) == ("structure", False)
    assert "GGUF version 0" in check.detail


def test_engines_that_differ_are_found(with_card: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    monkeypatch.setattr(module, "_run", lambda *_: rng.standard_normal((2, 64)).astype(np.float32))
    assert failed(verify(with_card)) == ["openvino = llamacpp"]


def test_a_vector_that_depends_on_its_company_is_found(with_card: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = module._together_and_alone

    def shuffled(path: Path, ids: list[TokenIds], spec: ModelSpec | None) -> tuple[Floats, Floats]:
        together, alone = run(path, ids, spec)
        return together, alone[::-1]

    monkeypatch.setattr(module, "_together_and_alone", shuffled)
    assert failed(verify(with_card)) == ["alone = in a batch"]


def test_against_another_file_the_cosine_is_told(with_card: Path) -> None:
    check = verify(with_card, against=with_card.with_name("small-text-code-F16.gguf"))[-1]
    assert check.name == "cosine to small-text-code-F16.gguf"
    lowest = float(check.detail.rsplit(" ", 1)[1])
    assert 0.99 < lowest <= 1


def test_against_itself_the_cosine_is_one(with_card: Path) -> None:
    assert verify(with_card, against=with_card)[-1].detail == "cosine mean 1.000000, lowest 1.000000"


def test_models_of_different_tasks_are_not_compared(with_card: Path, tmp_path: Path) -> None:
    other = tiny_gguf.write(tmp_path / "tiny.gguf", task=Task.RETRIEVAL)
    with pytest.raises(UsageError, match="is tiny-retrieval, this file is small-code"):
        verify(with_card, against=other)
