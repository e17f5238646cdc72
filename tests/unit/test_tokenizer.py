import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tests.golden.texts import LONG_TEXTS, TEXTS
from tests.tiny import SMALL_VOCAB, STARTER, cut_tokenizer, write_json

from nestling.errors import CheckpointError, GGUFError, TextError, UsageError
from nestling.formats.gguf import Field, GGUFFile
from nestling.inputs.qwen2 import TokenType
from nestling.inputs.tokenizer import Tokenizer
from nestling.pipeline.conversion.tokenizer_fields import tokenizer_fields

SOURCE = STARTER / "tokenizer.json"
VOCAB = 24064
END = 24058  # <|im_end|>
ENTRIES = SMALL_VOCAB - 16


def opened(fields: dict[str, Field]) -> GGUFFile:
    return GGUFFile(Path("model.gguf"), fields, {}, np.empty(0, np.uint8))


@pytest.fixture(scope="module")
def fields() -> dict[str, Field]:
    return tokenizer_fields(SOURCE, vocab_size=VOCAB + 3)


@pytest.fixture(scope="module")
def tokenizer(fields: dict[str, Field]) -> Tokenizer:
    return Tokenizer.from_gguf(opened(fields))


@pytest.fixture(scope="module")
def original() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(SOURCE))


class TestFields:
    def test_what_llama_cpp_reads(self, fields: dict[str, Field]) -> None:
        found = {key.removeprefix("tokenizer.ggml."): field.value for key, field in fields.items()}
        tokens, types, merges = (found.pop(key) for key in ("tokens", "token_type", "merges"))
        assert found == {
            "model": "gpt2", "pre": "qwen2", "eos_token_id": END, "padding_token_id": 24056, "bos_token_id": 24056,
            "add_bos_token": False,
        }  # fmt: skip
        assert (tokens[0], tokens[END]) == ("!", "<|im_end|>")
        assert tokens[VOCAB:] == ("[PAD24064]", "[PAD24065]", "[PAD24066]")
        assert types[:24056] == (TokenType.NORMAL,) * 24056
        assert types[24056:] == (TokenType.CONTROL,) * 8 + (TokenType.UNUSED,) * 3
        assert merges[0] == "ã ģ"

    def test_added_tokens_that_are_not_special(self, tmp_path: Path) -> None:
        raw = cut_tokenizer(ENTRIES)
        raw["added_tokens"][3]["special"] = False
        write_json(tmp_path / "tokenizer.json", raw)
        rebuilt = tokenizer_fields(tmp_path / "tokenizer.json", vocab_size=SMALL_VOCAB)
        assert rebuilt["tokenizer.ggml.token_type"].value[ENTRIES + 3] == TokenType.USER_DEFINED
        found = Tokenizer.from_gguf(opened(rebuilt)).encode(["a<|vision_start|>b"])
        assert ENTRIES + 3 in found[0]


class TestEncode:
    @pytest.mark.parametrize("text", [*TEXTS, *LONG_TEXTS, ""])
    def test_as_the_original(self, tokenizer: Tokenizer, original: tokenizers.Tokenizer, text: str) -> None:
        found = tokenizer.encode([text])
        assert found[0].dtype == np.int32
        assert found[0].tolist() == original.encode(text).ids

    @given(st.text() | st.text(alphabet="e\u0301\u0300ǄaÅ<|im_end|> \n\t'sßİ가\u1100\u1161👨\u200d👩0½"))
    def test_any_text(self, tokenizer: Tokenizer, original: tokenizers.Tokenizer, text: str) -> None:
        assert tokenizer.encode([text])[0].tolist() == original.encode(text).ids

    def test_each_text_by_itself(self, tokenizer: Tokenizer) -> None:
        together = tokenizer.encode(TEXTS)
        assert [ids.tolist() for ids in together] == [tokenizer.encode([text])[0].tolist() for text in TEXTS]
        assert tokenizer.encode([]) == []

    @pytest.mark.parametrize("text", ["a\ud800b", "\udfff"])
    def test_lone_surrogates_are_refused_by_index(self, tokenizer: Tokenizer, text: str) -> None:
        with pytest.raises(TextError, match="input 1: the lone surrogate") as caught:
            tokenizer.encode(["fine", text])
        assert caught.value.index == 1

    @pytest.mark.parametrize("text", [None, 5, b"bytes", ("a", "pair"), ["nested"]])
    def test_other_things_are_refused_by_index(self, tokenizer: Tokenizer, text: Any) -> None:
        with pytest.raises(TextError, match="input 0: expected a string, not") as caught:
            tokenizer.encode([text])
        assert caught.value.index == 0

    def test_no_threads_of_the_library(self, tokenizer: Tokenizer) -> None:
        assert tokenizer.size == VOCAB + 3
        assert os.environ["TOKENIZERS_PARALLELISM"] == "false"


