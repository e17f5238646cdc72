import ctypes
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.ggml_oracle import SLOW_TYPES, library, one_call, theirs

from nestling.errors import BuildError, UsageError
from nestling.formats import ggml
from nestling.formats.quant_types import QuantType

ROWS, WIDTH = 7, 512
QUICK = [kind for kind in QuantType if kind not in SLOW_TYPES]
QUICK_TYPES = pytest.mark.parametrize("kind", QUICK, ids=lambda kind: kind.name)
EVERY_TYPE = pytest.mark.parametrize("kind", QuantType, ids=lambda kind: kind.name)


@pytest.fixture(scope="module")
def rows() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((ROWS, WIDTH), np.float32)


@pytest.fixture(scope="module")
def importance() -> NDArray[np.float32]:
    return np.random.default_rng(1).random(WIDTH, np.float32) + np.float32(0.01)


@EVERY_TYPE
def test_numbers_and_sizes_are_gguf_pys(kind: QuantType) -> None:
    assert kind.ggml_id == int(theirs(kind))
    assert (kind.block, kind.value.block_bytes) == gguf.GGML_QUANT_SIZES[theirs(kind)]


@QUICK_TYPES
@pytest.mark.parametrize("threads", [1, 2, 3, 100])
def test_any_number_of_threads_gives_the_bytes_of_one_call(
    kind: QuantType, threads: int, rows: NDArray[np.float32], importance: NDArray[np.float32]
) -> None:
    made = ggml.quantize_rows(rows, kind, importance, threads=threads)
    assert made.shape == (ROWS, kind.row_bytes(WIDTH))
    np.testing.assert_array_equal(made, one_call(rows, kind, importance))


def test_q8_0_is_gguf_pys_to_the_byte(rows: NDArray[np.float32]) -> None:
    np.testing.assert_array_equal(
        ggml.quantize_rows(rows, QuantType.Q8_0), gguf.quants.quantize(rows, theirs(QuantType.Q8_0))
    )


@EVERY_TYPE
@pytest.mark.parametrize("threads", [1, 3])
def test_expanding_any_bytes_agrees_with_gguf_py(kind: QuantType, threads: int) -> None:
    raw = np.random.default_rng(2).integers(0, 256, (ROWS, kind.row_bytes(WIDTH)), np.uint8)
    raw &= 0x3F  # every float16 among the bytes is then positive, finite and below 2
    found = ggml.dequantize_rows(raw, kind, threads=threads)
    assert found.dtype == np.float32
    # Both do a few float32 operations a weight, in other orders: a few units in the last place of the largest.
    expected = gguf.quants.dequantize(raw, theirs(kind))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


# Root mean square error on unit noise: about a quarter above what was measured.
@pytest.mark.parametrize(
    ("name", "most"),
    [("BF16", 0.0021), ("Q8_0", 0.0069), ("Q6_K", 0.0215), ("Q4_K", 0.089), ("IQ3_S", 0.173), ("Q2_K", 0.34)],
)
def test_what_comes_back_is_near(name: str, most: float, rows: NDArray[np.float32]) -> None:
    kind = QuantType[name]
    back = ggml.dequantize_rows(ggml.quantize_rows(rows, kind, np.ones(WIDTH, np.float32)), kind)
    assert np.sqrt(np.mean((back - rows) ** 2)) < most


def test_importance_moves_error_to_the_columns_that_matter_less(rows: NDArray[np.float32]) -> None:
    weights = np.where(np.arange(WIDTH) % 2, np.float32(100), np.float32(0.01)).astype(np.float32)

    def error(importance: NDArray[np.float32]) -> Any:
        back = ggml.dequantize_rows(ggml.quantize_rows(rows, QuantType.Q4_K, importance), QuantType.Q4_K)
        return ((back - rows) ** 2)[:, 1::2].mean()

    assert error(weights) < 0.9 * error(np.ones(WIDTH, np.float32))


def test_a_row_does_not_depend_on_its_neighbours(rows: NDArray[np.float32]) -> None:
    np.testing.assert_array_equal(
        ggml.quantize_rows(rows, QuantType.Q4_K)[3:4], ggml.quantize_rows(rows[3:4], QuantType.Q4_K)
    )


def test_strided_rows_are_read_right(rows: NDArray[np.float32]) -> None:
    np.testing.assert_array_equal(
        ggml.quantize_rows(rows[::2], QuantType.Q6_K), ggml.quantize_rows(rows[::2].copy(), QuantType.Q6_K)
    )


@pytest.mark.parametrize("kind", [kind for kind in QuantType if kind.needs_imatrix], ids=lambda kind: kind.name)
def test_a_type_that_needs_a_matrix_is_refused_without(kind: QuantType, rows: NDArray[np.float32]) -> None:
    with pytest.raises(UsageError, match=f"{kind.name} needs an importance matrix"):
        ggml.quantize_rows(rows, kind)


def test_ggml_agrees_on_which_types_need_a_matrix() -> None:
    required = library().ggml_quantize_requires_imatrix
    required.restype = ctypes.c_bool
    # ggml itself lets IQ1_M through; llama-quantize does not.
    assert {kind for kind in QuantType if required(kind.ggml_id)} == {
        kind for kind in QuantType if kind.needs_imatrix
    } - {QuantType.IQ1_M}


def test_overflow_is_seen(rows: NDArray[np.float32]) -> None:
    assert ggml.all_finite(ggml.quantize_rows(rows, QuantType.F16), QuantType.F16)
    assert not ggml.all_finite(ggml.quantize_rows(rows * 1e5, QuantType.F16), QuantType.F16)
    assert not ggml.all_finite(ggml.quantize_rows(rows * 1e9, QuantType.Q4_K), QuantType.Q4_K)


def test_a_library_with_other_blocks_is_refused() -> None:
    traits = SimpleNamespace(contents=SimpleNamespace(block=32, block_bytes=34))
    library: Any = SimpleNamespace(
        ggml_blck_size=lambda _number: 32,
        ggml_type_size=lambda _number: 36,
        ggml_get_type_traits=lambda _number: traits,
    )
    with pytest.raises(BuildError, match="Q8_0 has blocks of"):
        ggml._check_layout(library, QuantType.Q8_0)


def test_without_the_wheel_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ggml, "find_spec", lambda _name: None)
    with pytest.raises(BuildError, match="pip install xllamacpp"):
        ggml._load.__wrapped__()
