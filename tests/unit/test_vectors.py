import base64
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nestling import vectors
from nestling.errors import EngineError

# float32 carries 24 bits: a value that is rounded once is right to 2**-24, about 6e-8.
ROUNDED_ONCE = 1e-7


def random_rows(count: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, width), np.float32)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(1, 9))
def test_mean_pool_is_each_texts_own_mean(lengths: list[int], width: int) -> None:
    states = random_rows(sum(lengths), width)
    pooled = vectors.mean_pool(states, np.array(lengths, np.int64))
    ends = np.cumsum(lengths)
    parts = [states[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    expected = [part.astype(np.float64).mean(0) for part in parts]
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(pooled, expected, rtol=ROUNDED_ONCE, atol=1e-9)


def test_mean_pool_sums_in_float64() -> None:
    """A million ones after 2**24: in float32 every one of them would be lost."""
    states = np.ones((1_000_001, 1), np.float32)
    states[0] = 2**24
    assert vectors.mean_pool(states, np.array([1_000_001]))[0, 0] == np.float32((2**24 + 1_000_000) / 1_000_001)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_last_pool_is_each_texts_last_row(lengths: list[int]) -> None:
    states = random_rows(sum(lengths), 3)
    expected = states[np.cumsum(lengths) - 1]
    np.testing.assert_array_equal(vectors.last_pool(states, np.array(lengths, np.int64)), expected)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_normalise_gives_unit_rows_at_any_scale(scale: float) -> None:
    rows = random_rows(5, 7) * np.float32(scale)
    unit = vectors.normalise(rows)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(unit.astype(np.float64), axis=1), 1, atol=ROUNDED_ONCE)
    assert vectors.paired_cosine(unit, rows).min() > 1 - 1e-12


@given(st.integers(1, 70), st.sampled_from([32, 128, 576, 2048]), st.integers(0, 99))
def test_a_normalised_row_is_rounded_once_and_does_not_depend_on_the_others(count: int, width: int, seed: int) -> None:
    rows = random_rows(count, width, seed)
    unit = vectors.normalise(rows)
    exact = rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(unit, exact, rtol=2**-24 * 1.001, atol=0)  # half a float32 step, and float64's own
    assert np.array_equal(unit[-1:], vectors.normalise(rows[-1:]))


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf, -np.inf])
def test_a_row_without_direction_is_an_error_that_names_it(bad: float) -> None:
    rows = random_rows(4, 6)
    rows[2] = bad
    with pytest.raises(EngineError, match="vector 2 is zero or not finite"):
        vectors.normalise(rows)


def test_one_bad_number_spoils_its_row() -> None:
    rows = random_rows(4, 6)
    rows[3, 1] = np.nan
    with pytest.raises(EngineError, match="vector 3"):
        vectors.finish(rows, 6)


def test_finish_truncates_and_normalises_again() -> None:
    pooled = np.array([[3, 4, 12], [0, -2, 0]], np.float32)
    expected = np.array([[0.6, 0.8], [0, -1]])
    np.testing.assert_allclose(vectors.finish(pooled, 2), expected, atol=ROUNDED_ONCE)
    np.testing.assert_allclose(vectors.finish(pooled, 3)[0], pooled[0] / 13, atol=ROUNDED_ONCE)


def test_a_vector_whose_first_numbers_are_all_zero_has_no_truncation() -> None:
    with pytest.raises(EngineError, match="vector 0"):
        vectors.finish(np.array([[0, 0, 1]], np.float32), 2)


def test_no_rows_stay_no_rows() -> None:
    assert vectors.finish(np.empty((0, 8), np.float32), 4).shape == (0, 4)


def test_the_argument_is_not_changed() -> None:
    rows = random_rows(3, 4)
    copy = rows.copy()
    vectors.finish(rows, 2)
    vectors.cosine(rows, rows)
    vectors.paired_cosine(rows, rows)
    np.testing.assert_array_equal(rows, copy)


def test_cosine_of_every_pair() -> None:
    left = np.array([[1, 0], [1, 1]], np.float32)
    right = np.array([[2, 0], [0, 3], [-1, -1]], np.float32)
    half = 2**-0.5
    expected = np.array([[1, 0, -half], [half, half, -1]])
    np.testing.assert_allclose(vectors.cosine(left, right), expected, atol=1e-15)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_paired_cosine_is_the_diagonal(count: int, width: int, seed: int) -> None:
    left, right = random_rows(count, width, seed), random_rows(count, width, seed + 100)
    np.testing.assert_allclose(
        vectors.paired_cosine(left, right), np.diag(vectors.cosine(left, right)), rtol=1e-12, atol=1e-15
    )


def test_base64_is_little_endian_float32() -> None:
    text = vectors.to_base64(np.array([1.5, -2.25, 3e-8], np.float32))
    assert struct.unpack("<3f", base64.b64decode(text)) == (1.5, -2.25, np.float32(3e-8))
    assert vectors.to_base64(np.array([1.5, -2.25, 3e-8], ">f4")) == text
