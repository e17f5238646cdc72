"""Text to token ids, by the tokenizer of a checkpoint inside a GGUF file. Does not know prefixes or length limits."""

import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
import tokenizers
from numpy.typing import NDArray

from nestling.errors import FileFormatError, GGUFError, TextError, UsageError
from nestling.formats.gguf import GGUFFile
from nestling.inputs.byte_symbols import BYTE_OF
from nestling.inputs.qwen2 import build


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
            return cls(build(tokens, types, merges), size=len(tokens), ending=ending)
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
        return np.concatenate([ids, self.ending]) if len(self.ending) else ids

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
