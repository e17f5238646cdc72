"""The types of one and two bits, whose tables ggml needs seconds to build: too slow for the unit tests."""

import gguf
import numpy as np
import pytest
from tests.ggml_oracle import SLOW_TYPES, one_call, theirs

from nestling.formats.ggml import all_finite, dequantize_rows, quantize_rows
from nestling.formats.quant_types import QuantType


@pytest.mark.slow
@pytest.mark.parametrize("kind", SLOW_TYPES, ids=lambda kind: kind.name)
def test_small_types(kind: QuantType) -> None:
    rng = np.random.default_rng(3)
    rows, importance = rng.standard_normal((7, 512), np.float32), (rng.random(512) + 0.01).astype(np.float32)
    whole = one_call(rows, kind, importance)
    for threads in (1, 2, 3):
        np.testing.assert_array_equal(quantize_rows(rows, kind, importance, threads=threads), whole)
    assert all_finite(whole, kind)
    back = dequantize_rows(whole, kind)
    np.testing.assert_allclose(back, gguf.quants.dequantize(whole, theirs(kind)), rtol=1e-6, atol=1e-6)
    # Better than the best constant guess, whose weighted error is the spread itself.
    assert np.average((back - rows) ** 2, weights=importance[None].repeat(7, 0)) < 0.5