class TestDecode:
    def test_gives_the_text_back_in_nfc(self, tokenizer: Tokenizer) -> None:
        text = "Straße, 日本語 👨‍👩‍👧 <|im_start|>user\n \x00 café"
        assert tokenizer.decode(tokenizer.encode([text])[0]) == text

    @pytest.mark.parametrize("number", [-1, VOCAB + 3, 2**63])
    def test_ids_outside_the_vocabulary(self, tokenizer: Tokenizer, number: int) -> None:
        with pytest.raises(UsageError, match=f"token id {number}: expected 0 to {VOCAB + 2}"):
            tokenizer.decode([1, number])


def set_part(part: str, value: Any) -> Any:
    return lambda raw: raw.update({part: value})


TEXT, ENDING = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}


def template(more: list[Any]) -> dict[str, Any]:
    """The post-processor that fast tokenizers of the Qwen family are often saved with."""
    used = {"id": "<|im_end|>", "ids": [ENTRIES + 2], "tokens": ["<|im_end|>"]}
    pair = [TEXT, {"Sequence": {"id": "B", "type_id": 0}}]
    return {
        "type": "TemplateProcessing",
        "single": [TEXT, *more],
        "pair": pair,
        "special_tokens": {"<|im_end|>": used} if more else {},
    }


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw["pre_tokenizer"]["pretokenizers"][1].update(trim_offsets=True),
        lambda raw: raw["post_processor"].update(trim_offsets=True),
        set_part("post_processor", None),
        set_part("post_processor", template([])),
        set_part("post_processor", {"type": "Sequence", "processors": [BYTES, template([])]}),
        set_part("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}]}),
        set_part("decoder", {"type": "Sequence", "decoders": [BYTES]}),
        lambda raw: raw["pre_tokenizer"].update(
            pretokenizers=[{"type": "Sequence", "pretokenizers": raw["pre_tokenizer"]["pretokenizers"]}]
        ),
        lambda raw: raw["model"].update(continuing_subword_prefix="", end_of_word_suffix=""),
        lambda raw: raw["model"].update(unk_token="<|endoftext|>", fuse_unk=True, byte_fallback=True),
        lambda raw: raw["model"].update(dropout=0.0),
        lambda raw: raw["model"].update(merges=[" ".join(pair) for pair in raw["model"]["merges"]]),
        lambda raw: raw["model"].update(vocab=dict(reversed(raw["model"]["vocab"].items()))),
        lambda raw: raw.update({key: raw.pop(key) for key in sorted(raw, reverse=True)}),
    ],
)
def test_a_tokenizer_that_does_the_same_is_the_same(tmp_path: Path, change: Any) -> None:
    raw, path = cut_tokenizer(ENTRIES), tmp_path / "tokenizer.json"
    write_json(path, raw)
    wanted = tokenizer_fields(path, vocab_size=SMALL_VOCAB)
    before = path.read_bytes()
    change(raw)
    write_json(path, raw)
    assert path.read_bytes() != before
    assert tokenizer_fields(path, vocab_size=SMALL_VOCAB) == wanted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_part("normalizer", None), "normalizer is not Qwen2's"),
        (set_part("normalizer", {"type": "NFKC"}), "normalizer is not Qwen2's"),
        (set_part("pre_tokenizer", {"type": "Whitespace"}), "pre_tokenizer is not Qwen2's"),
        (lambda raw: raw["pre_tokenizer"]["pretokenizers"].pop(0), "pre_tokenizer is not"),
        (lambda raw: raw["added_tokens"][2].update(lstrip=True), "added_tokens is not"),
        (lambda raw: raw["added_tokens"][2].update(normalized=True), "added_tokens is not"),
        (lambda raw: raw["added_tokens"][2].update(content="<|end|>"), r"the special token <\|im_end\|> is missing"),
        (lambda raw: raw["model"].update(ignore_merges=True), "model is not"),
        (lambda raw: raw["model"].update(dropout=0.5), "model is not"),
        (lambda raw: raw["model"]["vocab"].pop("in"), "not a tokenizer"),
        (lambda raw: raw["model"].update(vocab={"a": 0}, merges=[]), "byte symbols are missing from the vocabulary"),
        (
            set_part("model", {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}),
            "model WordLevel: expected byte-level BPE",
        ),
        (set_part("decoder", {"type": "Fuse"}), "decoder is Fuse"),
        (
            set_part("post_processor", {"type": "BertProcessing", "sep": ["a", 1], "cls": ["b", 2]}),
            "post_processor adds tokens to a text",
        ),
        (set_part("post_processor", template([ENDING])), "post_processor adds tokens to a text"),
        (
            set_part(
                "normalizer",
                {
                    "type": "Sequence",
                    "normalizers": [{"type": "Strip", "strip_left": True, "strip_right": True}, {"type": "NFC"}],
                },
            ),
            "normalizer is not",
        ),
        (lambda raw: raw["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True), "pre_tokenizer is not"),
    ],
)
def test_other_tokenizers_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    raw = cut_tokenizer(ENTRIES)
    path = tmp_path / "tokenizer.json"
    write_json(path, raw)
    assert tokenizer_fields(path, vocab_size=SMALL_VOCAB)
    change(raw)
    write_json(path, raw)
    with pytest.raises(CheckpointError, match=message) as caught:
        tokenizer_fields(path, vocab_size=SMALL_VOCAB)
    assert str(path) in str(caught.value)


