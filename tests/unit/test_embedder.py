"""Texts to vectors through a stand-in engine, and once through a real one."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import tiny_gguf
from tests.fakes import FakeEngine, distinct

from nestling.engine.protocol import TokenIds
from nestling.errors import EngineError, FileFormatError, ModelNotFoundError, TextError, UsageError
from nestling.formats.gguf import Field, GGUFFile
from nestling.inputs.tokenizer import Tokenizer
from nestling.models import local
from nestling.models.embedder import Embedder
from nestling.models.file_spec import spec_of
from nestling.spec import ModelSpec, Task, prefixes_for
from nestling.vectors import Floats, paired_cosine

UNIT = 1e-6  # float32 rows of 256 numbers, each rounded once


@pytest.fixture(scope="module")
def tokenizer(tiny_models: dict[str, Path]) -> Tokenizer:
    return Tokenizer.from_gguf(GGUFFile.open(tiny_models["F32"]))


@pytest.fixture
def embedder(tokenizer: Tokenizer) -> Embedder:
    return Embedder(tiny_gguf.spec(), tokenizer, FakeEngine(tiny_gguf.HIDDEN))


def asked(embedder: Embedder) -> list[str]:
    """The texts that the engine was given, prefixes and all."""
    assert isinstance(embedder.engine, FakeEngine)
    return [embedder.tokenizer.decode(ids) for ids in embedder.engine.asked]


def answering(tokenizer: Tokenizer, answer: Callable[[TokenIds, int], Floats]) -> Embedder:
    return Embedder(tiny_gguf.spec(), tokenizer, FakeEngine(tiny_gguf.HIDDEN, answer))


# Prefixes.


@pytest.mark.parametrize(
    ("task", "prompt", "prefix"),
    [
        (Task.RETRIEVAL, "query", "Query: "),
        (Task.RETRIEVAL, "passage", "Passage: "),
        (Task.RETRIEVAL, "document", "Passage: "),
        (Task.CODE, "query", "Query: "),
        (Task.CODE, "passage", "Passage: "),
        (Task.TEXT_MATCHING, "query", "Query: "),
        (Task.TEXT_MATCHING, "passage", "Query: "),
        (Task.TEXT_MATCHING, "document", "Query: "),
        (Task.TEXT_MATCHING, "raw", ""),
        (Task.RETRIEVAL, "raw", ""),
    ],
)
def test_the_prefix_of_task_and_role(tokenizer: Tokenizer, task: Task, prompt: str, prefix: str) -> None:
    embedder = Embedder(tiny_gguf.spec(task), tokenizer, FakeEngine(tiny_gguf.HIDDEN))
    embedder.encode(["a text", "β"], prompt_name=prompt)
    assert asked(embedder) == [f"{prefix}a text", f"{prefix}β"]


def test_query_is_the_default_and_the_short_forms_name_their_role(embedder: Embedder) -> None:
    embedder.encode(["t"])
    embedder.encode_query(["t"])
    embedder.encode_document(["t"])
    assert asked(embedder) == ["Query: t", "Query: t", "Passage: t"]


def test_the_prefix_is_tokenized_with_the_text(embedder: Embedder) -> None:
    """`Query: ` ends in a blank, which belongs to the text's first token: ` the` is one token here."""
    ids = embedder.tokenize(["the"])[0]
    assert embedder.tokenizer.decode(ids[-1:]) == " the"


def test_an_unknown_prompt_is_refused(embedder: Embedder) -> None:
    with pytest.raises(UsageError, match="query, passage, raw"):
        embedder.encode(["t"], prompt_name="answer")


def test_special_tokens_inside_a_text_are_single_tokens(embedder: Embedder) -> None:
    ids = embedder.tokenize(["<|im_start|>x<|im_end|><|endoftext|>"], prompt_name="raw")[0]
    assert [embedder.tokenizer.decode([int(number)]) for number in ids] == [
        "<|im_start|>", "x", "<|im_end|>", "<|endoftext|>",
    ]  # fmt: skip
    assert len(embedder.tokenize(["<|im_start"], prompt_name="raw")[0]) > 4


