from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.engine.batching import PADDING, plan

LENGTHS = st.lists(st.integers(1, 12), max_size=60) | st.lists(st.integers(1, 5000), max_size=200)
BUDGETS = st.integers(1, 30) | st.integers(1, 4096)


@given(LENGTHS, BUDGETS)
def test_every_text_is_in_one_batch(lengths: list[int], budget: int) -> None:
    batches = plan(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(batches)


@given(LENGTHS, BUDGETS)
def test_only_a_single_text_may_exceed_the_budget(lengths: list[int], budget: int) -> None:
    for batch in plan(lengths, budget):
        assert sum(lengths[index] for index in batch) <= budget or len(batch) == 1


@given(LENGTHS, BUDGETS)
def test_longest_first_and_equal_lengths_in_their_order(lengths: list[int], budget: int) -> None:
    order = [index for batch in plan(lengths, budget) for index in batch]
    assert order == sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))


@given(LENGTHS, BUDGETS)
def test_padding_is_bounded(lengths: list[int], budget: int) -> None:
    for batch in plan(lengths, budget):
        rectangle = len(batch) * max(lengths[index] for index in batch)
        assert sum(lengths[index] for index in batch) >= (1 - PADDING) * rectangle


@given(LENGTHS, BUDGETS)
def test_no_batch_could_have_taken_the_next_text(lengths: list[int], budget: int) -> None:
    """Batches are not smaller than they must be."""
    batches = plan(lengths, budget)
    for batch, after in pairwise(batches):
        tokens = sum(lengths[index] for index in batch) + lengths[after[0]]
        rectangle = (len(batch) + 1) * lengths[batch[0]]
        assert tokens > budget or tokens < (1 - PADDING) * rectangle


@pytest.mark.parametrize(
    ("lengths", "budget", "batches"),
    [
        ([], 8, []),
        ([5], 1, [[0]]),
        ([1, 9, 1, 9], 20, [[1, 3], [0, 2]]),
        ([4, 4, 4, 4], 8, [[0, 1], [2, 3]]),
        ([4, 4, 4, 4], 7, [[0], [1], [2], [3]]),
        ([4, 4, 4, 4], 16, [[0, 1, 2, 3]]),
        ([10, 5], 100, [[0, 1]]),  # a quarter of the rectangle is padding: allowed
        ([10, 4], 100, [[0], [1]]),
    ],
)
def test_examples(lengths: list[int], budget: int, batches: list[list[int]]) -> None:
    assert plan(lengths, budget) == batches
