"""The vision engine's contract: patches of images in, rows of the text model's width out.

The rows of an image replace the embeddings of its placeholder tokens, in order. They do not depend on the other images
of the batch. Vision engines do not know pixels or text.
"""

from collections.abc import Sequence
from typing import Protocol

from nestling.errors import EngineError, UsageError
from nestling.formats.tower_shape import MERGE, TowerShape
from nestling.vectors import Floats

Grid = tuple[int, int]
"""Rows and columns of an image's patches, both even."""
MOST_PATCHES = 16384
"""Most patches of an image: attention over a whole image cannot be split, and its memory grows with the patches."""


class VisionEngine(Protocol):
    """One loaded tower, for all tasks of its checkpoint. Calls from several threads are served one after another.

    Its users share it (`towers.load_tower`), so it has no `close`: dropping the last reference frees its memory.
    """

    name: str

    def rows(self, patches: Sequence[Floats], grids: Sequence[Grid]) -> list[Floats]:
        """Normalised patches and the grid of each image: B of (rows * columns, values) -> B of (tokens, D) float32.

        A patch's values are in the order channel, frame, row, column. The four patches of a merged token are adjacent;
        tokens are in row-major order. Images may share a run. EngineError for a row that is not finite.
        """
        ...


def tokens_of(grid: Grid) -> int:
    """Tokens (rows) of an image with this grid."""
    return grid[0] * grid[1] // MERGE**2


def check_patches(patches: Sequence[Floats], grids: Sequence[Grid], shape: TowerShape) -> None:
    """UsageError for an image of more than `MOST_PATCHES`; shapes are asserted."""
    for one, (rows, columns) in zip(patches, grids, strict=True):
        if rows * columns > MOST_PATCHES:
            most = MOST_PATCHES * shape.patch**2
            size = rows * columns * shape.patch**2
            raise UsageError(f"max_pixels: an image of {size} pixels; expected at most {most}", param="max_pixels")
        assert rows % MERGE == columns % MERGE == 0, f"a grid of {rows} x {columns} patches"
        assert one.shape == (rows * columns, shape.patch_values), f"{one.shape} for {rows} x {columns} patches"


def refuse_not_finite(*, finite: bool, image: int) -> None:
    """EngineError for an image with NaN or infinity in its rows."""
    if not finite:
        raise EngineError(f"image {image}: the vision tower answered with NaN or infinity")
