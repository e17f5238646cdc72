from itertools import pairwise
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.engine.batching import SPARE_PAIRS, plan

LENGTHS = st.lists(st.integers(1, 12), max_size=60) | st.lists(st.integers(1, 5000), max_size=200)
BUDGETS = st.integers(1, 30) | st.integers(1, 4096)


@given(LENGTHS, BUDGETS)
def test_every_text_is_in_one_batch(lengths: list[int], budget: int) -> None:
    batches = plan(lengths, budget, spare_pairs=SPARE_PAIRS)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(batches)


@given(LENGTHS, BUDGETS)
def test_only_a_single_text_may_exceed_the_budget(lengths: list[int], budget: int) -> None:
    for batch in plan(lengths, budget, spare_pairs=SPARE_PAIRS):
        assert sum(lengths[index] for index in batch) <= budget or len(batch) == 1


@given(LENGTHS, BUDGETS)
def test_longest_first_and_equal_lengths_in_their_order(lengths: list[int], budget: int) -> None:
    order = [index for batch in plan(lengths, budget, spare_pairs=SPARE_PAIRS) for index in batch]
    assert order == sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))


@given(LENGTHS, BUDGETS)
def test_padding_is_bounded(lengths: list[int], budget: int) -> None:
    for batch in plan(lengths, budget, spare_pairs=SPARE_PAIRS):
        assert padding([lengths[index] for index in batch]) <= SPARE_PAIRS


@given(LENGTHS, BUDGETS)
def test_an_engine_that_pads_nothing_takes_a_batch_of_any_lengths(lengths: list[int], budget: int) -> None:
    batches = plan(lengths, budget, spare_pairs=inf)
    for batch, after in pairwise(batches):
        assert sum(lengths[index] for index in (*batch, after[0])) > budget


@given(LENGTHS, BUDGETS)
def test_no_batch_could_have_taken_the_next_text(lengths: list[int], budget: int) -> None:
    """Batches are not smaller than they must be."""
    for batch, after in pairwise(plan(lengths, budget, spare_pairs=SPARE_PAIRS)):
        larger = [lengths[index] for index in (*batch, after[0])]
        assert sum(larger) > budget or padding(larger) > SPARE_PAIRS


def padding(lengths: list[int]) -> int:
    return sum(max(lengths) ** 2 - length**2 for length in lengths)


@pytest.mark.parametrize(
    ("lengths", "budget", "batches"),
    [
        ([], 8, []),
        ([5], 1, [[0]]),
        ([1, 9, 1, 9], 19, [[1, 3, 0], [2]]),
        ([4, 4, 4, 4], 8, [[0, 1], [2, 3]]),
        ([4, 4, 4, 4], 7, [[0], [1], [2], [3]]),
        ([4, 4, 4, 4], 16, [[0, 1, 2, 3]]),
        ([362, 1, 1], 1000, [[0, 1], [2]]),  # 362 * 362 is just below 1 << 17
        ([363, 1], 1000, [[0], [1]]),
    ],
)
def test_examples(lengths: list[int], budget: int, batches: list[list[int]]) -> None:
    assert plan(lengths, budget, spare_pairs=SPARE_PAIRS) == batches