# Sizes.


def test_mean_then_normalise_then_truncate_then_normalise(embedder: Embedder) -> None:
    ids = embedder.tokenize(["a", "b"])
    pooled = np.stack([distinct(one, 256) for one in ids]).astype(np.float64)
    for size in tiny_gguf.DIMENSIONS:
        cut = pooled[:, :size]
        expected = cut / np.linalg.norm(cut, axis=1, keepdims=True)
        found = embedder.encode(["a", "b"], truncate_dim=size)
        assert (found.dtype.name, found.shape) == ("float32", (2, size))
        np.testing.assert_allclose(found, expected, atol=UNIT)


def test_no_size_is_the_full_one(embedder: Embedder) -> None:
    assert embedder.encode(["a"]).shape == (1, 256)


@pytest.mark.parametrize("size", [0, -1, 16, 33, 255, 257, True])
def test_untrained_sizes_are_refused_before_anything_is_run(embedder: Embedder, size: Any) -> None:
    with pytest.raises(UsageError, match="expected one of 32, 64, 128, 256"):
        embedder.encode(["a"], truncate_dim=size)
    with pytest.raises(UsageError, match="expected one of 32, 64, 128, 256"):
        embedder.encode([], truncate_dim=size)
    assert asked(embedder) == []


@pytest.mark.parametrize("size", [None, 32])
def test_no_texts_give_no_rows_of_the_right_width(embedder: Embedder, size: int | None) -> None:
    found = embedder.encode([], truncate_dim=size)
    assert (found.shape, found.dtype.name) == ((0, size or 256), "float32")
    assert asked(embedder) == []


# Texts that cannot be embedded.


@pytest.mark.parametrize("text", ["", " ", " \n\t", "\u3000\u00a0"])
def test_an_empty_text_is_named(embedder: Embedder, text: str) -> None:
    with pytest.raises(TextError, match="input 1: the text is empty") as caught:
        embedder.encode(["a", text])
    assert caught.value.index == 1
    assert asked(embedder) == []


@pytest.mark.parametrize(("text", "kind"), [(None, "NoneType"), (3, "int"), (b"a", "bytes"), (["a"], "list")])
def test_what_is_no_text_is_named(embedder: Embedder, text: Any, kind: str) -> None:
    with pytest.raises(TextError, match=f"input 2: expected a string, not {kind}"):
        embedder.encode(["a", "b", text])


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_a_lone_surrogate_is_named(embedder: Embedder, text: str) -> None:
    with pytest.raises(TextError, match=r"input 0: the lone surrogate U\+D[8F]") as caught:
        embedder.encode([text])
    assert caught.value.index == 0


@pytest.mark.parametrize("encode", ["encode", "encode_query", "encode_document"])
def test_a_single_text_in_place_of_a_list_is_refused(embedder: Embedder, encode: str) -> None:
    with pytest.raises(UsageError, match="expected a list of strings"):
        getattr(embedder, encode)("a text")


@pytest.mark.parametrize("text", ["a\0b", "\0", "\ufeff", "\u202eabc", "👨‍👩‍👧", "\u0301", "\ufdd0\U0010ffff"])
def test_odd_texts_are_texts(embedder: Embedder, text: str) -> None:
    """Every character has its tokens; only what has no UTF-8 form is refused."""
    embedder.encode([text], prompt_name="raw")
    assert asked(embedder) == [text]


def test_composed_and_decomposed_are_the_same_text(embedder: Embedder) -> None:
    ids = embedder.tokenize(["Caf\u00e9", "Cafe\u0301"])
    np.testing.assert_array_equal(ids[0], ids[1])


