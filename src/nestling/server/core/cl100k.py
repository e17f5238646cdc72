"""Decodes token ids of OpenAI's cl100k vocabulary, which some clients send to any model (LangChain's default).

The vocabulary comes with the optional package bpe-openai; without it, such input is refused when the server starts.
"""

from collections.abc import Callable, Sequence
from typing import Any

from nestling._util.extras import need
from nestling.errors import TextError

VOCABULARY = 100_256
"""Ordinary ids are below this; the five special tokens above are not text."""


def text_reader() -> Callable[[Sequence[Sequence[int]]], list[str]]:
    """A function from B lists of ids to B texts; UsageError when the vocabulary is not installed.

    The function raises a TextError for an id that is not an ordinary one. Bytes that are not UTF-8, left where a
    client cut a text in the middle of a character, become U+FFFD.
    """
    library = need("bpe_openai", wanted_for="token_input=cl100k", extra="cl100k", param="token_input")
    encoding: Any = library.get_encoding("cl100k_base")

    def read(lists: Sequence[Sequence[int]]) -> list[str]:
        for index, ids in enumerate(lists):
            if max(ids) >= VOCABULARY:
                raise TextError(f"expected token ids of cl100k, from 0 to {VOCABULARY - 1}", index=index)
        return [bytes(encoding.decode_bytes(list(ids))).decode("utf-8", "replace") for ids in lists]

    return read
