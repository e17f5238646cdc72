"""Endless streams of training batches of about equal token count.

Groups (source family and language) are drawn with a probability that grows with a power of their size, so that small
languages are not drowned. Texts are sorted by length within a large draw, so that padding stays small.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from starter_recipe.tokens import Tokens

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

GROUP_POWER = 0.6
_DRAW = 12_000
_PREFIX_TOKENS = 2


@dataclass(frozen=True, slots=True)
class Rows:
    """Texts with the number of their anchor, the row of their English original (-1: none) and their group."""

    tokens: Tokens
    anchors: NDArray[np.int64]
    english: NDArray[np.int64]
    group: NDArray[np.int64]
    groups: list[str]

    @classmethod
    def load(cls, path: Path) -> Rows:
        """Read an archive of rows."""
        with np.load(path) as archive:
            tokens = Tokens(archive["flat"], archive["offsets"])
            groups = archive["groups"].tolist()
            return cls(tokens, archive["anchors"], archive["english"], archive["group"], groups)

    @property
    def foreign(self) -> NDArray[np.bool_]:
        """Tell which rows are in another language than English."""
        own = np.array([group.endswith((" en", " python")) for group in self.groups])
        found: NDArray[np.bool_] = ~own[self.group]
        return found

    @property
    def translated(self) -> NDArray[np.bool_]:
        """Tell which rows are translations of an English row."""
        found: NDArray[np.bool_] = (self.english >= 0) & self.foreign
        return found


@dataclass(frozen=True, slots=True)
class Pairs:
    """Queries, passages, the group of each pair and the anchor numbers of both sides."""

    queries: Tokens
    passages: Tokens
    group: NDArray[np.int64]
    query_anchors: NDArray[np.int64]
    passage_anchors: NDArray[np.int64]

    @classmethod
    def load(cls, work: Path, kind: str) -> Pairs:
        """Read WORK/pairs-KIND.npz."""
        with np.load(work / f"pairs-{kind}.npz") as archive:
            queries = Tokens(archive["query_flat"], archive["query_offsets"])
            passages = Tokens(archive["passage_flat"], archive["passage_offsets"])
            return cls(queries, passages, archive["group"], archive["query_anchor"], archive["passage_anchor"])

    def with_stand_ins(self, usable: NDArray[np.bool_]) -> Pairs:
        """Give a side without a teacher vector the other side's anchor."""
        left, right = self.query_anchors, self.passage_anchors
        return replace(
            self,
            query_anchors=np.where(usable[left], left, right),
            passage_anchors=np.where(usable[right], right, left),
        )


def group_weights(group: NDArray[np.int64], usable: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return each text's probability; unusable texts get none."""
    sizes = np.bincount(group[usable], minlength=int(group.max()) + 1)
    share = np.divide(1.0, np.maximum(sizes, 1) ** (1 - GROUP_POWER))
    weights = np.where(usable, share[group], 0.0)
    probabilities: NDArray[np.float64] = weights / weights.sum()
    return probabilities


def length_batches(
    lengths: NDArray[np.int64],
    weights: NDArray[np.float64],
    *,
    tokens: int,
    most: int,
    generator: np.random.Generator,
) -> Iterator[NDArray[np.int64]]:
    """Yield index arrays of texts of similar length, each worth about `tokens` tokens and at most `most` texts."""
    candidates = np.flatnonzero(weights)
    cumulative = np.cumsum(weights[candidates])
    while True:
        points = generator.random(_DRAW) * cumulative[-1]
        drawn = np.unique(candidates[np.searchsorted(cumulative, points, side="right").clip(max=len(candidates) - 1)])
        drawn = drawn[np.argsort(lengths[drawn] + generator.random(len(drawn)), kind="stable")]
        batches, start = [], 0
        while start < len(drawn):
            widest = int(lengths[drawn[min(start + 64, len(drawn) - 1)]]) + _PREFIX_TOKENS
            size = int(np.clip(tokens // widest, 16, most))
            batches.append(drawn[start : start + size])
            start += size
        for index in generator.permutation(len(batches)):
            yield batches[index]
