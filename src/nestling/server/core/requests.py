"""What the service is asked for and answers with, whatever the dialect. Data alone; knows no HTTP."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeGuard

from nestling.engine.protocol import TokenIds
from nestling.models.reranking import Ranked, Scoring
from nestling.server.core.catalog import Target
from nestling.spec import Role
from nestling.vectors import Floats


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as the client wrote it: base64 or a data URI, or where `is_url` what to fetch."""

    text: str
    is_url: bool = False


Inputs = list[str] | list[TokenIds] | list[str | Picture]
"""At least one text, list of token ids, or text and image mixed."""


def are_texts(inputs: Inputs) -> TypeGuard[list[str]]:
    """True for texts alone."""
    return all(isinstance(one, str) for one in inputs)


class Output(StrEnum):
    """A vector for each input, its tokens' hidden states or multi-vectors, or a vector for each chunk of a document."""

    VECTOR = "vector"
    STATES = "token-states"
    MULTI_VECTOR = "multi-vector"
    CHUNKS = "chunks"


PER_TOKEN = frozenset({Output.STATES, Output.MULTI_VECTOR})
"""Outputs that have a row for each token."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How texts become tokens.

    `truncate` cuts texts at the model's limit, `limit` at so many tokens, prefix included (-1: the model's limit); a
    longer text is refused otherwise. `longest` lowers the model's limit, which `truncate` then decides about;
    `longest_name` is what the client calls it. `from_left` takes away the tokens behind the prefix instead of the last
    ones.
    `typed`: where no role is named, a prefix that a text already begins with is taken for its prefix; texts without
    one get that of the role `default`.
    """

    truncate: bool = False
    limit: int | None = None
    longest: int | None = None
    longest_name: str = ""
    from_left: bool = False
    typed: bool = False
    default: Role = Role.QUERY


@dataclass(frozen=True, slots=True)
class Embedding:
    """Vectors of inputs.

    `dimensions`: one of the trained sizes, None for the full width. `normalized` False keeps a pooled vector's own
    length.
    """

    inputs: Inputs
    target: Target
    reading: Reading = Reading()
    dimensions: int | None = None
    normalized: bool = True
    output: Output = Output.VECTOR


@dataclass(frozen=True, slots=True)
class ImageUse:
    """What a request's images took: how many they are, their tokens, and their pixels as they were sent."""

    count: int = 0
    tokens: int = 0
    pixels: int = 0


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors in the order of the inputs: (B, D), or B arrays of (T, P); and the tokens that they took.

    `tokens` are those of texts and images together. `warnings` are for the client's eyes: what was done as asked, but
    is probably not meant.
    """

    values: Sequence[Floats] | Floats
    tokens: int
    warnings: Sequence[str] = ()
    images: ImageUse = ImageUse()


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a text: its id, its bytes, whether it is a special one, its characters [start, stop)."""

    id: int
    piece: bytes
    special: bool
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Ranking:
    """Documents to rank by relevance to a query: the `top_n` best, or all."""

    query: str
    documents: Sequence[str | Picture]
    target: Target
    scoring: Scoring = Scoring.MAXSIM
    top_n: int | None = None
    reading: Reading = Reading()


@dataclass(frozen=True, slots=True)
class RankedDocuments:
    """The best first; and the tokens that they took; `warnings` as in `Embedded`."""

    results: Sequence[Ranked]
    tokens: int
    warnings: Sequence[str] = ()
