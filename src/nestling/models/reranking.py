"""Candidates in the order of their nearness to a query: how scores are made of vectors, and the best of them.

A score is from -1 to 1 in both ways of scoring, and compares candidates of one query. Knows nothing of models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nestling._util.numbers import whole_number
from nestling.errors import UsageError
from nestling.vectors import Floats, cosine, maxsim


class Scoring(StrEnum):
    """`maxsim` compares the vectors of all tokens, `cosine` one vector a text."""

    MAXSIM = "maxsim"
    COSINE = "cosine"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read its name."""
        try:
            return cls(text)
        except ValueError:
            raise UsageError(f"scoring={text!r}: expected one of {', '.join(cls)}", param="scoring") from None


@dataclass(frozen=True, slots=True)
class Ranked:
    """A candidate: its place in the list that was given, and its score."""

    index: int
    score: float


def token_scores(query: Floats, documents: Sequence[Floats]) -> NDArray[np.float64]:
    """MaxSim a token of the query: (Tq, P), B arrays of (Td, P), unit rows -> (B,)."""
    return maxsim(query, documents) / len(query)


def vector_scores(query: Floats, documents: Floats) -> NDArray[np.float64]:
    """Cosines: (D,), (B, D) -> (B,)."""
    return cosine(query[None], documents)[0] if len(documents) else np.empty(0)


def check_top_n(top_n: int | None) -> int | None:
    """The same; UsageError for what is no whole number from 1."""
    return None if top_n is None else whole_number(top_n, param="top_n")


def ranked(scores: NDArray[np.float64], top_n: int | None = None) -> list[Ranked]:
    """The best `top_n` (all by default), best first, equal ones in the order that they had."""
    order = np.argsort(-scores, kind="stable")[: check_top_n(top_n)]
    return [Ranked(index, float(scores[index])) for index in order.tolist()]
