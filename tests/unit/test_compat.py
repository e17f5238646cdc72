import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests import tiny_gguf
from tests.picture_files import png
from tests.pictures import gradient

from nestling.compat import JinaEmbeddingsV4
from nestling.errors import ImageError, ModelNotFoundError, TextError, UsageError
from nestling.models.embedder import Embedder
from nestling.models.local import family_folder
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.pipeline import Pipeline, model_path
from nestling.spec import Task
from nestling.vectors import paired_cosine

# The published signatures of modeling_jina_embeddings_v4.py: name -> default, in order.
ENCODE_TEXT = {
    "texts": inspect.Parameter.empty, "task": None, "max_length": 32768, "batch_size": 8, "return_multivector": False,
    "return_numpy": False, "truncate_dim": None, "prompt_name": None,
}  # fmt: skip
ENCODE_IMAGE = {
    "images": inspect.Parameter.empty, "task": None, "batch_size": 8, "return_multivector": False,
    "return_numpy": False, "truncate_dim": None, "max_pixels": None,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def family(cache_folder: Path) -> str:
    """A family of three tiny models of different weights in the cache."""
    assert cache_folder.is_dir()
    for seed, task in enumerate(Task):
        path = model_path(family_folder("kin"), family="kin", task=task, file_type="F32")
        path.parent.mkdir(parents=True, exist_ok=True)
        tiny_gguf.write(path, task=task, seed=seed)
    return "kin"


@pytest.fixture(scope="module")
def model(family: str) -> JinaEmbeddingsV4:
    return JinaEmbeddingsV4.from_pretrained(family, quant="F32", engine="reference")


@pytest.mark.parametrize(("name", "expected"), [("encode_text", ENCODE_TEXT), ("encode_image", ENCODE_IMAGE)])
def test_the_signature_is_the_originals(name: str, expected: dict[str, Any]) -> None:
    parameters = list(inspect.signature(getattr(JinaEmbeddingsV4, name)).parameters.values())[1:]
    assert {one.name: one.default for one in parameters} == expected
    assert [one.name for one in parameters] == list(expected)
    assert {one.kind for one in parameters} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("prompt", [None, "query", "passage"])
def test_each_task_answers_as_its_embedder(model: JinaEmbeddingsV4, task: Task, prompt: str | None) -> None:
    embedder = Embedder.load(f"kin-{task}:F32", engine="reference")
    found = model.encode_text(["a beach", "the sea"], task=task.value, prompt_name=prompt)
    assert isinstance(found, list)
    assert [(row.shape, row.dtype) for row in found] == [((256,), np.dtype(np.float32))] * 2
    np.testing.assert_array_equal(found, embedder.encode(["a beach", "the sea"], prompt_name=prompt or "query"))


def test_the_tasks_are_different_models(model: JinaEmbeddingsV4) -> None:
    rows = [model.encode_text("a beach", task=task.value) for task in Task]
    assert paired_cosine(np.stack(rows), np.stack(rows[1:] + rows[:1])).max() < 0.9


@pytest.mark.parametrize("given", ["argument", "attribute"])
def test_text_matching_puts_query_on_both_sides_whatever_way_it_is_given(family: str, given: str) -> None:
    model = JinaEmbeddingsV4.from_pretrained(family, quant="F32", engine="reference")
    model.task = Task.TEXT_MATCHING.value if given == "attribute" else None
    task = None if given == "attribute" else Task.TEXT_MATCHING.value
    query, passage = (model.encode_text(["a"], task=task, prompt_name=name)[0] for name in ("query", "passage"))
    np.testing.assert_array_equal(query, passage)
    query, passage = (model.encode_text(["a"], task="code", prompt_name=name)[0] for name in ("query", "passage"))
    assert not np.array_equal(query, passage)


@pytest.mark.parametrize("texts", [["a"], ("a",)])
def test_one_text_gives_its_vector_and_a_list_gives_a_list(model: JinaEmbeddingsV4, texts: Sequence[str]) -> None:
    """The original's `return_list = isinstance(texts, list)`."""
    single, several = model.encode_text("a", task="code"), model.encode_text(texts, task="code")
    assert (single.shape, type(several), len(several)) == ((256,), list, 1)
    np.testing.assert_array_equal(several[0], single)


def test_multi_vectors_of_one_text_and_of_a_list(model: JinaEmbeddingsV4, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Embedder, "embed_tokens", lambda _self, ids: [np.ones((len(one), 4)) for one in ids])
    single = model.encode_text("a", task="code", return_multivector=True)
    several = model.encode_text(["a"], task="code", return_multivector=True)
    assert (single.ndim, type(several), several[0].shape) == (2, list, single.shape)


@pytest.mark.parametrize("name", ["jinaai/jina-embeddings-v4", "jina-embeddings-v4", "jina-v4"])
def test_the_originals_call_finds_the_family(name: str) -> None:
    model = JinaEmbeddingsV4.from_pretrained(name, trust_remote_code=True)
    with pytest.raises(ModelNotFoundError, match=r"^jina-v4-retrieval:Q8_0: .*`nestling pull jina-v4-retrieval:Q8_0`"):
        model.encode_text("a", task="retrieval")


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("kin", {"torch_dtype": "float16"}, "torch_dtype: not supported; quant sets the precision"),
        ("kin", {"device_map": "cuda", "revision": "x"}, "device_map, revision: not supported"),
        ("other/model", {}, "name='other/model': expected the name of a family or one of jinaai/jina-embeddings-v4"),
        (None, {}, "name: expected the name of a family, not NoneType"),
    ],
)
def test_a_call_that_cannot_be_honoured_is_refused_by_name(name: Any, more: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        JinaEmbeddingsV4.from_pretrained(name, **more)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("texts", [None, 3, b"a", [None], [3]])
def test_what_is_no_text_is_refused(model: JinaEmbeddingsV4, texts: Any) -> None:
    with pytest.raises(UsageError, match="expected"):
        model.encode_text(texts, task="code")


def test_no_texts(model: JinaEmbeddingsV4) -> None:
    assert model.encode_text([], task="code") == []


def test_what_changes_nothing_changes_nothing(model: JinaEmbeddingsV4) -> None:
    texts = ["a", "b c", "d"]
    plain = model.encode_text(texts, task="code")
    np.testing.assert_array_equal(model.encode_text(texts, task="code", batch_size=1, return_numpy=True), plain)


def test_truncate_dim(model: JinaEmbeddingsV4) -> None:
    row = model.encode_text("a", task="code", truncate_dim=64)
    assert row.shape == (64,)
    assert np.linalg.norm(row) == pytest.approx(1, abs=1e-6)
    with pytest.raises(UsageError, match="expected one of 32, 64, 128, 256"):
        model.encode_text("a", task="code", truncate_dim=100)


def test_max_length_cuts_on_the_right(model: JinaEmbeddingsV4) -> None:
    """Like the original, and counted with the prefix."""
    long, longer = "x" * 50, "x" * 99
    np.testing.assert_array_equal(
        model.encode_text(long, task="code", max_length=20), model.encode_text(longer, task="code", max_length=20)
    )
    assert not np.array_equal(model.encode_text(long, task="code"), model.encode_text(longer, task="code"))


def test_a_text_longer_than_the_model_is_cut(model: JinaEmbeddingsV4) -> None:
    assert model.encode_text("x y " * tiny_gguf.CONTEXT, task="code", max_length=64).shape == (256,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "task: expected one of retrieval, text-matching, code"),
        ({"task": "clustering"}, "retrieval, text-matching, code"),
        ({"task": "code", "prompt_name": "answer"}, "query, passage, raw"),
        ({"task": "code", "return_multivector": True, "truncate_dim": 32}, "token vectors have one size"),
        ({"task": "code", "max_length": 0}, "max_length=0"),
        ({"task": "code", "batch_size": 0}, "batch_size=0"),
    ],
)
def test_what_cannot_be_honoured_is_refused(model: JinaEmbeddingsV4, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        model.encode_text(["a"], **arguments)


def test_an_empty_text_is_named(model: JinaEmbeddingsV4) -> None:
    with pytest.raises(TextError, match="input 1: the text is empty"):
        model.encode_text(["a", ""], task="code")


@pytest.fixture(scope="module")
def pictured(vision_checkpoint: Path) -> JinaEmbeddingsV4:
    """A family with a vision tower."""
    Pipeline(Checkpoint.open(vision_checkpoint), family_folder("seer"), "seer", 1).build(list(Task), ["F32"])
    return JinaEmbeddingsV4.from_pretrained("seer", quant="F32", engine="reference")


def test_one_image_gives_one_vector_and_a_list_a_list(pictured: JinaEmbeddingsV4, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    embedder = Embedder.load("seer-retrieval:F32", engine="reference")
    expected = embedder.encode_image([png(), gradient(56, 84)])
    for one in (str(tmp_path / "a.png"), tmp_path / "a.png", Image.open(tmp_path / "a.png"), png()):
        np.testing.assert_array_equal(pictured.encode_image(one, "retrieval"), expected[0])
    found = pictured.encode_image([png(), gradient(56, 84)], task="retrieval", batch_size=1, return_numpy=True)
    assert isinstance(found, list)
    np.testing.assert_array_equal(np.stack(found), expected)
    np.testing.assert_array_equal(pictured.encode_image(gradient(56, 84), "retrieval"), expected[1])
    assert pictured.encode_image([png()], "code", truncate_dim=16)[0].shape == (16,)


def test_images_get_multi_vectors_and_pixels_for_this_call(pictured: JinaEmbeddingsV4) -> None:
    few = pictured.encode_image(gradient(500, 500), "code", return_multivector=True, max_pixels=9 * 784)
    many = pictured.encode_image([gradient(500, 500)], "code", return_multivector=True)
    assert few.shape[0] == 9 + 20 < many[0].shape[0]
    assert few.shape[1] == 32
    with pytest.raises(UsageError, match="not supported with return_multivector"):
        pictured.encode_image([png()], "code", return_multivector=True, truncate_dim=16)


def test_a_url_of_an_image_is_fetched_from_public_addresses_alone(
    pictured: JinaEmbeddingsV4, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ImageError, match=r"input 1: url: its host has no address or one that is not public"):
        pictured.encode_image([png(), "http://127.0.0.1/a.png"], "code")
    asked: list[str] = []

    def fetch(_self: object, url: str) -> bytes:
        asked.append(url)
        return png()

    monkeypatch.setattr("nestling.compat.Downloads.fetch", fetch)
    np.testing.assert_array_equal(
        pictured.encode_image("https://example.com/a.png", "code"), pictured.encode_image(png(), "code")
    )
    assert asked == ["https://example.com/a.png"]


def test_a_family_without_a_tower_refuses_images(model: JinaEmbeddingsV4) -> None:
    with pytest.raises(UsageError, match="no vision tower"):
        model.encode_image([png()], task="retrieval")


def test_an_absent_family_is_named_when_it_is_used() -> None:
    model = JinaEmbeddingsV4.from_pretrained("nobody")
    with pytest.raises(ModelNotFoundError, match="nobody-code:Q8_0: not on this machine"):
        model.encode_text(["a"], task="code")
