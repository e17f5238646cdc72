"""Texts for speed measurements: natural texts of given numbers of tokens, all different. Needs only a tokenizer.

They are cut from the shipped benchmark sets. Each begins with another number, so that no cache has its result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from nestling.evaluation import data
from nestling.inputs.tokenizer import Tokenizer

MIXED = "mixed"
_MIXED_RANGE = (8, 1024)
_SEED = 16
_OF_EACH = 100
"""Documents of each set: about fifty thousand tokens in total, after which the stream repeats."""
_PREFIX_TOKENS = 3
"""Approximate number of tokens of a prefix."""


@dataclass(frozen=True, slots=True)
class BucketTexts:
    """The texts of a bucket: of `tokens` tokens each, or of mixed lengths (None)."""

    name: str
    tokens: int | None
    texts: tuple[str, ...]


class TextSource:
    """Cuts texts of given lengths from one long, repeating stream of tokens; each call continues the last one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        sets = [data.load(name) for name in data.SHIPPED]
        documents = [text for one in sets if isinstance(one, data.RetrievalSet) for text in one.documents[:_OF_EACH]]
        self._tokenizer = tokenizer
        self._stream = np.concatenate(tokenizer.encode(documents))
        self._at, self._number = 0, count(1000)

    def text(self, tokens: int) -> str:
        """A text of about `tokens` tokens, prefix included."""
        number = f"{next(self._number)} "
        wanted = max(1, tokens - _PREFIX_TOKENS - len(self._tokenizer.encode([number])[0]))
        cut = self._stream.take(range(self._at, self._at + wanted), mode="wrap")
        self._at += wanted
        return number + self._tokenizer.decode(cut).replace("�", "")

    def batch(self, tokens: int, texts: int) -> list[str]:
        """`texts` texts of about `tokens` tokens."""
        return [self.text(tokens) for _ in range(texts)]

    def buckets(self, pass_tokens: int, lengths: Sequence[int]) -> list[BucketTexts]:
        """One bucket per length and the mixed one, each of about `pass_tokens` tokens and at least one text."""
        found = [
            BucketTexts(str(length), length, tuple(self.batch(length, max(1, pass_tokens // length))))
            for length in lengths
        ]
        return [*found, BucketTexts(MIXED, None, tuple(self.text(length) for length in _mixed(pass_tokens)))]


def _mixed(pass_tokens: int) -> list[int]:
    """Lengths from a log-uniform distribution that add up to about `pass_tokens`; deterministic."""
    low, high = _MIXED_RANGE
    draws = np.exp(np.random.default_rng(_SEED).uniform(np.log(low), np.log(high), pass_tokens // low + 1))
    lengths = [int(length) for length in draws]
    kept = int(np.searchsorted(np.cumsum(lengths), pass_tokens)) + 1
    return lengths[:kept]
