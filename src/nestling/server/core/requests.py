"""Requests and answers of the service, independent of the dialect. Data alone; knows no HTTP."""

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
    """An image as the client wrote it: base64 or a data URI; with `is_url`, a URL to fetch."""

    text: str
    is_url: bool = False


Inputs = list[str] | list[TokenIds] | list[str | Picture]
"""At least one text, list of token ids, or text and image mixed."""


def are_texts(inputs: Inputs) -> TypeGuard[list[str]]:
    """True for texts alone."""
    return all(isinstance(one, str) for one in inputs)


class Output(StrEnum):
    """One vector per input, hidden states or multi-vectors per token, or one vector per chunk of a document."""

    VECTOR = "vector"
    STATES = "token-states"
    MULTI_VECTOR = "multi-vector"
    CHUNKS = "chunks"


PER_TOKEN = frozenset({Output.STATES, Output.MULTI_VECTOR})
"""Outputs that have a row for each token."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How texts become tokens.

    `truncate` truncates texts to the model's limit, `limit` to that many tokens, prefix included (-1: the model's
    limit); without either, a longer text is refused. `longest` lowers the model's limit; `longest_name` is the field
    that set it. `from_left` removes the first tokens behind the prefix instead of the last ones.
    `typed`: where no role is named, a prefix of the model that a text already begins with counts as its prefix; other
    texts get the prefix of the role `default`.
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

    `dimensions`: one of the trained sizes, None for the full width. `normalized` False keeps a pooled vector's
    norm.
    """

    inputs: Inputs
    target: Target
    reading: Reading = Reading()
    dimensions: int | None = None
    normalized: bool = True
    output: Output = Output.VECTOR


@dataclass(frozen=True, slots=True)
class ImageUse:
    """Usage by a request's images: their number, their tokens, and their pixels as sent."""

    count: int = 0
    tokens: int = 0
    pixels: int = 0


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors in the order of the inputs: (B, D), or B arrays of (T, P); and the tokens used.

    `tokens`: of texts and images together. `warnings`, for the client: what was done as asked, but is probably not
    meant.
    """

    values: Sequence[Floats] | Floats
    tokens: int
    warnings: Sequence[str] = ()
    images: ImageUse = ImageUse()


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a text: its id, its bytes, whether it is special, its character span [start, stop)."""

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
    """The documents, best first, and the tokens used; `warnings` as in `Embedded`."""

    results: Sequence[Ranked]
    tokens: int
    warnings: Sequence[str] = ()
