"""Measures of a ranking and of agreement, and how sure one can be of a difference. Knows no models and no files.

The measures themselves come from `ir_measures` (pytrec_eval underneath, so trec_eval's definitions: nDCG with linear
gain and log2 discount). Ties are settled here, before the library sees the ranking, so that they come out
the same everywhere: of documents with equal scores the one with the larger id stands first, as in trec_eval.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestling.evaluation import extras
from nestling.vectors import Floats, cosine

Doubles = NDArray[np.float64]
MEASURES = {"nDCG@5": "nDCG@5", "nDCG@10": "nDCG@10", "recall@10": "R@10", "recall@100": "R@100", "MRR@10": "RR@10"}
"""Our names -> those of ir_measures."""
SPEARMAN = "Spearman"
DEPTH = 100
"""Ranks that are kept: what the deepest measure looks at."""
SCORE_DECIMALS = 9
"""Scores that agree so far are equal: closer than the rounding of a float32 vector can tell."""
RESAMPLES = 10_000
CORRELATION_RESAMPLES = 1_000
"""Fewer, because each resample is sorted again."""
LEVEL = 0.95
SEED = 4


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its bootstrap interval at `LEVEL`."""

    mean: float
    low: float
    high: float


def search(queries: Floats, documents: Floats, document_ids: Sequence[str]) -> list[list[str]]:
    """Exact search by cosine: (Q, D), (N, D) -> for each query the ids of the best `DEPTH` documents, best first."""
    return rank(cosine(queries, documents), document_ids)


def rank(scores: Doubles, document_ids: Sequence[str]) -> list[list[str]]:
    """Order by score, ties by id: (Q, N) -> Q lists of the best `DEPTH` ids."""
    order = sorted(range(len(document_ids)), key=lambda place: document_ids[place])
    place_of_id = np.empty(len(order), np.int64)
    place_of_id[order] = np.arange(len(order))
    rounded = np.round(scores, SCORE_DECIMALS)
    best = [np.lexsort((-place_of_id, -row))[:DEPTH] for row in rounded]
    return [[document_ids[place] for place in row] for row in best]


def per_query(relevant: Mapping[str, Mapping[str, int]], ranked: Mapping[str, Sequence[str]]) -> dict[str, list[float]]:
    """Every measure of every query: grades and rankings by query id -> measure -> (Q,) values in `ranked`'s order."""
    library = extras.need("ir_measures", wanted_for="measuring retrieval")
    parsed = {name: library.parse_measure(theirs) for name, theirs in MEASURES.items()}
    run = {query: {one: float(-place) for place, one in enumerate(ids)} for query, ids in ranked.items()}
    grades = {query: dict(relevant[query]) for query in run}
    found: dict[tuple[str, Any], float] = {
        (one.query_id, one.measure): one.value for one in library.iter_calc(list(parsed.values()), grades, run)
    }
    return {name: [found[query, measure] for query in ranked] for name, measure in parsed.items()}


def spearman(left: Doubles, right: Doubles) -> float:
    """Rank correlation of two series, ties at their mean rank: (N,), (N,) -> -1 to 1; 0 where one is constant."""
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        return 0.0
    stats = extras.need("scipy.stats", wanted_for="measuring similarity")
    return float(np.clip(stats.spearmanr(left, right).statistic, -1, 1))


def interval(values: Sequence[float]) -> Interval:
    """Mean of per-query values with its percentile bootstrap interval (Efron 1979): (Q,) -> mean, low, high.

    The seed is fixed: the same values give the same interval. For two models' values of the same queries give their
    differences: queries differ far more from each other than models do, and pairing takes that out.
    """
    numbers = np.asarray(values, np.float64)
    draws = np.random.default_rng(SEED).integers(0, len(numbers), (RESAMPLES, len(numbers)))
    low, high = np.quantile(numbers[draws].mean(1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(numbers.mean()), float(low), float(high))


def spearman_interval(left: Doubles, right: Doubles) -> Interval:
    """Spearman with a bootstrap interval over pairs; ranks are recomputed in each resample."""
    draws = np.random.default_rng(SEED).integers(0, len(left), (CORRELATION_RESAMPLES, len(left)))
    found = [spearman(left[rows], right[rows]) for rows in draws]
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(spearman(left, right), float(low), float(high))


def spearman_difference(gold: Doubles, left: Doubles, right: Doubles) -> Interval:
    """How much better `left` follows `gold` than `right` does: (N,) each -> difference with a paired interval."""
    draws = np.random.default_rng(SEED).integers(0, len(gold), (CORRELATION_RESAMPLES, len(gold)))
    found = [spearman(gold[rows], left[rows]) - spearman(gold[rows], right[rows]) for rows in draws]
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(spearman(gold, left) - spearman(gold, right), float(low), float(high))
