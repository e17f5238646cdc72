"""Attention in pages: which rows and pages a sequence has, and vectors equal to those of the other form of attention.

Doors by which a page could be lost or mixed up: texts side by side, padding rows, chunks of a long text, groups of
layers of which some are inactive, pages that hold anything at first, two long texts in turns (`test_interleaving`).
Under a cap without bfloat16 the operation crashes the process: in the arithmetic by rule (`test_choice`), in one that
was asked for. In a release of OpenVINO that was not tried it may do anything. Where the processor has no bfloat16, both
forms are the same and the engines' tests here compare equal things.
"""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes import pool

from nestling.engine.arithmetic import ArithmeticName
from nestling.engine.hyperparameters import Hyperparameters
from nestling.engine.openvino import engine, packing, paged, processor, runtime
from nestling.engine.openvino.attention import Index
from nestling.engine.openvino.paged import PAGE, Paged, pages_of
from nestling.engine.openvino.processor import CAP, Processor
from nestling.engine.openvino.rectangles import Rectangles
from nestling.engine.openvino.runtime import ov
from nestling.formats.gguf import GGUFFile
from nestling.vectors import paired_cosine


def form(heads: int = 2) -> Paged:
    return Paged(Hyperparameters(3, 64 * heads, heads, heads, 64, 1e-6, 1e6, (), 32_768, 100))


def pages_by_sequence(index: list[Index]) -> list[list[int]]:
    _, _, pages, begins, _ = index
    return [pages[start:stop].tolist() for start, stop in itertools.pairwise(begins.tolist())]


@given(st.lists(st.integers(1, 100), min_size=1, max_size=9), st.integers(1, 3), st.integers(0, 9))
def test_texts_side_by_side_have_their_own_rows_and_pages(lengths: list[int], heads: int, more: int) -> None:
    rows = sum(lengths) + more
    feed = form(heads).batch(lengths, rows)
    past, starts, pages, _, longest = index = feed[:5]
    assert past.tolist() == [0] * (heads * len(lengths))
    expected = [head * rows + before for head in range(heads) for before in (0, *itertools.accumulate(lengths[:-1]))]
    assert starts.tolist() == [*expected, heads * rows]
    found = pages_by_sequence(index)
    sizes = np.diff(starts).tolist()
    assert [len(one) for one in found] == [pages_of(size) for size in sizes]
    assert len(set(pages.tolist())) == len(pages)
    assert longest == max(sizes)
    assert all(room.shape[0] == len(pages) for room in feed[5:])


