"""What every vision engine promises: patches of images in, rows of the text model's width out.

The rows of an image replace the embeddings of its placeholder tokens, in order. They do not depend on the images beside
it. Engines know nothing of pixels and of text.
"""

from collections.abc import Sequence
from typing import Protocol

from nestling.errors import EngineError, UsageError
from nestling.formats.tower_shape import MERGE, TowerShape
from nestling.vectors import Floats

Grid = tuple[int, int]
"""Rows and columns of an image's patches, both even."""
MOST_PATCHES = 16384
"""Patches of an image that an engine takes: attention over a whole image cannot be cut, and memory grows with it."""


class VisionEngine(Protocol):
    """One loaded tower, for all tasks of its checkpoint. Calls from several threads are served one after another.

    Its users share it (`towers.load_tower`), so there is nothing to close: whoever drops it last frees its memory.
    """

    name: str

    def rows(self, patches: Sequence[Floats], grids: Sequence[Grid]) -> list[Floats]:
        """Normalised patches and the grid of each image: B of (rows * columns, values) -> B of (tokens, D) float32.

        A patch is channel, frame, row, column; the four patches of a merged token stand together, tokens row by row.
        Several images share a run. A row that is not finite is an EngineError.
        """
        ...


def tokens_of(grid: Grid) -> int:
    """Rows that an image of this grid gets."""
    return grid[0] * grid[1] // MERGE**2


def check_patches(patches: Sequence[Floats], grids: Sequence[Grid], shape: TowerShape) -> None:
    """UsageError for an image of more than `MOST_PATCHES`; all else our own callers get right."""
    for one, (rows, columns) in zip(patches, grids, strict=True):
        if rows * columns > MOST_PATCHES:
            most = MOST_PATCHES * shape.patch**2
            size = rows * columns * shape.patch**2
            raise UsageError(f"max_pixels: an image of {size} pixels; at most {most} are taken", param="max_pixels")
        assert rows % MERGE == columns % MERGE == 0, f"a grid of {rows} x {columns} patches"
        assert one.shape == (rows * columns, shape.patch_values), f"{one.shape} for {rows} x {columns} patches"


def refuse_not_finite(*, finite: bool, image: int) -> None:
    """EngineError for an image whose rows are no numbers."""
    if not finite:
        raise EngineError(f"image {image}: the vision tower answered with NaN or infinity")
