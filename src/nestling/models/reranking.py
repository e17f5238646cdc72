"""Scoring and ranking of candidates for a query.

Both scorings give scores from -1 to 1, comparable between the candidates of one query only. Does not know models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from nestling._util.numbers import whole_number
from nestling._util.spelling import member
from nestling.vectors import Floats, cosine, maxsim

Scores = NDArray[np.float64]
"""(B,) of B candidates."""


class Scoring(StrEnum):
    """How a candidate is scored: `maxsim` by the vectors of all tokens, `cosine` by one vector per text."""

    MAXSIM = "maxsim"
    COSINE = "cosine"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The scoring of a name; UsageError for an unknown one."""
        return member(cls, text, param="scoring")


DEFAULT_SCORING: Final = Scoring.MAXSIM


@dataclass(frozen=True, slots=True)
class Ranked:
    """A ranked candidate, as `Embedder.rerank` returns it.

    Args:
        index: its index in the list of candidates.
        score: from -1 to 1, larger for more similar candidates.

    Example:
        texts = [documents[one.index] for one in model.rerank("files", documents, top_n=3)]
    """

    index: int
    score: float


def token_scores(query: Floats, documents: Sequence[Floats]) -> Scores:
    """MaxSim, averaged over the query's tokens: (Tq, P), B arrays of (Td, P), unit rows -> (B,)."""
    return maxsim(query, documents) / len(query)


def vector_scores(query: Floats, documents: Floats) -> Scores:
    """Cosines: (D,), (B, D) -> (B,)."""
    return cosine(query[None], documents)[0] if len(documents) else np.empty(0)


def check_top_n(top_n: int | None) -> int | None:
    """The value unchanged; UsageError unless it is None or a positive integer."""
    return None if top_n is None else whole_number(top_n, param="top_n")


def ranked(scores: Scores, top_n: int | None = None) -> list[Ranked]:
    """The best `top_n` (all by default), best first; equal scores keep their order."""
    order = np.argsort(-scores, kind="stable")[: check_top_n(top_n)]
    return [Ranked(index, float(scores[index])) for index in order.tolist()]
