"""nestling's vision tower as a side of `images`, in its own process.

python -m benchmarks.our_tower FILE THREADS bfloat16|float32
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.tower_side import Grid, answer, memory
from nestling.engine.openvino.runtime import ov
from nestling.engine.openvino.vision import OpenVINOTower
from nestling.formats.mmproj import VisionFile


def main(path: str, threads: int, kind: str) -> None:
    """Answer with noise of the size of real patches; memory is what the tower adds to a loaded plugin."""
    ov.Core().get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin, as a text model has
    vision, rng = VisionFile.open(Path(path)), np.random.default_rng(0)

    def load() -> Callable[[Sequence[Grid]], Callable[[], object]]:
        tower = OpenVINOTower(vision, threads=threads, exact=kind == "float32")
        return lambda grids: partial(tower.rows, [patches(one) for one in grids], grids)

    def patches(grid: Grid) -> np.ndarray:
        return rng.standard_normal((grid[0] * grid[1], vision.shape.patch_values), np.float32)

    answer(load, without=memory("VmRSS"))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
