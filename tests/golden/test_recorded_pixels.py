"""The pixels and patches of the original's image processor (torchvision's kernel), byte for byte."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.golden.patterns import IMAGES, image

from nestling.formats.tower_shape import ImageSpec
from nestling.inputs.image import read

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("pixels.json").read_text("utf-8"))["images"]


@pytest.mark.parametrize("name", IMAGES)
def test_pixels_and_patches_are_those_that_torchvision_makes(name: str) -> None:
    recorded, found = RECORDED[name], read(image(name))
    patches = found.patches(ImageSpec())
    assert found.pixels.reshape(-1)[:: max(1, found.pixels.size // 16)][:16].tolist() == recorded["pixels"]
    assert np.float64(patches.reshape(-1)[:: max(1, patches.size // 16)][:16]).tolist() == recorded["patches"]
    assert [1, *found.grid] == recorded["grid"]
    assert found.pixels.shape == (*recorded["size"], 3)
    assert hashlib.sha256(found.pixels.tobytes()).hexdigest() == recorded["pixels_sha256"]
    assert hashlib.sha256(patches.tobytes()).hexdigest() == recorded["patches_sha256"]
