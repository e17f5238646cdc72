"""A checkpoint's tokenizer.json as the fields of a GGUF file.

Writing checks that the tokenizer rebuilt from the fields equals the checkpoint's. Field names are llama.cpp's
(`llama-vocab.cpp`).
"""

import json
import re
from pathlib import Path
from typing import Any

import tokenizers

from nestling._util.text import read_text
from nestling.errors import CheckpointError, FileFormatError
from nestling.formats.gguf import Field
from nestling.inputs.qwen2 import TokenType, build

EOS, PAD = "<|im_end|>", "<|endoftext|>"


def tokenizer_fields(tokenizer_json: Path, *, vocab_size: int) -> dict[str, Field]:
    """The `tokenizer.ggml.*` fields of a checkpoint's tokenizer.json, padded to `vocab_size` entries.

    CheckpointError unless it is a Qwen2 tokenizer: one rebuilt from the fields would differ.
    """
    inner = _opened(tokenizer_json)
    source = _canonical(inner)
    tokens, types = _vocabulary(source, tokenizer_json, vocab_size)
    merges = [" ".join(pair) for pair in source["model"]["merges"]]
    try:
        rebuilt = _canonical(build(tokens, types, merges))
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
