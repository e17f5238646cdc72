"""A checkpoint's tokenizer as GGUF fields, and the tokenizer rebuilt from them.

A GGUF file holds the vocabulary and the merges. What it has no field for (NFC, the pre-tokenizer's pattern, byte level,
how special tokens are found in a text) is implied by `tokenizer.ggml.pre = qwen2` and defined here. Writing checks
that the tokenizer rebuilt from the fields equals the checkpoint's. Does not know prefixes or length limits.

Field names and token types are llama.cpp's (`llama-vocab.cpp`, `enum llama_token_type`).
"""

import json
import os
import re
from collections.abc import Iterable, Sequence
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, normalizers, pre_tokenizers

from nestling._util.text import read_text
from nestling.errors import CheckpointError, FileFormatError, GGUFError, TextError, UsageError
from nestling.formats.gguf import Field, GGUFFile
from nestling.inputs.byte_symbols import BYTE_OF

EOS, PAD = "<|im_end|>", "<|endoftext|>"
_QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)  # the published tokenizer.json of Qwen2 and Qwen2.5


class TokenType(IntEnum):
    """`enum llama_token_type`: what a vocabulary entry is."""

    NORMAL = 1
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5


_ADDED = (TokenType.CONTROL, TokenType.USER_DEFINED)


