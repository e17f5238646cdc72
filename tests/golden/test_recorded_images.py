"""Our rows and vectors of images against those of transformers and torch (see record_images.py).

0.99999 is the product's promise for a float32 tower: float32 sums in another order differ by about 1e-6. bfloat16 has
8 bits: a row of these four blocks keeps 0.9999, which is below what was found (0.99996) by as much as another
processor's order of sums may take.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.pictures import PICTURES

from nestling.engine.numpy_vision import ReferenceTower
from nestling.engine.openvino.vision import OpenVINOTower
from nestling.engine.vision import VisionEngine
from nestling.formats.mmproj import VisionFile
from nestling.inputs import image
from nestling.vectors import Floats, paired_cosine

HERE = Path(__file__).parent
EXACT, BFLOAT16 = 0.99999, 0.9999
NAMES = tuple(PICTURES)
Recorded = dict[str, NDArray[np.float32]]


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    with np.load(HERE / "images-tiny.npz") as arrays:
        return dict(arrays)


def rows_of(tower: VisionEngine, vision: VisionFile, names: Sequence[str]) -> list[Floats]:
    images = [image.read(PICTURES[name](), vision.spec) for name in names]
    return tower.rows([one.patches(vision.spec) for one in images], [one.grid for one in images])


def lowest(rows: Sequence[Floats], recorded: Recorded, names: Sequence[str] = NAMES) -> float:
    """The lowest cosine of a row to its recorded one."""
    pairs = zip(rows, names, strict=True)
    return min(float(paired_cosine(one, recorded[f"{name}/rows"]).min()) for one, name in pairs)


TOWERS: dict[str, Callable[[VisionFile], VisionEngine]] = {
    "reference": ReferenceTower,
    "float32": lambda vision: OpenVINOTower(vision, threads=2, exact=True),
    "bfloat16": lambda vision: OpenVINOTower(vision, threads=2),
}


@pytest.mark.parametrize(
    ("kind", "needed"),
    [pytest.param("reference", EXACT, marks=pytest.mark.slow), ("float32", EXACT), ("bfloat16", BFLOAT16)],
)
def test_every_row_of_the_tower(tiny_tower: Path, recorded: Recorded, *, kind: str, needed: float) -> None:
    """Each picture alone, and all of them in one call."""
    vision = VisionFile.open(tiny_tower)
    tower = TOWERS[kind](vision)
    alone = [rows_of(tower, vision, [name])[0] for name in NAMES]
    assert lowest(alone, recorded) >= needed
    assert lowest(rows_of(tower, vision, NAMES), recorded) >= needed
    backwards = rows_of(tower, vision, NAMES[::-1])
    assert lowest(backwards, recorded, NAMES[::-1]) >= needed


def test_the_recorded_pictures_are_not_alike(recorded: Recorded) -> None:
    """Vectors that are all alike would prove nothing."""
    vectors = np.stack([recorded[f"{name}/retrieval"] for name in NAMES])
    assert np.median(vectors @ vectors.T) < 0.9
