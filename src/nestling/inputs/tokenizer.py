"""The tokenizer of a checkpoint inside a GGUF file, and text to token ids from there.

A GGUF file holds the vocabulary and the merges; what it has no field for (NFC, the splitting pattern, byte level, how
special tokens are found in a text) is what `tokenizer.ggml.pre = qwen2` stands for, and is said here once. Writing
checks that the tokenizer rebuilt from the fields equals the checkpoint's. Knows nothing of prefixes and lengths.

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
    """Texts to token ids, exactly as the checkpoint's own tokenizer; `size` is the vocabulary with its padding.

    `ending` are the ids that the model wants behind every text: none, or the end token of a model that pools it.
    """

    def __init__(self, inner: tokenizers.Tokenizer, *, size: int, ending: Sequence[int] = ()) -> None:
        self._inner, self.size, self.ending = inner, size, np.array(ending, np.int32)
        # The library would start threads of its own, and warn in a forked child; one text is quick enough alone.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Self:
        """Rebuild the tokenizer from the file's fields; GGUFError when they are not a byte-level Qwen2 vocabulary."""
        for key, wanted in (("tokenizer.ggml.model", "gpt2"), ("tokenizer.ggml.pre", "qwen2")):
            if file.value(key) != wanted:
                raise GGUFError(f"{file.path}: {key}={file.value(key)!r}: only {wanted!r} can be read")
        tokens, types, merges = (_array(file, key) for key in ("tokens", "token_type", "merges"))
        ending = _ending(file, len(tokens))
        try:
            return cls(_build(tokens, types, merges), size=len(tokens), ending=ending)
        except FileFormatError as error:
            raise GGUFError(f"{file.path}: {error}") from None

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Token ids of each text, nothing added; special tokens written inside a text are found as the original does.

        A text that is not a str, or that holds a lone surrogate and so has no UTF-8 form, is a TextError.
        """
        for index, text in enumerate(texts):
            check_text(text, index)
        found = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in found]

    def close(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """A text's ids with the ending behind them: (T,) -> (T + E,)."""
        return np.concatenate([ids, self.ending])

    def cut(self, ids: NDArray[np.int32], limit: int) -> NDArray[np.int32]:
        """Closed ids, of which at most `limit` are left: cut on the right, the ending kept."""
        kept = max(limit - len(self.ending), 0)
        return ids if len(ids) <= limit else np.concatenate([ids[:kept], self.ending])[:limit]

    def encode_with_places(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Closed ids of one text, and where each token lies in it: (T,) and (T, 2) characters [start, end).

        The places are those of the text as it is, before NFC. Several tokens may share the place of one character; the
        ending lies behind the last one.
        """
        check_text(text, 0)
        found = self._inner.encode(text, add_special_tokens=False)
        places = [*found.offsets, *[(len(text), len(text))] * len(self.ending)]
        return self.close(np.array(found.ids, np.int32)), np.array(places, np.int64).reshape(-1, 2)

    @cached_property
    def special(self) -> frozenset[int]:
        """The ids of special tokens."""
        return frozenset(number for number, one in self._inner.get_added_tokens_decoder().items() if one.special)

    def pieces(self, ids: Iterable[int]) -> list[bytes]:
        """The bytes that each token stands for: some are a part of a character. Ids beyond the vocabulary have none."""
        added, found = self._inner.get_added_tokens_decoder(), list[bytes]()
        for number in map(int, ids):
            name = self._inner.id_to_token(number) or ""
            found.append(name.encode() if number in added else bytes(BYTE_OF[symbol] for symbol in name))
        return found

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of some token ids, special tokens written out unless skipped.

        An id outside the vocabulary is a UsageError.
        """
        numbers = [int(number) for number in ids]
        for number in numbers:
            if not 0 <= number < self.size:
                raise UsageError(f"token id {number}: ids go from 0 to {self.size - 1}", param="input")
        return self._inner.decode(numbers, skip_special_tokens=skip_special)


def tokenizer_fields(tokenizer_json: Path, *, vocab_size: int) -> dict[str, Field]:
    """The `tokenizer.ggml.*` fields for a checkpoint's tokenizer.json, padded to `vocab_size` unused entries.

    CheckpointError when the file is not Qwen2's kind of tokenizer: the one rebuilt from the fields would differ.
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
    """The ids that a checkpoint's own tokenizer gives a text; CheckpointError when it lacks a special token of it."""
    inner = _opened(tokenizer_json)
    for token in re.findall(r"<\|\w+\|>", text):
        if inner.token_to_id(token) is None:
            raise CheckpointError(f"{tokenizer_json}: the special token {token} is missing")
    return tuple(inner.encode(text, add_special_tokens=False).ids)


def check_text(text: object, index: int) -> None:
    """TextError for what is no text: another type, or a str with a lone surrogate, which has no UTF-8 form."""
    if not isinstance(text, str):
        raise TextError(f"expected a string, not {type(text).__name__}", index=index)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TextError(
            f"the lone surrogate U+{ord(text[error.start]):04X} at {error.start} has no UTF-8 form", index=index
        ) from None


def _ending(file: GGUFFile, size: int) -> list[int]:
    """The token that the file wants behind every text, if it does; one in front of it cannot be honoured."""
    bos, eos = (file.metadata.get(f"tokenizer.ggml.add_{name}_token") for name in ("bos", "eos"))
    if bos and bos.value:
        raise GGUFError(f"{file.path}: tokenizer.ggml.add_bos_token: a Qwen2 tokenizer puts no token in front")
    if not (eos and eos.value):
        return []
    number = file.value("tokenizer.ggml.eos_token_id")
    if type(number) is not int or not 0 <= number < size:
        raise GGUFError(f"{file.path}: tokenizer.ggml.eos_token_id={number!r}: ids go from 0 to {size - 1}")
    return [number]


def _array(file: GGUFFile, key: str) -> tuple[Any, ...]:
    value = file.value(f"tokenizer.ggml.{key}")
    if not isinstance(value, tuple):
        raise GGUFError(f"{file.path}: tokenizer.ggml.{key}: expected an array")
    return value


def _build(tokens: Sequence[str], types: Sequence[int], merges: Sequence[str]) -> tokenizers.Tokenizer:
    """The one place that says what a Qwen2 tokenizer is; FileFormatError for a vocabulary that it cannot be."""
    if len(types) != len(tokens):
        raise FileFormatError(f"token_type has {len(types)} entries for {len(tokens)} tokens")
    vocabulary = {token: number for number, token in enumerate(tokens) if types[number] == TokenType.NORMAL}
    if missing := set(pre_tokenizers.ByteLevel.alphabet()) - vocabulary.keys():
        raise FileFormatError(f"{len(missing)} of the 256 byte symbols are not in the vocabulary ({min(missing)!r})")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    try:
        inner = tokenizers.Tokenizer(models.BPE(vocabulary, pairs))  # type: ignore[arg-type]
    except Exception as error:  # noqa: BLE001 - the library raises bare Exceptions
        raise FileFormatError(f"merges do not fit the vocabulary: {error}") from None
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
        raise FileFormatError(f"{used - inner.get_vocab_size()} of its tokens are duplicates")


def _opened(path: Path) -> tokenizers.Tokenizer:
    content = read_text(path, error=CheckpointError)
    try:
        return tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # noqa: BLE001 - the library raises bare Exceptions
        raise CheckpointError(f"{path}: not a tokenizer: {error}") from None


def _canonical(tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    """The library's own JSON of a tokenizer, without what changes no token id.

    That is: sequences within sequences or of one part, offset trimming, what happens to symbols outside the vocabulary
    (a byte-level one has them all), the order of added tokens, a dropout of zero, ways of writing an empty affix.
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
    """The steps of a normalizer or pre-tokenizer in their order."""
    if part is None:
        return []
    return [step for one in part[inner] for step in _flat(one, inner)] if part["type"] == "Sequence" else [part]


def _vocabulary(source: dict[str, Any], path: Path, vocab_size: int) -> tuple[list[str], list[int]]:
    if source["model"].get("type") != "BPE":
        raise CheckpointError(f"{path}: model {source['model'].get('type')}: only byte-level BPE can be converted")
    entries = {number: (token, TokenType.NORMAL) for token, number in source["model"]["vocab"].items()}
    for added in source["added_tokens"]:
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        entries[added["id"]] = (added["content"], kind)
    if (largest := max(entries, default=0)) >= vocab_size:
        raise CheckpointError(f"{path}: the token id {largest} is outside config.json's vocab_size={vocab_size}")
    padded = [entries.get(number, (f"[PAD{number}]", TokenType.UNUSED)) for number in range(vocab_size)]
    return [token for token, _ in padded], [int(kind) for _, kind in padded]


def _check_equal(source: dict[str, Any], rebuilt: dict[str, Any], path: Path) -> None:
    """CheckpointError unless both give every text the same ids."""
    for part in ("normalizer", "pre_tokenizer", "added_tokens", "model"):
        if source[part] != rebuilt[part]:
            raise CheckpointError(f"{path}: {part} is not that of Qwen2, which is all that a GGUF file can say")
    decoder = _flat(source["decoder"], "decoders")
    if any(one["type"] != "ByteLevel" for one in decoder):
        raise CheckpointError(f"{path}: decoder is {decoder[0]['type']}; that of Qwen2 is ByteLevel")


def _check_adds_nothing(inner: tokenizers.Tokenizer, path: Path) -> None:
    """CheckpointError for a post-processor that puts tokens around a text, as no GGUF file of this kind can say."""
    for text in ("", "a text"):
        with_it, without = (inner.encode(text, add_special_tokens=added).ids for added in (True, False))
        if with_it != without:
            raise CheckpointError(f"{path}: post_processor puts tokens around a text; that of Qwen2 adds none")
