"""A Qwen2 tokenizer built from its vocabulary and merges.

GGUF has no field for the rest (NFC, the pre-tokenizer's pattern, byte level, how special tokens are found in a text);
it is implied by `tokenizer.ggml.pre = qwen2` and defined here. Token types are llama.cpp's (`enum llama_token_type`).
"""

from collections.abc import Sequence
from enum import IntEnum

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from nestling.errors import FileFormatError

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


def build(tokens: Sequence[str], types: Sequence[int], merges: Sequence[str]) -> tokenizers.Tokenizer:
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