@given(st.integers(1, 3000), st.integers(1, 3), st.sampled_from([16, 64, 256]))
def test_chunks_read_the_pages_that_the_chunks_before_have_written(length: int, heads: int, size: int) -> None:
    text, written = form(heads).text(length, range(1, 2)), {head: list[int]() for head in range(heads)}
    for start in range(0, length, size):
        rows = packing.bucket(min(size, length - start))
        feed = text.feed(start, min(length, start + size), rows)
        past, starts, pages, _, longest = index = feed[:5]
        assert past.tolist() == [start] * heads
        assert starts.tolist() == [head * rows for head in range(heads + 1)]
        for head, now in enumerate(pages_by_sequence(index)):
            assert now[: len(written[head])] == written[head] or start == 0
            assert len(now) * PAGE >= start + rows
            written[head] = now[: pages_of(start + size)]
        assert len(set(pages.tolist())) == len(pages)
        assert longest >= start + rows
        assert all(page < feed[7].shape[0] for page in pages)
        assert [room.shape[0] for room in (*feed[5:7], *feed[9:])] == [0] * 4


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K_M"])
@pytest.mark.parametrize("past_bytes", [engine.PAST_BYTES, 1])
def test_both_forms_give_the_same_vectors(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, kind: str, past_bytes: int
) -> None:
    """Whole texts, and long ones in chunks through all layers or through each alone. Tolerance: bfloat16 scores and
    values summed in another order, then rounded to int8.
    """
    monkeypatch.setattr(engine.OpenVINOEngine, "token_budget", 64)
    monkeypatch.setattr(engine, "PAST_BYTES", past_bytes)
    monkeypatch.setattr(packing, "PAST_STEP", 48)
    file = GGUFFile.open(tiny_models[kind])
    ids = [np.random.default_rng(length).integers(0, 50, length).astype(np.int32) for length in (300, 7, 129, 33, 64)]
    found = pool(engine.OpenVINOEngine(file, threads=2), ids)
    monkeypatch.setattr(engine, "PAGE", paged.PAGE * 1000)
    cosines = paired_cosine(found, pool(engine.OpenVINOEngine(file, threads=2), ids))
    assert cosines.min() >= 0.9998, cosines


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K_M"])
def test_a_text_in_chunks_has_the_vector_of_the_whole(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A query's score is a sum in the same order wherever a chunk ends: the last bits alone may differ."""
    file = GGUFFile.open(tiny_models[kind])
    ids = [np.random.default_rng(length).integers(0, 50, length).astype(np.int32) for length in (300, 129)]
    whole = pool(engine.OpenVINOEngine(file, threads=2), ids)
    monkeypatch.setattr(engine.OpenVINOEngine, "token_budget", 64)
    cosines = paired_cosine(whole, pool(engine.OpenVINOEngine(file, threads=2), ids))
    assert cosines.min() >= 0.99999, cosines


def test_pages_are_not_initialised_and_what_is_in_them_reaches_no_vector(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All pages are full of NaN at first: whole texts, and a long one in chunks."""
    monkeypatch.setattr(engine.OpenVINOEngine, "token_budget", 64)
    made = engine.OpenVINOEngine(GGUFFile.open(tiny_models["Q8_0"]), threads=2)
    ids = [np.random.default_rng(length).integers(0, 50, length).astype(np.int32) for length in (5, 40, 33, 1, 300)]
    expected, room = pool(made, ids), Paged.room

    def full(form: Paged, pages: int) -> ov.Tensor:
        there = room(form, pages)
        nan = np.full(there.shape, 0xFFFF, np.uint16)
        ov.Tensor(nan, ov.Shape(nan.shape), ov.Type.bf16).copy_to(there)
        return there

    monkeypatch.setattr(Paged, "room", full)
    np.testing.assert_array_equal(pool(made, ids), expected)


def test_under_a_cap_bfloat16_that_was_asked_for_takes_the_other_form(tiny_models: dict[str, Path]) -> None:
    if processor.kind() not in (Processor.AMX, Processor.AVX512_VNNI):
        pytest.skip("this processor is older than the cap")
    code = (
        "import sys; from pathlib import Path; from nestling.engine.arithmetic import ArithmeticName;"
        "from nestling.engine.openvino.engine import OpenVINOEngine; from nestling.formats.gguf import GGUFFile;"
        "file = GGUFFile.open(Path(sys.argv[1]));"
        "engine = OpenVINOEngine(file, threads=1, arithmetic=ArithmeticName.BF16);"
        "print(type(engine._attention).__name__)"
    )
    command = [sys.executable, "-c", code, str(tiny_models["Q8_0"])]
    done = subprocess.run(
        command, env=os.environ | {CAP: "AVX512_CORE_VNNI"}, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "Rectangles\n"), done.stderr


@pytest.mark.parametrize(
    ("version", "known"),
    [("2026.4.0-1-releases/2026/4", True), ("2026.4.1", True), ("2026.40.0", False), ("2026.5.0", False), ("", False)],
)
def test_an_operation_that_is_not_public_is_used_in_the_releases_that_were_tried(version: str, *, known: bool) -> None:
    assert runtime.has_paged_attention(version) is known


def test_another_release_takes_the_other_form(tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "has_paged_attention", lambda: False)
    made = engine.OpenVINOEngine(GGUFFile.open(tiny_models["Q8_0"]), threads=1, arithmetic=ArithmeticName.BF16)
    assert isinstance(made._attention, Rectangles)
