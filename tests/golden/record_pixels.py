"""Record what the original's image processor makes of the pictures of `patterns.py`: resized bytes and patches.

    python -m venv torch-env && torch-env/bin/pip install torch==2.14.1 torchvision==0.29.1 transformers==5.24.0
    torch-env/bin/python -m tests.golden.record_pixels        (in the root of the repository)

Of each picture: the size, a hash of the resized bytes and of the float32 patches, and of both a few numbers that show
where they part if they ever do.
"""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from tests.golden.patterns import IMAGES, image
from torchvision.transforms.v2 import InterpolationMode, functional
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor, smart_resize

LEAST, MOST = 3136, 602112


def record(name: str) -> dict[str, object]:
    pixels = torch.from_numpy(image(name)).permute(2, 0, 1)
    height, width = smart_resize(pixels.shape[1], pixels.shape[2], factor=28, min_pixels=LEAST, max_pixels=MOST)
    resized = functional.resize(pixels, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True)
    processor = Qwen2VLImageProcessor(min_pixels=LEAST, max_pixels=MOST)
    found = processor(images=[pixels], return_tensors="np")
    bytes_, patches = resized.permute(1, 2, 0).contiguous().numpy(), np.asarray(found["pixel_values"], np.float32)
    return {
        "size": [height, width],
        "grid": found["image_grid_thw"][0].tolist(),
        "pixels_sha256": hashlib.sha256(bytes_.tobytes()).hexdigest(),
        "patches_sha256": hashlib.sha256(patches.tobytes()).hexdigest(),
        "pixels": bytes_.reshape(-1)[:: max(1, bytes_.size // 16)][:16].tolist(),
        "patches": patches.reshape(-1)[:: max(1, patches.size // 16)][:16].tolist(),
    }


def main() -> None:
    made_by = {package: version(package) for package in ("torch", "torchvision", "transformers")}
    content = {"made_by": made_by, "images": {name: record(name) for name in IMAGES}}
    Path(__file__).with_name("pixels.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    print(made_by)
