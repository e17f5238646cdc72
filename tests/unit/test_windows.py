"""The order in which a tower takes its patches, against the slow way: every patch looks its window up by itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.engine.vision import Grid, tokens_of
from nestling.engine.windows import Layout, Rectangle, cos_sin
from nestling.formats.tower_shape import TowerShape

SHAPE = TowerShape(blocks=4, hidden=48, heads=2, feed_forward=100, out=64, full_every=2, rms_eps=1e-6)
GRIDS = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)).map(lambda g: (2 * g[0], 2 * g[1])), min_size=1)


def places(grid: Grid) -> list[tuple[int, int]]:
    """Row and column of every patch in the order in which patches come."""
    rows, columns = grid
    return [
        (y + inner_y, x + inner_x)
        for y in range(0, rows, 2)
        for x in range(0, columns, 2)
        for inner_y in (0, 1)
        for inner_x in (0, 1)
    ]


@given(GRIDS)
def test_patches_of_a_window_stand_together_and_nothing_is_lost(grids: list[Grid]) -> None:
    layout = Layout.of(grids, SHAPE)
    every = [(image, y, x) for image, grid in enumerate(grids) for y, x in places(grid)]
    assert sorted(layout.patches.tolist()) == list(range(len(every)))
    assert layout.images.tolist() == [rows * columns for rows, columns in grids]
    at = 0
    windows: list[tuple[int, int, int]] = []
    for length in layout.windows.tolist():
        inside = {(image, y // 8, x // 8) for image, y, x in (every[p] for p in layout.patches[at : at + length])}
        assert len(inside) == 1, "patches of one window"
        windows += inside
        at += length
    assert len(set(windows)) == len(windows), "a window is one run"
    assert at == len(every)


@given(GRIDS)
def test_merged_rows_come_back_in_the_order_of_the_image(grids: list[Grid]) -> None:
    layout = Layout.of(grids, SHAPE)
    groups = layout.patches.reshape(-1, 4)
    assert (groups[:, :1] + np.arange(4) == groups).all(), "the four of a group stay together"
    assert (groups[layout.merged, 0] // 4).tolist() == list(range(sum(map(tokens_of, grids))))


@given(GRIDS)
def test_every_patch_has_the_angles_of_its_own_row_and_column(grids: list[Grid]) -> None:
    layout = Layout.of(grids, SHAPE)
    every = np.array([place for grid in grids for place in places(grid)])
    np.testing.assert_array_equal(layout.cos_sin, cos_sin(every, SHAPE.head_dim)[layout.patches])


def test_angles() -> None:
    """A head of 8: two speeds for the row, two for the column; cosines, then sines."""
    found = cos_sin(np.array([(3, 5)]), 8)
    angles = np.array([3, 3 * 10000**-0.5, 5, 5 * 10000**-0.5])
    np.testing.assert_allclose(found, [np.concatenate((np.cos(angles), np.sin(angles)))], rtol=1e-6)


@pytest.mark.parametrize("lengths", [[4], [64, 16, 64, 4], [4, 8, 12]])
def test_a_rectangle_holds_each_run_once_and_masks_the_rest(lengths: list[int]) -> None:
    rectangle = Rectangle.of(np.array(lengths))
    real = rectangle.mask[:, 0, 0] == 0
    assert real.sum(1).tolist() == lengths
    assert rectangle.rows[real].tolist() == list(range(sum(lengths)))
    assert rectangle.rows.ravel()[rectangle.back].tolist() == list(range(sum(lengths)))
    assert np.isneginf(rectangle.mask[:, 0, 0][~real]).all()
