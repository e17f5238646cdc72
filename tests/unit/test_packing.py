"""Packing: which rows stand where, and long texts cut in pieces without a change in their vectors."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.engine import openvino, packing
from nestling.engine.reference import ReferenceEngine
from nestling.gguf_io import GGUFFile
from nestling.vectors import paired_cosine

MEMORY = (2, 2, 1, 4)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_side_by_side_puts_every_row_in_its_place(lengths: list[int]) -> None:
    packed = packing.side_by_side(lengths, memory=MEMORY)
    np.testing.assert_array_equal(packed.positions, np.concatenate([np.arange(length) for length in lengths]))
    np.testing.assert_array_equal(packed.queries.reshape(-1)[packed.rows], np.arange(sum(lengths)))
    assert packed.past.shape == (0, *MEMORY)


@given(st.integers(1, 4096))
def test_there_is_room_for_all_rows_and_for_few_more(rows: int) -> None:
    assert rows <= packing.room(rows) <= max(rows + 3, rows * 9 / 8)


def test_the_graph_meets_few_numbers_of_rows() -> None:
    assert len({packing.room(rows) for rows in range(1, 2049)}) <= openvino.KEPT_SHAPES


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 9))
def test_rows_of_padding_come_last_and_are_in_no_text(lengths: list[int], more: int) -> None:
    packed = packing.side_by_side(lengths, memory=MEMORY)
    padded = packed.in_room(sum(lengths) + more)
    assert len(padded.positions) == len(padded.rows) == sum(lengths) + more
    np.testing.assert_array_equal(padded.rows[: sum(lengths)], packed.rows)
    np.testing.assert_array_equal(padded.queries, packed.queries)


@given(st.integers(1, 40_000), st.integers(1, 64))
def test_pieces_cover_the_text_within_the_memory_given(length: int, heads: int) -> None:
    cut = list(packing.pieces(length, heads=heads, most_tokens=2048, score_bytes=1 << 26))
    assert cut[0][0] == 0
    assert cut[-1][1] == length
    assert all(left[1] == right[0] for left, right in itertools.pairwise(cut))
    largest = max(stop - start for start, stop in cut)
    assert largest <= 2048
    assert largest <= packing.SMALLEST_PIECE or 4 * heads * largest * length <= 1 << 26


def test_a_piece_does_not_see_what_is_not_there_yet() -> None:
    past = np.zeros((5000, *MEMORY), np.float32)
    packed = packing.piece(1500, 1600, past=past)
    seen = packed.key_places[None] <= packed.query_places[:, None]
    np.testing.assert_array_equal(seen.sum(1), np.arange(1501, 1601))
    assert len(packed.past) == 2 * packing.PAST_STEP


def test_a_text_in_pieces_has_the_vector_of_the_whole(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tolerance: float32 sums in another order; the reference takes the text whole."""
    monkeypatch.setattr(openvino, "TOKEN_BUDGET", 64)
    monkeypatch.setattr(packing, "PAST_STEP", 48)
    file = GGUFFile.open(tiny_models["F32"])
    ids = [np.random.default_rng(length).integers(0, 50, length).astype(np.int32) for length in (300, 7, 129, 64)]
    cosines = paired_cosine(openvino.OpenVINOEngine(file, threads=2).pool(ids), ReferenceEngine(file).pool(ids))
    assert cosines.min() >= 0.99999, cosines
