"""Whatever encodes: order, chunks, prompts, and answers that are not vectors."""

import importlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.evaluation_samples import FakeEncoder

from nestling.errors import EngineError, ModelNotFoundError, TextError, UsageError
from nestling.evaluation.encoders import LocalEncoder, RemoteEncoder, encode_all, expand, open_encoder
from nestling.models.embedder import Embedder
from nestling.spec import Role, Task
from nestling.vectors import Floats

WRAPPER = "nestling.evaluation.mteb_model"
URL = "http://localhost:9/v1"


def lengths(texts: Sequence[str], _: Role) -> Floats:
    return np.array([[len(text), 1] for text in texts], np.float32)


def test_texts_go_longest_first_in_chunks_and_come_back_in_order() -> None:
    encoder = FakeEncoder(lengths)
    texts = ["x" * (1 + 37 * number % 101) for number in range(150)]
    told: list[tuple[int, int]] = []
    found = encode_all(encoder, texts, role=Role.PASSAGE, progress=lambda done, total: told.append((done, total)))
    assert found[:, 0].tolist() == [len(text) for text in texts]
    asked = [len(text) for chunk, _ in encoder.asked for text in chunk]
    assert asked == sorted(asked, reverse=True)
    assert told == [(64, 150), (128, 150), (150, 150)]
    assert {role for _, role in encoder.asked} == {Role.PASSAGE}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.ones((3, 4), np.float32), "expected 2 vectors, found an array of shape"),
        (np.ones(2, np.float32), "expected 2 vectors, found an array of shape"),
        (np.array([[1, np.nan], [1, 1]], np.float32), "zero or not finite"),
        (np.array([[1, 1], [0, 0]], np.float32), "zero or not finite"),
    ],
)
def test_what_is_not_a_vector_is_refused(answer: Floats, message: str) -> None:
    with pytest.raises(EngineError, match=f"fake: .*{message}"):
        encode_all(FakeEncoder(lambda _texts, _role: answer), ["a", "b"], role=Role.QUERY)


def test_widths_that_change_are_refused() -> None:
    encoder = FakeEncoder(lambda texts, _: np.ones((len(texts), 2 if len(texts) == 64 else 3), np.float32))
    with pytest.raises(EngineError, match="different widths"):
        encode_all(encoder, ["x"] * 65, role=Role.QUERY)


def test_a_text_that_cannot_be_embedded_is_named_by_its_place_in_the_whole() -> None:
    def refuse(texts: Sequence[str], _: Role) -> Floats:
        raise TextError("9 tokens, this model takes 8", index=list(texts).index("long one"))

    with pytest.raises(TextError, match=r"input 3: 9 tokens, this model takes 8 \(query 'long one'\)"):
        encode_all(FakeEncoder(refuse), ["a", "bb", "c", "long one"], role=Role.QUERY)


def test_a_file_is_encoded_with_its_prompts(tiny_models: dict[str, Path]) -> None:
    encoder = open_encoder(str(tiny_models["F32"]), engine="reference")
    embedder = Embedder.load(tiny_models["F32"], engine="reference")
    assert isinstance(encoder, LocalEncoder)
    assert encoder.task is Task.RETRIEVAL
    for role in (Role.QUERY, Role.PASSAGE):
        np.testing.assert_array_equal(
            encode_all(encoder, ["a cat"], role=role), embedder.encode(["a cat"], prompt_name=role)
        )
    encoder.close()


def test_a_server_that_knows_roles_is_asked_for_them() -> None:
    encoder = RemoteEncoder(f"{URL}#starter:Q4_K_M/code")
    assert encoder.task is Task.CODE
    assert encoder.body(["x"], role=Role.PASSAGE) == {"input": ["x"], "model": "starter:Q4_K_M/code.passage"}


@pytest.mark.parametrize(
    ("task", "role", "text"),
    [
        (Task.RETRIEVAL, Role.QUERY, "Query: x"),
        (Task.RETRIEVAL, Role.PASSAGE, "Passage: x"),
        (Task.TEXT_MATCHING, Role.PASSAGE, "Query: x"),
    ],
)
def test_any_other_server_gets_the_prefix(task: Task, role: Role, text: str) -> None:
    encoder = RemoteEncoder(f"{URL}#jinaai/jina-embeddings-v4", task=task)
    assert encoder.body(["x"], role=role) == {"input": [text], "model": "jinaai/jina-embeddings-v4"}


def test_a_server_without_a_task_is_refused() -> None:
    with pytest.raises(UsageError, match="expected a task"):
        open_encoder(f"{URL}#some-model")


def test_references_expand(tmp_path: Path) -> None:
    for name in ("b.gguf", "a.gguf"):
        (tmp_path / name).touch()
    starter = ["starter-retrieval:Q8_0", "starter-text-matching:Q8_0", "starter-code:Q8_0"]
    assert expand(["starter:Q8_0", "starter-code:q8_0"]) == starter
    assert expand([str(tmp_path)]) == [str(tmp_path / "a.gguf"), str(tmp_path / "b.gguf")]
    assert expand([f"{URL}#m/code", "x/y.gguf"]) == [f"{URL}#m/code", "x/y.gguf"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFoundError, match="no GGUF files"):
        expand([str(tmp_path / "empty")])


class _Meta(SimpleNamespace):
    @classmethod
    def create_empty(cls, overwrites: dict[str, Any]) -> "_Meta":
        return cls(**overwrites)


@pytest.fixture
def mteb_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The wrapper's module, with stand-ins for the two names of mteb 2 that it imports."""
    for name in ("mteb", "mteb.models"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "mteb.models.abs_encoder", SimpleNamespace(AbsEncoder=object))
    monkeypatch.setitem(sys.modules, "mteb.models.model_meta", SimpleNamespace(ModelMeta=_Meta))
    sys.modules.pop(WRAPPER, None)
    yield importlib.import_module(WRAPPER)
    sys.modules.pop(WRAPPER, None)


@pytest.mark.parametrize(("prompt_type", "role"), [("query", "query"), ("document", "passage"), (None, "query")])
def test_mteb_gets_the_right_prompts(
    mteb_model: ModuleType, tiny_models: dict[str, Path], prompt_type: str | None, role: str
) -> None:
    embedder = Embedder.load(tiny_models["F32"], engine="reference")
    model = mteb_model.NestlingModel(embedder, truncate_dim=64)
    batches = [{"text": ["a cat", "the sea"]}, {"text": ["x"]}]
    side = SimpleNamespace(value=prompt_type) if prompt_type else None
    found = model.encode(batches, task_metadata=None, hf_split="test", hf_subset="en", prompt_type=side, batch_size=8)
    wanted = embedder.encode(["a cat", "the sea", "x"], prompt_name=role, truncate_dim=64)
    np.testing.assert_allclose(found, wanted, atol=1e-6)  # the reference engine sums in another order a batch
    assert (model.mteb_model_meta.name, model.mteb_model_meta.embed_dim) == ("nestling/tiny-retrieval", 64)
    assert model.encode([], prompt_type=None).shape == (0, 64)


def test_mteb_texts_are_cut_to_the_model(mteb_model: ModuleType, tiny_models: dict[str, Path]) -> None:
    embedder = Embedder.load(tiny_models["F32"], engine="reference")
    embedder.spec = replace(embedder.spec, max_tokens=16)
    found = mteb_model.NestlingModel(embedder).encode([{"text": ["abc " * 50]}])
    np.testing.assert_allclose(found, embedder.encode(["abc " * 50], truncate=True), atol=1e-6)
