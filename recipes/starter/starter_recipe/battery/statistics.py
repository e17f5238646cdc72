"""Is a candidate worse on a set? Paired bootstrap over queries, and Holm's correction for the number of sets.

Sources: B. Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7 (1979), for the interval;
S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979), for the
correction. Seeds are fixed: equal values give equal results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Mapping

Doubles = NDArray[np.float64]
RESAMPLES, CORRELATION_RESAMPLES = 20_000, 4_000
"""Fewer for correlations, because each resample has to be ranked."""
SEED = 21
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean difference of two checkpoints on a set, its interval at `LEVEL`, and the two-sided p of "no difference"."""

    mean: float
    low: float
    high: float
    p: float


def paired(ours: Doubles, theirs: Doubles) -> Difference:
    """Compare values of the same queries: (Q,), (Q,) -> ours minus theirs."""
    values = ours - theirs
    draws = np.random.default_rng(SEED).integers(0, len(values), (RESAMPLES, len(values)))
    return _difference(float(values.mean()), values[draws].mean(1))


def paired_correlation(gold: Doubles, ours: Doubles, theirs: Doubles) -> Difference:
    """Compare Spearman's correlations with the same grades: (N,) each -> ours minus theirs."""

    def gain(rows: NDArray[np.int64]) -> float:
        return spearman(gold[rows], ours[rows]) - spearman(gold[rows], theirs[rows])

    every = np.arange(len(gold))
    draws = np.random.default_rng(SEED).integers(0, len(gold), (CORRELATION_RESAMPLES, len(gold)))
    return _difference(gain(every), np.array([gain(rows) for rows in draws]))


def _difference(mean: float, resampled: Doubles) -> Difference:
    """Interval and p of resampled differences; the added one keeps p above zero."""
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    tail = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    return Difference(mean, float(low), float(high), min(1.0, 2 * (tail + 1) / (len(resampled) + 1)))


def spearman(left: Doubles, right: Doubles) -> float:
    """Spearman's rank correlation, ties at their mean rank; 0 if a series is constant."""
    ranks = [_ranks(values) for values in (left, right)]
    if any(np.ptp(one) == 0 for one in ranks):
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(values: Doubles) -> Doubles:
    """Ranks from 0, equal values at their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means: Doubles = (last - counts + last - 1) / 2
    return means[inverse]


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjust p values for their number: the k-th smallest of m times m - k + 1, never less than the one before."""
    adjusted: dict[str, float] = {}
    highest = 0.0
    ordered = sorted(p_values.items(), key=lambda item: (item[1], item[0]))
    for place, (name, value) in enumerate(ordered):
        highest = max(highest, min(1.0, value * (len(ordered) - place)))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}