@pytest.mark.parametrize("texts", [("a", "b"), {"a": 1, "b": 2}, (text for text in "ab"), np.array(["a", "b"])])
def test_other_collections_lose_no_text(embedder: Embedder, texts: Any) -> None:
    assert embedder.encode(texts).shape == (2, 256)
    assert sorted(asked(embedder)) == ["Query: a", "Query: b"]  # batches take the longest first


# Lengths.


@pytest.fixture
def short(tokenizer: Tokenizer) -> Embedder:
    spec = ModelSpec("short", Task.RETRIEVAL, (256,), 12, prefixes_for(Task.RETRIEVAL))
    return Embedder(spec, tokenizer, FakeEngine(256))


def test_the_prefix_counts_and_the_limit_itself_fits(short: Embedder) -> None:
    """`Query: ` has six tokens here, every x one."""
    assert short.encode(["x" * 6]).shape == (1, 256)
    with pytest.raises(TextError, match="13 tokens, this model takes 12"):
        short.encode(["x" * 7])


def test_a_text_that_is_too_long_is_refused_with_both_lengths(short: Embedder) -> None:
    tokens = len(short.tokenizer.encode(["Query: " + "x" * 40])[0])
    with pytest.raises(TextError, match=f"input 1: {tokens} tokens, this model takes 12; truncate=True") as caught:
        short.encode(["a", "x" * 40])
    assert caught.value.index == 1
    assert asked(short) == []


def test_truncating_keeps_the_left_with_its_prefix(short: Embedder) -> None:
    text = "abcdefghijklmnopqrstuvwxyz"
    found = short.encode([text, "b"], truncate=True)
    assert isinstance(short.engine, FakeEngine)
    assert len(short.engine.asked[0]) == 12
    assert f"Query: {text}".startswith(asked(short)[0])
    np.testing.assert_array_equal(found, short.encode([text + "more", "b"], truncate=True))


# Token ids as they are.


@pytest.mark.parametrize("bad", [[-1], [0, 1 << 20], []])
def test_ids_outside_the_vocabulary_are_named(embedder: Embedder, bad: list[int]) -> None:
    with pytest.raises(TextError, match=r"input 1: (expected token ids from 0 to 265|0 tokens)"):
        embedder.embed_ids([np.array([1], np.int32), np.array(bad, np.int32)])
    assert asked(embedder) == []


def test_more_ids_than_the_model_takes_are_named(short: Embedder) -> None:
    with pytest.raises(TextError, match="input 0: 13 tokens: expected 1 to 12"):
        short.embed_ids([np.zeros(13, np.int32)])


def test_ids_and_texts_give_the_same(embedder: Embedder) -> None:
    np.testing.assert_array_equal(
        embedder.embed_ids(embedder.tokenize(["a", "b"]), dimension=64), embedder.encode(["a", "b"], truncate_dim=64)
    )


# Engines that fail.


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_what_is_no_vector_is_an_error_and_never_an_answer(tokenizer: Tokenizer, value: float) -> None:
    def broken(ids: TokenIds, width: int) -> Floats:
        found = distinct(ids, width)
        if tokenizer.decode(ids).endswith("bad"):
            found[:] = value
        return found

    embedder = answering(tokenizer, broken)
    with pytest.raises(EngineError, match="vector 1 is zero or not finite"):
        embedder.encode(["good", "bad"])
    assert embedder.encode(["good"]).shape == (1, 256)


def test_a_single_nan_in_a_part_that_is_cut_off_is_an_error(tokenizer: Tokenizer) -> None:
    def broken(ids: TokenIds, width: int) -> Floats:
        found = distinct(ids, width)
        found[-1] = np.nan
        return found

    with pytest.raises(EngineError):
        answering(tokenizer, broken).encode(["a"], truncate_dim=32)


