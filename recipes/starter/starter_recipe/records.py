"""What the data sources yield: texts tied to an English anchor, and contrastive pairs.

Knows nothing of files, benchmarks or models.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

LANGUAGES = ("de", "fr", "es", "ja", "zh", "ru")


class PairKind(StrEnum):
    """Which adapter learns from a pair."""

    RETRIEVAL = "retrieval"
    CODE = "code"


@dataclass(frozen=True, slots=True)
class Text:
    """A text whose target is the teacher's vector of its English `anchor` (often the text itself)."""

    text: str
    anchor: str
    source: str
    language: str = "en"


@dataclass(frozen=True, slots=True)
class Pair:
    """A query and the passage that answers it. Translations need no pair: a `Text` in another language is one."""

    query: str
    passage: str
    kind: PairKind
    source: str
    english: str = ""
    """The English original of a translated side, if it is neither side: checked against the benchmarks too."""


Item = Text | Pair