def test_a_vocabulary_that_is_too_small(tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer.json", cut_tokenizer(ENTRIES))
    with pytest.raises(CheckpointError, match=r"the token id 375 is not below config\.json's vocab_size=375"):
        tokenizer_fields(tmp_path / "tokenizer.json", vocab_size=375)


def replaced(fields: dict[str, Field], key: str, change: Any) -> GGUFFile:
    name = f"tokenizer.ggml.{key}"
    field = fields[name]
    return opened(fields | {name: Field(field.kind, change(field.value), field.item)})


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Field]:
    path = tmp_path_factory.mktemp("small") / "tokenizer.json"
    write_json(path, cut_tokenizer(ENTRIES))
    return tokenizer_fields(path, vocab_size=SMALL_VOCAB)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("model", lambda _: "llama", "tokenizer.ggml.model='llama': expected 'gpt2'"),
        ("pre", lambda _: "llama-bpe", "tokenizer.ggml.pre='llama-bpe': expected 'qwen2'"),
        ("tokens", lambda _: "x", "expected an array"),
        ("tokens", lambda value: value[1:], "token_type has 384 entries for 383 tokens"),
        ("tokens", lambda value: ("??", *value[1:]), "1 of the 256 byte symbols are missing from the vocabulary"),
        ("tokens", lambda value: (*value[:300], value[301], *value[301:]), "merges do not match the vocabulary"),
        ("tokens", lambda value: (*value[:370], value[369], *value[371:]), "cannot have the id|duplicates"),
        ("merges", lambda value: (*value, "a b c"), "merges do not match the vocabulary"),
        ("merges", lambda value: ("nothere either", *value), "merges do not match the vocabulary"),
        ("token_type", lambda value: (3, *value[1:]), "byte symbols|cannot have the id"),
    ],
)
def test_unsound_fields_of_a_gguf_file(small: dict[str, Field], key: str, change: Any, message: str) -> None:
    assert Tokenizer.from_gguf(opened(small)).size == SMALL_VOCAB
    with pytest.raises(GGUFError, match=message) as caught:
        Tokenizer.from_gguf(replaced(small, key, change))
    assert str(caught.value).startswith("model.gguf: ")


def test_a_missing_field(small: dict[str, Field]) -> None:
    rest = {key: field for key, field in small.items() if key != "tokenizer.ggml.merges"}
    with pytest.raises(GGUFError, match=r"the field tokenizer\.ggml\.merges is missing"):
        Tokenizer.from_gguf(opened(rest))
