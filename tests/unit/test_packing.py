"""Packing: which rows stand where, and long texts cut in pieces without a change in their vectors."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes import pool

from nestling.engine import batching
from nestling.engine.numpy_reference import ReferenceEngine
from nestling.engine.openvino import engine, packing
from nestling.engine.openvino.compiling import KEPT_SHAPES
from nestling.formats.gguf import GGUFFile
from nestling.vectors import paired_cosine


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 3))
def test_side_by_side_puts_every_row_in_its_place(lengths: list[int], heads: int) -> None:
    packed = packing.side_by_side(lengths, heads=heads)
    there_and_back = packed.queries.reshape(-1)[packed.rows]
    np.testing.assert_array_equal(there_and_back.reshape(-1), np.arange(sum(lengths) * heads))
    assert packed.queries.shape == packed.keys.shape == (len(lengths) * heads, packing.bucket(max(lengths)))
    assert ((packed.queries >= 0) & (packed.queries < sum(lengths) * heads)).all()


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(2, 3))
def test_a_row_of_the_rectangle_is_one_head_of_one_text(lengths: list[int], heads: int) -> None:
    packed = packing.side_by_side(lengths, heads=heads)
    for row, rows in enumerate(packed.queries):
        length = lengths[row // heads]
        start = sum(lengths[: row // heads])
        np.testing.assert_array_equal(rows[:length], np.arange(start, start + length) * heads + row % heads)


@given(st.integers(1, 4096))
def test_there_is_room_for_all_rows_and_for_few_more(rows: int) -> None:
    assert rows <= packing.bucket(rows) <= max(rows + 3, rows * 9 / 8)


def test_the_graph_meets_few_numbers_of_rows_and_of_earlier_tokens() -> None:
    assert len({packing.bucket(rows) for rows in range(1, batching.TOKEN_BUDGET + 1)}) <= KEPT_SHAPES
    assert len({packing.padded_past(start) for start in range(32_768)}) <= 25


@given(st.integers(0, 40_000))
def test_a_piece_is_handed_all_earlier_tokens_and_few_more(start: int) -> None:
    assert start <= packing.padded_past(start) <= max(start + packing.PAST_STEP, start * 9 / 8)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 9))
def test_rows_of_padding_come_last_and_are_in_no_text(lengths: list[int], more: int) -> None:
    packed = packing.side_by_side(lengths, heads=2)
    padded = packed.padded(sum(lengths) + more)
    assert len(padded.rows) == sum(lengths) + more
    np.testing.assert_array_equal(padded.rows[: sum(lengths)], packed.rows)
    np.testing.assert_array_equal(padded.queries, packed.queries)


@given(
    st.integers(1, 40_000),
    st.integers(1, 64),
    st.builds(
        packing.PieceLimits,
        tokens=st.integers(16, 3000),
        score_bytes=st.integers(1, 1 << 27),
        work=st.floats(1, 10_000),
        past_work=st.floats(1, 100_000),
    ),
)
def test_pieces_cover_the_text_within_the_limits(length: int, heads: int, limits: packing.PieceLimits) -> None:
    cut = list(packing.pieces(length, heads=heads, limits=limits))
    assert cut[0][0] == 0
    assert cut[-1][1] == length
    assert all(left[1] == right[0] for left, right in itertools.pairwise(cut))
    for start, stop in cut:
        size = stop - start
        assert 0 < size <= limits.tokens
        scores = 4 * heads * size * (packing.padded_past(start) + size)
        work = size + size * start / limits.past_work
        within = scores <= limits.score_bytes and work <= limits.work * (1 + 1e-9)  # float64 rounding
        assert size <= packing.SMALLEST_PIECE or within


@given(st.integers(0, 3000), st.integers(1, 100), st.integers(1, 3))
def test_a_piece_sees_itself_and_what_was_before_it_alone(start: int, length: int, heads: int) -> None:
    packed = packing.piece(start, start + length, heads=heads)
    assert packed.keys.shape == (heads, packing.padded_past(start) + length) == (heads, len(packed.key_places))
    seen = packed.key_places[None] <= packed.query_places[:, None]
    np.testing.assert_array_equal(seen.sum(1), np.arange(start + 1, start + length + 1))
    places = np.concatenate((np.arange(packing.padded_past(start)), np.arange(start, start + length)))
    np.testing.assert_array_equal(places[seen[-1]], np.arange(start + length))


@given(st.integers(1, 64), st.integers(1, 100), st.integers(1, 1000))
def test_groups_have_every_layer_once_and_keep_to_the_memory_given(
    layers: int, layer_bytes: int, most_bytes: int
) -> None:
    groups = packing.layer_groups(layers, layer_bytes=layer_bytes, most_bytes=most_bytes)
    assert [layer for group in groups for layer in group] == list(range(layers))
    sizes = [len(group) for group in groups]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) == 1 or max(sizes) * layer_bytes <= most_bytes


@pytest.mark.parametrize("past_bytes", [engine.PAST_BYTES, 1])
def test_a_text_in_pieces_has_the_vector_of_the_whole(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, past_bytes: int
) -> None:
    """Layers in one group, and each in its own. Tolerance: float32 sums in another order; the reference takes the text
    whole.
    """
    monkeypatch.setattr(engine.OpenVINOEngine, "token_budget", 64)
    monkeypatch.setattr(engine, "PAST_BYTES", past_bytes)
    monkeypatch.setattr(packing, "PAST_STEP", 48)
    file = GGUFFile.open(tiny_models["F32"])
    ids = [np.random.default_rng(length).integers(0, 50, length).astype(np.int32) for length in (300, 7, 129, 64)]
    cosines = paired_cosine(pool(engine.OpenVINOEngine(file, threads=2), ids), pool(ReferenceEngine(file), ids))
    assert cosines.min() >= 0.99999, cosines
