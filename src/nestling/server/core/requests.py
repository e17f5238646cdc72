"""What the service is asked for and answers with, whatever the dialect. Data alone; knows no HTTP."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeGuard

from nestling.engine.protocol import TokenIds
from nestling.models.reranking import Ranked, Scoring
from nestling.server.core.catalog import Target
from nestling.vectors import Floats

Inputs = list[str] | list[TokenIds]
"""At least one text, or at least one list of token ids."""


def are_texts(inputs: Inputs) -> TypeGuard[list[str]]:
    """True for texts, False for token ids."""
    return isinstance(inputs[0], str)


class Output(StrEnum):
    """A vector for each input, one for each of its tokens, or one for each chunk of the document that they make."""

    VECTOR = "vector"
    MULTI_VECTOR = "multi-vector"
    CHUNKS = "chunks"


@dataclass(frozen=True, slots=True)
class Embedding:
    """Vectors of inputs.

    `dimensions`: one of the trained sizes, None for the full width. `truncate` cuts texts at the model's limit,
    `truncate_to` at so many tokens, prefix included (-1: the model's limit); a longer text is refused otherwise.
    `normalized` False keeps a pooled vector's own length.
    """

    inputs: Inputs
    target: Target
    dimensions: int | None = None
    truncate: bool = False
    truncate_to: int | None = None
    normalized: bool = True
    output: Output = Output.VECTOR


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors in the order of the inputs: (B, D), or B arrays of (T, P); and the tokens that they took."""

    values: Sequence[Floats] | Floats
    tokens: int


@dataclass(frozen=True, slots=True)
class Ranking:
    """Documents in the order of their nearness to a query, the `top_n` best or all."""

    query: str
    documents: Sequence[str]
    target: Target
    scoring: Scoring = Scoring.MAXSIM
    top_n: int | None = None
    truncate: bool = False


@dataclass(frozen=True, slots=True)
class RankedDocuments:
    """The best first; and the tokens that they took."""

    results: Sequence[Ranked]
    tokens: int
