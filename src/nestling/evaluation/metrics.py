"""Metrics of rankings and of correlation, with bootstrap intervals. Does not know models or files.

The metrics are those of `ir_measures` (with pytrec_eval, so by trec_eval's definitions: nDCG with linear gain and log2
discount). Ties are broken here, before the library sees the ranking, so that results are the same everywhere: of
documents with equal scores the one with the larger id is ranked first, as in trec_eval.
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
"""Length of a ranking: the depth of the deepest metric."""
SCORE_DECIMALS = 9
"""Scores equal to so many decimals count as ties: the difference is below the rounding of float32 vectors."""
RESAMPLES = 10_000
CORRELATION_RESAMPLES = 1_000
"""Fewer, because each resample has to be sorted."""
LEVEL = 0.95
SEED = 4


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its bootstrap interval at `LEVEL`."""

    mean: float
    low: float
    high: float


def search(queries: Floats, documents: Floats, document_ids: Sequence[str]) -> list[list[str]]:
    """Exact search by cosine: (Q, D), (N, D) -> for each query the ids of the `DEPTH` best documents, best first."""
    return rank(cosine(queries, documents), document_ids)


def rank(scores: Doubles, document_ids: Sequence[str]) -> list[list[str]]:
    """Rank by score, ties by id: (Q, N) -> Q lists of the `DEPTH` best ids."""
    order = sorted(range(len(document_ids)), key=lambda place: document_ids[place])
    place_of_id = np.empty(len(order), np.int64)
    place_of_id[order] = np.arange(len(order))
    rounded = np.round(scores, SCORE_DECIMALS)
    best = [np.lexsort((-place_of_id, -row))[:DEPTH] for row in rounded]
    return [[document_ids[place] for place in row] for row in best]


def per_query(relevant: Mapping[str, Mapping[str, int]], ranked: Mapping[str, Sequence[str]]) -> dict[str, list[float]]:
    """Every metric of every query: grades and rankings by query id -> metric -> (Q,) in the order of `ranked`."""
    library = extras.need("ir_measures", wanted_for="measuring retrieval")
    parsed = {name: library.parse_measure(theirs) for name, theirs in MEASURES.items()}
    run = {query: {one: float(-place) for place, one in enumerate(ids)} for query, ids in ranked.items()}
    grades = {query: dict(relevant[query]) for query in run}
    found: dict[tuple[str, Any], float] = {
        (one.query_id, one.measure): one.value for one in library.iter_calc(list(parsed.values()), grades, run)
    }
    return {name: [found[query, measure] for query in ranked] for name, measure in parsed.items()}


def spearman(left: Doubles, right: Doubles) -> float:
    """Spearman's rank correlation, ties at their mean rank: (N,), (N,) -> -1 to 1; 0 if a series is constant."""
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        return 0.0
    stats = extras.need("scipy.stats", wanted_for="measuring similarity")
    return float(np.clip(stats.spearmanr(left, right).statistic, -1, 1))


def interval(values: Sequence[float]) -> Interval:
    """Mean of per-query values with its percentile bootstrap interval (Efron 1979): (Q,) -> mean, low, high.

    The seed is fixed, so equal values give equal intervals. To compare two models, pass the differences of their values
    by query: queries differ far more than models do, and pairing removes that variance.
    """
    numbers = np.asarray(values, np.float64)
    draws = np.random.default_rng(SEED).integers(0, len(numbers), (RESAMPLES, len(numbers)))
    low, high = np.quantile(numbers[draws].mean(1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(numbers.mean()), float(low), float(high))


def spearman_interval(left: Doubles, right: Doubles) -> Interval:
    """Spearman's correlation with a bootstrap interval over pairs; ranks are recomputed in each resample."""
    draws = np.random.default_rng(SEED).integers(0, len(left), (CORRELATION_RESAMPLES, len(left)))
    found = [spearman(left[rows], right[rows]) for rows in draws]
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(spearman(left, right), float(low), float(high))


def spearman_difference(gold: Doubles, left: Doubles, right: Doubles) -> Interval:
    """Difference of the correlations of `left` and `right` with `gold`, with a paired interval: (N,) each."""
    draws = np.random.default_rng(SEED).integers(0, len(gold), (CORRELATION_RESAMPLES, len(gold)))
    found = [spearman(gold[rows], left[rows]) - spearman(gold[rows], right[rows]) for rows in draws]
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(spearman(gold, left) - spearman(gold, right), float(low), float(high))
