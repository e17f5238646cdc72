"""A file's recorded vectors: made by the build, held against the engine when a server loads the file."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nestling.errors import EngineError, FileFormatError
from nestling.formats.card import Card
from nestling.models.embedder import Embedder
from nestling.pipeline import self_test
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.pipeline import Pipeline
from nestling.server.core.loading import loader
from nestling.server.core.model_pool import Load
from nestling.server.settings import ServeSettings
from nestling.spec import Task

OTHER = "AAAAPAAA"
"""Three float16 numbers: 0, 1, 0."""


@pytest.fixture(scope="module")
def built(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    pipeline = Pipeline(Checkpoint.open(tiny_checkpoint), folder, "tiny", 1, prove=self_test.prove)
    return pipeline.build([Task.CODE], ["Q8_0"])[-1].path


@pytest.fixture
def model(built: Path, tmp_path: Path) -> Path:
    """The built file in a folder of the test's own, where its card can be changed."""
    return Path(shutil.copytree(built.parent, tmp_path / "model")) / built.name


@pytest.fixture
def load() -> Load:
    return loader(ServeSettings(engine="reference"))


def doctor(model: Path, **changes: object) -> None:
    card = Card.read(model)
    assert card
    replace(card, **changes).write(model.parent)  # type: ignore[arg-type]


def test_a_built_file_carries_vectors_that_every_engine_gives(model: Path) -> None:
    card = Card.read(model)
    assert card
    assert list(card.proof) == list(self_test.TEXTS)
    for engine in ("reference", "openvino"):
        embedder = Embedder.load(model, engine=engine)
        self_test.check(model, lambda texts: embedder.encode(texts, prompt_name="raw"))  # noqa: B023 - called at once
        embedder.close()


def test_a_server_does_not_load_a_file_whose_vectors_are_not_its_cards(model: Path, load: Load) -> None:
    load(str(model)).close()
    doctor(model, proof={self_test.TEXTS[0]: OTHER})
    with pytest.raises(
        EngineError, match=r"Q8_0\.gguf: self-test: .* has cosine .* to the card's: expected at least 0\.999"
    ):
        load(str(model))


def test_another_tasks_vectors_are_not_near_enough(model: Path, tiny_checkpoint: Path, load: Load) -> None:
    other = Pipeline(Checkpoint.open(tiny_checkpoint), model.parent, "tiny", 1, prove=self_test.prove)
    strange = other.build([Task.RETRIEVAL], ["Q8_0"])[-1].card
    doctor(model, proof=strange.proof)
    with pytest.raises(EngineError, match="self-test"):
        load(str(model))


@pytest.mark.parametrize(
    "proof",
    ["", "?", "AAA=", "AAAA" * 100, "AAB8", "AAAAAAAA"],
    ids=["none", "no base64", "odd", "wide", "inf", "zero"],
)
def test_a_proof_that_cannot_be_read_is_an_error(model: Path, load: Load, proof: str) -> None:
    doctor(model, proof={"a": proof})
    with pytest.raises(FileFormatError, match="proof"):
        load(str(model))


def test_a_file_without_a_card_or_a_proof_passes(model: Path) -> None:
    def never(_texts: list[str]) -> np.ndarray:
        raise AssertionError

    doctor(model, proof={})
    self_test.check(model, never)
    model.with_suffix(".json").unlink()
    self_test.check(model, never)
