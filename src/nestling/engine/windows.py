"""The order of a vision tower's patches, and which attend to which. Pure functions of the images' grids.

Merged groups of 2 x 2 patches are sorted by window (stable), so that a window's patches are adjacent; windows at the
right and bottom edges are smaller. (`get_window_index` of Qwen2.5-VL, without its empty windows.)
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
    """Several images, concatenated: N patches, sorted by window within each image.

    `patches` (N,): the input patch at each place; `cos_sin` (N, head): cosines and sines of its angles; `windows`,
    `images`: patches in each window and image; `merged` (N / 4,): the output row of each token.
    """

    patches: Index
    cos_sin: Floats
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
            cos_sin=cos_sin(np.concatenate([places for _, places, _ in parts]), shape.head_dim),
            windows=GROUP * np.concatenate([windows for _, _, windows in parts]),
            images=GROUP * counts,
            merged=np.argsort(order),
        )


def _image(grid: Grid, side: int) -> tuple[Index, Index, Index]:
    """One image: its groups in window order, each patch's row and column, the number of groups in each window."""
    columns = grid[1] // MERGE
    y, x = np.divmod(np.arange(grid[0] // MERGE * columns), columns)
    window = y // side * -(-columns // side) + x // side
    order = np.argsort(window, kind="stable")
    inside = np.array([(0, 0), (0, 1), (1, 0), (1, 1)])
    places = MERGE * np.stack([y, x], -1)[order, None] + inside
    return order, places.reshape(-1, 2), np.bincount(window)


def cos_sin(places: Index, head: int) -> Floats:
    """Cosines, then sines, of every patch's angles, its row's before its column's: (N, 2) -> (N, head)."""
    quarter = head // 4
    speeds = THETA ** (-np.arange(quarter) / quarter)
    angles = (places[:, :, None] * speeds).reshape(len(places), -1)
    return np.concatenate((np.cos(angles), np.sin(angles)), 1, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Rectangle:
    """Runs of patches, padded to the longest: `rows` (R, S) patches, `mask` (R, 1, 1, S) 0 or -inf, `back` (N,)."""

    rows: Index
    mask: Floats
    back: Index

    @classmethod
    def of(cls, lengths: Index) -> Self:
        """Runs of these lengths, concatenated; shorter ones are padded, and the padding is masked."""
        places = np.arange(int(lengths.max()))
        real = places < lengths[:, None]
        rows = np.where(real, (np.cumsum(lengths) - lengths)[:, None] + places, 0)
        mask = np.where(real, 0, -np.inf).astype(np.float32)
        return cls(rows, mask[:, None, None], np.flatnonzero(real))
