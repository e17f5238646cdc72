"""nestling's vision tower as a side of `images`, in a process of its own; speaks as `our_engine` does.

python -m benchmarks.our_tower FILE THREADS bfloat16|float32
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from nestling.engine.openvino.runtime import ov
from nestling.engine.openvino.vision import OpenVINOTower
from nestling.formats.mmproj import VisionFile


def main(path: str, threads: int, kind: str) -> None:
    """Load, say how long it took, answer lists of grids with seconds, an empty one with the bytes added to memory."""
    ov.Core().get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin, as a text model has
    before = memory("VmRSS")
    vision, began = VisionFile.open(Path(path)), time.perf_counter()
    tower = OpenVINOTower(vision, threads=threads, exact=kind == "float32")
    print(json.dumps(time.perf_counter() - began), flush=True)
    rng = np.random.default_rng(0)
    for line in sys.stdin:
        grids = [(rows, columns) for rows, columns in json.loads(line)]
        patches = [rng.standard_normal((h * w, vision.shape.patch_values), np.float32) for h, w in grids]
        began = time.perf_counter()
        tower.rows(patches, grids)
        print(json.dumps(time.perf_counter() - began if grids else memory("VmHWM") - before), flush=True)


def memory(field: str) -> int:
    """Resident bytes of this process: `VmRSS` now, `VmHWM` at the highest."""
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(field))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
