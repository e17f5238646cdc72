"""Our rows and vectors of images against those of transformers and torch (see record_images.py).

0.99999 is the product's promise for a float32 tower: float32 sums in another order differ by about 1e-6.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.pictures import AS_THEY_ARE, PICTURES, Picture

from nestling.engine.numpy_vision import ReferenceTower
from nestling.engine.vision import Grid, VisionEngine
from nestling.formats.mmproj import VisionFile
from nestling.formats.tower_shape import ImageSpec
from nestling.vectors import Floats, paired_cosine

HERE = Path(__file__).parent
EXACT = 0.99999


@pytest.fixture(scope="module")
def recorded() -> dict[str, NDArray[np.float32]]:
    with np.load(HERE / "images-tiny.npz") as arrays:
        return dict(arrays)


def patches(picture: Picture, spec: ImageSpec) -> tuple[Floats, Grid]:
    """Patches of a picture whose size stands as it is, written down step by step."""
    pixels = (picture - 255 * np.array(spec.mean)) / (255 * np.array(spec.std))
    rows, columns = picture.shape[0] // 14, picture.shape[1] // 14
    found = []
    for y in range(0, rows, 2):
        for x in range(0, columns, 2):
            for inner in ((0, 0), (0, 1), (1, 0), (1, 1)):
                top, left = 14 * (y + inner[0]), 14 * (x + inner[1])
                one = pixels[top : top + 14, left : left + 14].transpose(2, 0, 1)
                found.append(np.stack([one, one], 1).ravel())
    return np.array(found, np.float32), (rows, columns)


def lowest(rows: Sequence[Floats], names: Sequence[str], recorded: dict[str, NDArray[np.float32]]) -> float:
    """The lowest cosine of a row to its recorded one."""
    pairs = zip(rows, names, strict=True)
    return min(float(paired_cosine(one, recorded[f"{name}/rows"]).min()) for one, name in pairs)


@pytest.fixture(scope="module")
def tower(tiny_tower: Path) -> VisionEngine:
    return ReferenceTower(VisionFile.open(tiny_tower))


def test_every_row_of_the_tower(
    tower: VisionEngine, tiny_tower: Path, recorded: dict[str, NDArray[np.float32]]
) -> None:
    """Each picture alone, and all of them in one call."""
    spec = VisionFile.open(tiny_tower).spec
    pairs = [patches(PICTURES[name](), spec) for name in AS_THEY_ARE]
    alone = [tower.rows([one], [grid])[0] for one, grid in pairs]
    assert lowest(alone, AS_THEY_ARE, recorded) >= EXACT
    together = tower.rows([one for one, _ in pairs], [grid for _, grid in pairs])
    assert lowest(together, AS_THEY_ARE, recorded) >= EXACT
