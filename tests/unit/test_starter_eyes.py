"""The torch tower of `recipes/starter`, which is trained, is the tower that nestling runs: the same rows.

Doors by which they could differ: the order of patches and windows, a window that the image's edge cuts, an image of
one window, the merger's order, rotary positions, which blocks see the whole image.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import HIDDEN, read_raw_safetensors
from tests.tiny_vision import BLOCKS, FULL, HEADS, INNER, SHARD, WIDTH

from nestling.engine import towers
from nestling.engine.names import EngineName
from nestling.formats.mmproj import VisionFile
from nestling.inputs.image.patches import Image

RECIPE = Path(__file__).parents[2] / "recipes" / "starter"
SIDES = ((28, 28), (112, 112), (84, 196), (140, 280), (252, 112))
"""Heights and widths: less than a window, one, and windows cut at the right, at the bottom, at both."""


@pytest.fixture
def tower(vision_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(RECIPE)
    recipe = importlib.import_module("starter_recipe.eyes.tower")
    full_every = FULL[0] + 1
    made = recipe.VisionTower(recipe.TowerShape(BLOCKS, WIDTH, HEADS, INNER, HIDDEN, full_every))
    header, data = read_raw_safetensors(vision_checkpoint / SHARD)
    made.load_state_dict(
        {
            name.removeprefix("visual."): as_float(data[slice(*entry["data_offsets"])], entry["shape"])
            for name, entry in header.items()
            if name.startswith("visual.")
        }
    )
    return made.eval()


def as_float(bfloat16: bytes, shape: Sequence[int]) -> torch.Tensor:
    wide = np.frombuffer(bfloat16, np.uint16).astype(np.uint32) << 16
    return torch.from_numpy(wide.view(np.float32).reshape(shape).copy())


@pytest.mark.parametrize("engine", [EngineName.REFERENCE, EngineName.OPENVINO])
@pytest.mark.parametrize("sides", SIDES)
def test_the_trained_tower_is_the_tower_that_runs(
    engine: EngineName, sides: tuple[int, int], tower: Any, tiny_tower: Path
) -> None:
    """Float32 on both sides: what is left is the rounding of sums in another order."""
    pixels = np.random.default_rng(sum(sides)).integers(0, 256, (2, *sides, 3), dtype=np.uint8)
    vision, images = VisionFile.open(tiny_tower), [Image.of(one) for one in pixels]
    ours = towers.load_tower(vision, name=engine, threads=1, exact=True)
    rows = ours.rows([one.patches(vision.spec) for one in images], [one.grid for one in images])
    with torch.inference_mode():
        theirs = tower(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(np.stack(rows), theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