class Tokenizer:
    """Texts to token ids, exactly as the checkpoint's own tokenizer; `size` is the padded vocabulary size.

    `ending` has the ids appended to every text: none, or the end token of a model with last-token pooling.
    """

    def __init__(self, inner: tokenizers.Tokenizer, *, size: int, ending: Sequence[int] = ()) -> None:
        self._inner, self.size, self.ending = inner, size, np.array(ending, np.int32)
        # The library would start threads, and warn in a forked child; one thread is fast enough.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Self:
        """Rebuild the tokenizer from a file's fields; GGUFError unless they describe a byte-level Qwen2 tokenizer."""
        for key, wanted in (("tokenizer.ggml.model", "gpt2"), ("tokenizer.ggml.pre", "qwen2")):
            if file.value(key) != wanted:
                raise GGUFError(f"{file.path}: {key}={file.value(key)!r}: expected {wanted!r}")
        tokens, types, merges = (_array(file, key) for key in ("tokens", "token_type", "merges"))
        ending = _ending(file, len(tokens))
        try:
            return cls(_build(tokens, types, merges), size=len(tokens), ending=ending)
        except FileFormatError as error:
            raise GGUFError(f"{file.path}: {error}") from None

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Token ids of each text, without prefix and ending; special tokens in a text are recognised.

        TextError for a value that is not a str, or that cannot be encoded as UTF-8 (a lone surrogate).
        """
        for index, text in enumerate(texts):
            check_text(text, index)
        found = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in found]

    def close(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """Append the ending: (T,) -> (T + E,)."""
        return np.concatenate([ids, self.ending])

    def cut(self, ids: NDArray[np.int32], limit: int) -> NDArray[np.int32]:
        """Truncate closed ids to at most `limit`, on the right; the ending is kept."""
        kept = max(limit - len(self.ending), 0)
        return ids if len(ids) <= limit else np.concatenate([ids[:kept], self.ending])[:limit]

    def encode_with_offsets(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Closed ids of one text and their offsets in it: (T,) ids and (T, 2) characters [start, end).

        Offsets are those of the given text, before NFC. The tokens of one character share its offsets; the ending is
        at the end of the text.
        """
        check_text(text, 0)
        found = self._inner.encode(text, add_special_tokens=False)
        offsets = [*found.offsets, *[(len(text), len(text))] * len(self.ending)]
        return self.close(np.array(found.ids, np.int32)), np.array(offsets, np.int64).reshape(-1, 2)

    @cached_property
    def special(self) -> frozenset[int]:
        """The ids of special tokens."""
        return frozenset(number for number, one in self._inner.get_added_tokens_decoder().items() if one.special)

    def pieces(self, ids: Iterable[int]) -> list[bytes]:
        """The bytes of each token, which may be part of a character; empty for ids beyond the vocabulary."""
        added, found = self._inner.get_added_tokens_decoder(), list[bytes]()
        for number in map(int, ids):
            name = self._inner.id_to_token(number) or ""
            found.append(name.encode() if number in added else bytes(BYTE_OF[symbol] for symbol in name))
        return found

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of token ids; special tokens are written out unless skipped.

        UsageError for an id outside the vocabulary.
        """
        numbers = [int(number) for number in ids]
        for number in numbers:
            if not 0 <= number < self.size:
                raise UsageError(f"token id {number}: expected 0 to {self.size - 1}", param="input")
        return self._inner.decode(numbers, skip_special_tokens=skip_special)


def tokenizer_fields(tokenizer_json: Path, *, vocab_size: int) -> dict[str, Field]:
    """The `tokenizer.ggml.*` fields of a checkpoint's tokenizer.json, padded to `vocab_size` entries.

    CheckpointError unless it is a Qwen2 tokenizer: one rebuilt from the fields would differ.
    """
    inner = _opened(tokenizer_json)
    source = _canonical(inner)
    tokens, types = _vocabulary(source, tokenizer_json, vocab_size)
    merges = [" ".join(pair) for pair in source["model"]["merges"]]
    try:
        rebuilt = _canonical(_build(tokens, types, merges))
    except FileFormatError as error:
        raise CheckpointError(f"{tokenizer_json}: {error}") from None
    _check_equal(source, rebuilt, tokenizer_json)
    _check_adds_nothing(inner, tokenizer_json)
    ids = {token: number for number, token in enumerate(tokens)}
    for token in (EOS, PAD):
        if token not in ids:
            raise CheckpointError(f"{tokenizer_json}: the special token {token} is missing")
    fields = {
        "model": Field.string("gpt2"),
        "pre": Field.string("qwen2"),
        "tokens": Field.strings(tokens),
        "token_type": Field.int32s(types),
        "merges": Field.strings(merges),
        "eos_token_id": Field.uint32(ids[EOS]),
        "padding_token_id": Field.uint32(ids[PAD]),
        "bos_token_id": Field.uint32(ids[PAD]),
        "add_bos_token": Field.boolean(False),  # noqa: FBT003 - the field's value
    }
    return {f"tokenizer.ggml.{key}": field for key, field in fields.items()}


def checkpoint_ids(tokenizer_json: Path, text: str) -> tuple[int, ...]:
    """A text's ids by the checkpoint's own tokenizer; CheckpointError when a special token in it is unknown."""
    inner = _opened(tokenizer_json)
    for token in re.findall(r"<\|\w+\|>", text):
        if inner.token_to_id(token) is None:
            raise CheckpointError(f"{tokenizer_json}: the special token {token} is missing")
    return tuple(inner.encode(text, add_special_tokens=False).ids)


def check_text(text: object, index: int) -> None:
    """TextError for a value that is not a str, or that cannot be encoded as UTF-8 (a lone surrogate)."""
    if not isinstance(text, str):
        raise TextError(f"expected a string, not {type(text).__name__}", index=index)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TextError(
            f"the lone surrogate U+{ord(text[error.start]):04X} at character {error.start} cannot be encoded as UTF-8",
            index=index,
        ) from None


def _ending(file: GGUFFile, size: int) -> list[int]:
    """The ending that the file asks for; GGUFError if it asks for a token in front of every text."""
    bos, eos = (file.metadata.get(f"tokenizer.ggml.add_{name}_token") for name in ("bos", "eos"))
    if bos and bos.value:
        raise GGUFError(f"{file.path}: tokenizer.ggml.add_bos_token=True: expected False, as for all Qwen2 tokenizers")
    if not (eos and eos.value):
        return []
    number = file.value("tokenizer.ggml.eos_token_id")
    if type(number) is not int or not 0 <= number < size:
        raise GGUFError(f"{file.path}: tokenizer.ggml.eos_token_id={number!r}: expected 0 to {size - 1}")
    return [number]


def _array(file: GGUFFile, key: str) -> tuple[Any, ...]:
    value = file.value(f"tokenizer.ggml.{key}")
    if not isinstance(value, tuple):
        raise GGUFError(f"{file.path}: tokenizer.ggml.{key}: expected an array")
    return value


def _build(tokens: Sequence[str], types: Sequence[int], merges: Sequence[str]) -> tokenizers.Tokenizer:
    """Build a Qwen2 tokenizer; FileFormatError for an inconsistent vocabulary."""
    if len(types) != len(tokens):
        raise FileFormatError(f"token_type has {len(types)} entries for {len(tokens)} tokens")
    vocabulary = {token: number for number, token in enumerate(tokens) if types[number] == TokenType.NORMAL}
    if missing := set(pre_tokenizers.ByteLevel.alphabet()) - vocabulary.keys():
        raise FileFormatError(
            f"{len(missing)} of the 256 byte symbols are missing from the vocabulary, such as {min(missing)!r}"
        )
    pairs = [tuple(merge.split(" ")) for merge in merges]
    try:
        inner = tokenizers.Tokenizer(models.BPE(vocabulary, pairs))  # type: ignore[arg-type]
    except Exception as error:  # noqa: BLE001 - the library raises bare Exceptions
        raise FileFormatError(f"merges do not match the vocabulary: {error}") from None
    inner.normalizer = normalizers.NFC()
    pattern = pre_tokenizers.Split(tokenizers.Regex(_QWEN2_PATTERN), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([pattern, byte_level])
    inner.decoder = decoders.ByteLevel()
    _add_special(inner, tokens, types)
    return inner


def _add_special(inner: tokenizers.Tokenizer, tokens: Sequence[str], types: Sequence[int]) -> None:
    places = [number for number, kind in enumerate(types) if kind in _ADDED]
    inner.add_tokens(
        [
            tokenizers.AddedToken(tokens[number], special=types[number] == TokenType.CONTROL, normalized=False)
            for number in places
        ]
    )
    for number in places:
        if inner.token_to_id(tokens[number]) != number:
            raise FileFormatError(f"the special token {tokens[number]!r} cannot have the id {number}")
    used = sum(1 for kind in types if kind in (TokenType.NORMAL, *_ADDED))
    if inner.get_vocab_size() != used:
        raise FileFormatError(f"{used - inner.get_vocab_size()} duplicate tokens")


def _opened(path: Path) -> tokenizers.Tokenizer:
    content = read_text(path, error=CheckpointError)
    try:
        return tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # noqa: BLE001 - the library raises bare Exceptions
        raise CheckpointError(f"{path}: not a tokenizer: {error}") from None


def _canonical(tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    """The tokenizers library's JSON, normalised so that equal tokenizers are equal.

    Differences that change no token id are removed: nested or one-element sequences, offset trimming, the unknown
    token (a byte-level vocabulary needs none), the order of added tokens, a dropout of 0, spellings of an empty affix.
    """
    value: dict[str, Any] = json.loads(tokenizer.to_str())
    for part, inner in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        value[part] = [{k: v for k, v in one.items() if k != "trim_offsets"} for one in _flat(value[part], inner)]
    model = value["model"]
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        model[name] = model.get(name) or None
    value["model"] = {key: one for key, one in model.items() if key not in ("unk_token", "fuse_unk", "byte_fallback")}
    value["added_tokens"].sort(key=lambda one: one["id"])
    return value


def _flat(part: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, in order."""
    if part is None:
        return []
    return [step for one in part[inner] for step in _flat(one, inner)] if part["type"] == "Sequence" else [part]


