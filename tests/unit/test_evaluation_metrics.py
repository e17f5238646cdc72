"""The measures against a second implementation written from their definitions; intervals against what they must do."""

from collections.abc import Mapping, Sequence
from math import log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nestling.evaluation import metrics

EXACT = 1e-9
"""Both sides compute in float64; sums of at most 100 terms differ by far less."""


def measures(grades: Mapping[str, int], ranking: Sequence[str]) -> dict[str, float]:
    """From the definitions: nDCG with linear gain, recall of what is relevant, reciprocal rank of the first hit."""
    gains = [grades.get(one, 0) for one in ranking]
    best = sorted(grades.values(), reverse=True)
    relevant = sum(grade > 0 for grade in grades.values())

    def dcg(values: Sequence[int], depth: int) -> float:
        return sum(gain / log2(rank + 1) for rank, gain in enumerate(values[:depth], 1))

    first = next((rank for rank, gain in enumerate(gains[:10], 1) if gain), None)
    return {
        "nDCG@5": dcg(gains, 5) / dcg(best, 5),
        "nDCG@10": dcg(gains, 10) / dcg(best, 10),
        "recall@10": sum(gain > 0 for gain in gains[:10]) / relevant,
        "recall@100": sum(gain > 0 for gain in gains[:100]) / relevant,
        "MRR@10": 1 / first if first else 0.0,
    }


def ordered(scores: Sequence[float], ids: Sequence[str]) -> list[str]:
    """Score downwards, then id downwards, by Python's stable sort."""
    by_id = sorted(zip(ids, scores, strict=True), reverse=True)
    return [one for one, _ in sorted(by_id, key=lambda pair: -pair[1])]


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[list[float]], list[str], dict[str, dict[str, int]]]:
    """Scores of few values, so that many tie; ids whose order as text is not that of their numbers; some grades."""
    documents = draw(st.integers(1, 140))
    ids = [f"d{number}" for number in range(documents)]
    queries = draw(st.integers(1, 4))
    scores = draw(arrays(np.int64, (queries, documents), elements=st.integers(0, 12))) / 16
    relevant = {}
    for number in range(queries):
        chosen = draw(st.lists(st.sampled_from(ids), min_size=1, max_size=12, unique=True))
        grades = draw(st.lists(st.integers(0, 3), min_size=len(chosen), max_size=len(chosen)))
        relevant[f"q{number}"] = dict(zip(chosen, [max(grades[0], 1), *grades[1:]], strict=True))
    return scores.tolist(), ids, relevant


@settings(max_examples=40)
@given(runs())
def test_measures_equal_a_second_implementation(
    run: tuple[list[list[float]], list[str], dict[str, dict[str, int]]],
) -> None:
    scores, ids, relevant = run
    ranked = dict(zip(relevant, metrics.rank(np.array(scores), ids), strict=True))
    found = metrics.per_query(relevant, ranked)
    for place, (query, grades) in enumerate(relevant.items()):
        by_hand = ordered(scores[place], ids)
        assert ranked[query] == by_hand[: metrics.DEPTH]
        for name, value in measures(grades, by_hand).items():
            assert found[name][place] == pytest.approx(value, abs=EXACT), (name, query)


def test_equal_scores_stand_by_id_and_rounding_makes_them_equal() -> None:
    scores = np.array([[0.5, 0.5 + 1e-12, 0.5 - 1e-12, 0.9]])
    assert metrics.rank(scores, ["a", "b", "c", "d"]) == [["d", "c", "b", "a"]]


def test_search_is_exact_cosine() -> None:
    documents = np.array([[3, 0], [1, 1], [-1, 0]], np.float32)
    assert metrics.search(np.array([[2, 0.1]], np.float32), documents, ["x", "y", "z"]) == [["x", "y", "z"]]


def mean_ranks(values: Sequence[float]) -> list[float]:
    return [sum(other < one for other in values) + (sum(other == one for other in values) + 1) / 2 for one in values]


def correlation(left: Sequence[float], right: Sequence[float]) -> float:
    a, b = (np.array(side) - np.mean(side) for side in (left, right))
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=40))
def test_spearman_is_the_correlation_of_mean_ranks(pairs: list[tuple[int, int]]) -> None:
    left, right = (np.array(side, np.float64) for side in zip(*pairs, strict=True))
    constant = len(set(left.tolist())) == 1 or len(set(right.tolist())) == 1
    wanted = 0.0 if constant else correlation(mean_ranks(left.tolist()), mean_ranks(right.tolist()))
    assert metrics.spearman(left, right) == pytest.approx(wanted, abs=EXACT)


def test_an_interval_holds_the_mean_and_is_the_same_every_time() -> None:
    values = np.random.default_rng(0).random(60).tolist()
    found = metrics.interval(values)
    assert found == metrics.interval(values)
    assert found.low < found.mean < found.high
    assert found.mean == pytest.approx(np.mean(values))
    error = np.std(values) / np.sqrt(60)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.05), "as the normal approximation has it"


def test_the_interval_covers_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    inside = [low.low <= 0.5 <= low.high for low in (metrics.interval(random.random(50).tolist()) for _ in range(100))]
    assert 0.88 <= np.mean(inside) <= 0.99, "0.95 of 100 is 95 +- 2.2, and 50 queries make it a little too narrow"


def test_pairing_finds_a_small_loss_that_means_would_hide() -> None:
    random = np.random.default_rng(2)
    ours = random.random(50)
    theirs = ours - 0.01 - 0.005 * random.random(50)
    gap = metrics.interval((theirs - ours).tolist())
    assert gap.high < 0
    assert metrics.interval(theirs.tolist()).high > ours.mean(), "the intervals of the means overlap widely"


def test_spearman_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "CORRELATION_RESAMPLES", 200)  # what is asserted is far from the intervals' ends
    random = np.random.default_rng(3)
    gold = random.random(80)
    near, far = gold + 0.1 * random.random(80), gold + 2 * random.random(80)
    found = metrics.spearman_interval(gold, near)
    assert found.low < found.mean < found.high <= 1
    assert metrics.spearman_difference(gold, near, far).low > 0
    assert metrics.spearman_difference(gold, near, near) == metrics.Interval(0, 0, 0)
