import pytest
from tests.small_gguf import small_tensors

from nestling._util.progress import TotalProgress
from nestling.formats.quant_types import FILE_TYPES
from nestling.pipeline.eta import file_effort, weights

SHAPES = {name: values.shape for name, values in small_tensors().items()}


def effort(file_type: str, threads: int = 1) -> float:
    return file_effort(SHAPES, file_type, heads=8, kv_heads=2, threads=threads)


def test_every_file_type_takes_something_and_threads_share_it() -> None:
    assert all(effort(kind) > 0 for kind in FILE_TYPES)
    assert effort("IQ3_XXS", 2) == pytest.approx(effort("IQ3_XXS") / 2)
    assert effort("IQ2_XS") > effort("Q4_K_M") > effort("Q8_0")
    assert weights(SHAPES) == pytest.approx(sum(values.size for values in small_tensors().values()) / 1e9)


def test_the_whole_goes_from_nothing_to_all_in_proportion() -> None:
    told: list[tuple[int, int]] = []
    own: list[tuple[int, int]] = []
    total = TotalProgress(lambda *counts: told.append(counts))
    total.expect({"a": 1.0, "b": 2.0, "c": 3.0, "kept": 10.0})
    total.skip("kept")
    first = total.part("a", progress=lambda *counts: own.append(counts))
    first(1, 2)
    first(2, 2)
    both = total.part("b", "c", progress=lambda *counts: own.append(counts))
    both(0, 4)
    both(4, 4)
    assert own == [(1, 2), (2, 2), (0, 4), (4, 4)]
    assert told == [(500, 6000), (1000, 6000), (1000, 6000), (6000, 6000)]


def test_a_piece_that_nobody_expected_counts_nothing() -> None:
    told: list[tuple[int, int]] = []
    total = TotalProgress(lambda *counts: told.append(counts))
    total.expect({"a": 1.0})
    total.part("x", progress=lambda *_: None)(1, 1)
    assert told == [(0, 1000)]
