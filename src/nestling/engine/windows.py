"""In which order a vision tower takes its patches, and what sees what. Pure functions of the images' grids.

Merged groups of 2 x 2 patches are sorted by their window, stably, so that the patches of a window stand together;
windows at the right and bottom edges are smaller. (`get_window_index` of Qwen2.5-VL, without its empty windows.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nestling.engine.vision import Grid
from nestling.formats.tower_shape import MERGE, TowerShape
from nestling.vectors import Floats

Index = NDArray[np.int64]
THETA = 10000.0
GROUP = MERGE**2


@dataclass(frozen=True, slots=True)
class Layout:
    """Images one after another, N patches in all, sorted by window.

    `patches` (N,) says which patch stands at each place, `turns` (N, head) the cosines and sines of its angles,
    `windows` and `images` how many patches each of them has; `merged` (N / 4,) where each token's row comes from.
    """

    patches: Index
    turns: Floats
    windows: Index
    images: Index
    merged: Index

    @classmethod
    def of(cls, grids: Sequence[Grid], shape: TowerShape) -> Self:
        """The layout of images of these grids."""
        parts = [_image(grid, shape.window_groups) for grid in grids]
        counts = np.array([len(order) for order, _, _ in parts])
        starts = np.cumsum(counts) - counts
        order = np.concatenate([start + one for start, (one, _, _) in zip(starts, parts, strict=True)])
        return cls(
            patches=(GROUP * order[:, None] + np.arange(GROUP)).ravel(),
            turns=turns(np.concatenate([places for _, places, _ in parts]), shape.head_dim),
            windows=GROUP * np.concatenate([windows for _, _, windows in parts]),
            images=GROUP * counts,
            merged=np.argsort(order),
        )


def _image(grid: Grid, side: int) -> tuple[Index, Index, Index]:
    """Of an image: its groups in window order, the row and column of each of their patches, groups of each window."""
    columns = grid[1] // MERGE
    y, x = np.divmod(np.arange(grid[0] // MERGE * columns), columns)
    window = y // side * -(-columns // side) + x // side
    order = np.argsort(window, kind="stable")
    inside = np.array([(0, 0), (0, 1), (1, 0), (1, 1)])
    places = MERGE * np.stack([y, x], -1)[order, None] + inside
    return order, places.reshape(-1, 2), np.bincount(window)


def turns(places: Index, head: int) -> Floats:
    """Cosines, then sines, of every patch's angles, first those of its row, then of its column: (N, 2) -> (N, head)."""
    quarter = head // 4
    speeds = THETA ** (-np.arange(quarter) / quarter)
    angles = (places[:, :, None] * speeds).reshape(len(places), -1)
    return np.concatenate((np.cos(angles), np.sin(angles)), 1, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Rectangle:
    """Runs of patches as rows of a rectangle: `rows` (R, S) patches, `mask` (R, 1, 1, S) 0 or -inf, `back` (N,)."""

    rows: Index
    mask: Floats
    back: Index

    @classmethod
    def of(cls, lengths: Index) -> Self:
        """Runs of these lengths, one after another; shorter ones are filled up with places that are masked."""
        places = np.arange(int(lengths.max()))
        real = places < lengths[:, None]
        rows = np.where(real, (np.cumsum(lengths) - lengths)[:, None] + places, 0)
        mask = np.where(real, 0, -np.inf).astype(np.float32)
        return cls(rows, mask[:, None, None], np.flatnonzero(real))
