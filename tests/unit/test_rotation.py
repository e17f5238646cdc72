"""The rotation: orthogonal, its own inverse, invisible between matrices that it has been folded into."""

import numpy as np
import pytest

from nestling.engine import rotation
from nestling.engine.rotation import Rotation

BLOCKS = (32, 64, 128, 256, 2048)
EXACT = 1e-5
"""float32 sums of up to 2,048 numbers of order one, in another order."""


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("block", BLOCKS)
def test_both_ways_of_turning_are_products_with_the_matrix(block: int) -> None:
    rows, h = random(3, 2 * block), rotation.hadamard(block)
    expected = (rows.reshape(3, 2, block) @ h).reshape(rows.shape)
    np.testing.assert_allclose(rotation.spread(rows, block), expected, atol=EXACT)
    np.testing.assert_allclose(rotation.spread_columns(rows.T.copy(), block), expected.T, atol=EXACT)
    np.testing.assert_allclose(h @ h, np.eye(block), atol=EXACT)


def test_what_enters_leaves_as_it_was() -> None:
    turned, rows = Rotation(96, 32), random(5, 96)
    np.testing.assert_allclose(turned.leave(turned.enter(rows)), rows, atol=EXACT)
    np.testing.assert_allclose((turned.enter(rows) ** 2).sum(1), (rows**2).sum(1), rtol=EXACT)


@pytest.mark.parametrize("kind", rotation.NORM_OF)
def test_a_matrix_behind_a_norm_takes_rotated_rows(kind: str) -> None:
    turned, x, w, norm = Rotation(64, 32), random(4, 64), random(128, 64), random(64)
    found = turned.enter(x) @ turned.inputs(kind, w, norm).T
    np.testing.assert_allclose(found, x * norm @ w.T, rtol=1e-3, atol=1e-3)


def test_down_answers_into_the_rotated_stream() -> None:
    turned, z, down = Rotation(64, 32), random(3, 128), random(64, 128)
    found = turned.leave(z @ turned.outputs("ffn_down", turned.inputs("ffn_down", down, None)).T)
    np.testing.assert_allclose(found, z @ down.T, rtol=1e-3, atol=1e-3)


def test_values_and_output_of_every_head_cancel() -> None:
    turned, x, v, o = Rotation(64, 32), random(3, 64), random(64, 64), random(64, 64)
    mixed = x @ turned.outputs("attn_v", v).T
    found = turned.leave(mixed @ turned.outputs("attn_output", turned.inputs("attn_output", o, None)).T)
    np.testing.assert_allclose(found, x @ v.T @ o.T, rtol=1e-3, atol=1e-3)


def test_no_row_keeps_an_outlier_or_a_pattern() -> None:
    """One channel, all channels alike, and every row of H itself: none is far above 4.5 times its root mean square."""
    turned = Rotation(2048, 128)
    rows = np.concatenate([np.eye(1, 2048), np.ones((1, 2048)), rotation.hadamard(2048)]).astype(np.float32)
    found = turned.enter(rows)
    largest = np.abs(found).max(1) / np.sqrt((found**2).mean(1))
    assert largest.max() < 5.5