def _vocabulary(source: dict[str, Any], path: Path, vocab_size: int) -> tuple[list[str], list[int]]:
    if source["model"].get("type") != "BPE":
        raise CheckpointError(f"{path}: model {source['model'].get('type')}: expected byte-level BPE")
    entries = {number: (token, TokenType.NORMAL) for token, number in source["model"]["vocab"].items()}
    for added in source["added_tokens"]:
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        entries[added["id"]] = (added["content"], kind)
    if (largest := max(entries, default=0)) >= vocab_size:
        raise CheckpointError(f"{path}: the token id {largest} is not below config.json's vocab_size={vocab_size}")
    padded = [entries.get(number, (f"[PAD{number}]", TokenType.UNUSED)) for number in range(vocab_size)]
    return [token for token, _ in padded], [int(kind) for _, kind in padded]


def _check_equal(source: dict[str, Any], rebuilt: dict[str, Any], path: Path) -> None:
    """CheckpointError unless both tokenizers give every text the same ids."""
    for part in ("normalizer", "pre_tokenizer", "added_tokens", "model"):
        if source[part] != rebuilt[part]:
            raise CheckpointError(f"{path}: {part} is not Qwen2's, the only one that can be converted")
    decoder = _flat(source["decoder"], "decoders")
    if any(one["type"] != "ByteLevel" for one in decoder):
        raise CheckpointError(f"{path}: decoder is {decoder[0]['type']}: expected ByteLevel, as in Qwen2")


def _check_adds_nothing(inner: tokenizers.Tokenizer, path: Path) -> None:
    """CheckpointError for a post-processor that adds tokens to a text: GGUF has no field for it."""
    for text in ("", "a text"):
        with_it, without = (inner.encode(text, add_special_tokens=added).ids for added in (True, False))
        if with_it != without:
            raise CheckpointError(f"{path}: post_processor adds tokens to a text; Qwen2's adds none")
