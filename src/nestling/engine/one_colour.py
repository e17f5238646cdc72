"""Images of one colour in a batch of others: their rows are computed in float32, for one token, and repeated.

If all patches of an image are equal, they stay equal in every block: attention averages equal values, whatever its
weights, and positions only rotate queries and keys. So each row of the image is the row of its first four patches. In
bfloat16 these rows would all have the same rounding error, which the mean over the tokens does not reduce.
"""

from collections.abc import Sequence

import numpy as np

from nestling.engine.numpy_vision import ReferenceTower
from nestling.engine.vision import Grid, VisionEngine, check_patches, tokens_of
from nestling.formats.mmproj import VisionFile
from nestling.formats.tower_shape import MERGE
from nestling.vectors import Floats

TOKEN: Grid = MERGE, MERGE
"""The grid of an image of one token."""
MOST_COLOURS = 256
"""Colours whose rows are cached."""


class OneColourTower:
    """A tower whose images of one colour get their rows from the reference, in one run for all of them."""

    def __init__(self, tower: VisionEngine, vision: VisionFile) -> None:
        self.name = tower.name
        self._tower, self._shape = tower, vision.shape
        self._reference = ReferenceTower(vision)
        self._cached: dict[bytes, Floats] = {}

    def rows(self, patches: Sequence[Floats], grids: Sequence[Grid]) -> list[Floats]:
        """Patches and the grid of each image -> (tokens, D) each."""
        check_patches(patches, grids, self._shape)
        plain = {index: one[: MERGE**2] for index, one in enumerate(patches) if (one == one[0]).all()}
        if not plain:
            return self._tower.rows(patches, grids)
        smaller = [plain.get(index, one) for index, one in enumerate(patches)]
        found = self._tower.rows(smaller, [TOKEN if index in plain else grid for index, grid in enumerate(grids)])
        for index, row in zip(plain, self._colours(list(plain.values())), strict=True):
            found[index] = np.repeat(row, tokens_of(grids[index]), 0)
        return found

    def _colours(self, patches: Sequence[Floats]) -> list[Floats]:
        """The rows of tokens of four equal patches: B of (4, values) -> B of (1, D)."""
        keys, known = [one.tobytes() for one in patches], self._cached
        missing = {key: one for key, one in zip(keys, patches, strict=True) if key not in known}
        if missing:
            made = self._reference.together(list(missing.values()), [TOKEN] * len(missing))
            known = known | dict(zip(missing, made, strict=True))
            self._cached = known if len(known) <= MOST_COLOURS else {}
        return [known[key] for key in keys]