def test_nan_weights_are_an_engine_error(tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "x.gguf")
    file = GGUFFile.open(tmp_path / "x.gguf")
    with (tmp_path / "x.gguf").open("r+b") as raw:
        raw.seek(file.tensors["blk.1.ffn_norm.weight"].offset)
        raw.write(np.float32(np.nan).tobytes())
    for engine in ("reference", "openvino"):
        with pytest.raises(EngineError):
            Embedder.load(tmp_path / "x.gguf", engine=engine).encode(["a"])


def test_closing_closes_the_engine(embedder: Embedder) -> None:
    embedder.close()
    assert isinstance(embedder.engine, FakeEngine)
    assert embedder.engine.closed


# Any texts at all.


@given(texts=st.lists(st.text(min_size=1, max_size=20).filter(str.strip), min_size=1, max_size=5))
def test_every_vector_is_a_unit_vector_of_its_text_alone(tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    embedder = Embedder(tiny_gguf.spec(), tokenizer, FakeEngine(tiny_gguf.HIDDEN))
    together = embedder.encode(texts, truncate_dim=64)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=UNIT)
    for text, row in zip(texts, together, strict=True):
        np.testing.assert_array_equal(embedder.encode([text], truncate_dim=64)[0], row)


# Loading.


def test_loaded_from_a_file_it_answers_with_any_engine(tiny_models: dict[str, Path]) -> None:
    texts = ["a beach", "the sea, at night", "<|im_end|>"]
    first, *others = (Embedder.load(tiny_models["F32"], engine=name) for name in ("reference", "auto", "llamacpp"))
    expected = first.encode(texts)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=UNIT)
    for embedder in others:
        assert paired_cosine(embedder.encode(texts), expected).min() >= 0.9999
    assert first.spec == tiny_gguf.spec()


@pytest.mark.parametrize(
    ("reference", "arguments", "error"),
    [
        ("absent.gguf", {}, ModelNotFoundError),
        ("nobody-code", {}, ModelNotFoundError),
        ("starter", {}, UsageError),
        ("starter-retrieval:Q9", {}, UsageError),
        ("absent.gguf", {"engine": "tensorflow"}, UsageError),
    ],
)
def test_what_cannot_be_loaded(reference: str, arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Embedder.load(reference, **arguments)


def test_no_threads_are_refused(tiny_models: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="threads=0: expected at least 1"):
        Embedder.load(tiny_models["F32"], threads=0)


def test_a_file_without_a_spec_is_refused(tiny_models: dict[str, Path]) -> None:
    file = GGUFFile.open(tiny_models["F32"])
    del file.metadata["nestling.spec"]
    with pytest.raises(FileFormatError, match=r"tiny-F32\.gguf: no nestling\.spec"):
        spec_of(file)


def test_a_spec_that_cannot_be_read_names_the_file(tiny_models: dict[str, Path]) -> None:
    file = GGUFFile.open(tiny_models["F32"])
    file.metadata["nestling.spec"] = Field.uint32(3)
    with pytest.raises(FileFormatError, match=r"tiny-F32\.gguf: nestling\.spec: not a model specification"):
        spec_of(file)


def test_a_spec_of_another_width_is_refused(tiny_models: dict[str, Path]) -> None:
    file = GGUFFile.open(tiny_models["F32"])
    other = ModelSpec("tiny", Task.CODE, (32, 512), 9, prefixes_for(Task.CODE))
    file.metadata["nestling.spec"] = Field.string(other.to_json())
    with pytest.raises(FileFormatError, match="512 dimensions, the weights 256"):
        spec_of(file)


def test_the_starter_loads_by_its_name(starter_q8: Path) -> None:
    embedder = Embedder.load("starter-retrieval", engine="openvino")
    assert (embedder.spec.name, starter_q8.name) == ("starter-retrieval", "starter-text-retrieval-Q8_0.gguf")
    assert local.DEFAULT_QUANT == "Q8_0"
    assert embedder.encode_query(["a"], truncate_dim=32).shape == (1, 32)
