"""Mutated image files and bombs through the decoder: no crash, no hang, bounded memory.

    python -m benchmarks.image_fuzz [IMAGES=100000] [SEED=0]

Every file is read as a request's or a caller's would be (`nestling.inputs.image`), in one process without a model.
Memory is how far the process grew beyond what it had after its first image. Exit code 1 for anything but an image or an
ImageError, for growth beyond 256 MiB or for a file that took 10 s. `tests/fault/test_image_fuzz.py` is a short run.
"""

import sys
import time

from tests.image_fuzzing import bombs, run

from benchmarks import measuring

MOST_BYTES, MOST_S = 256 << 20, 10.0


def main(images: str = "100000", seed: str = "0") -> None:
    """Run, write `benchmarks/results/image-fuzz.json`, exit with 1 if something was wrong."""
    began = time.perf_counter()
    tally = run(int(images), seed=int(seed), last=bombs())
    result = {
        "files": int(images),
        "bombs": len(bombs()),
        "images": tally.images,
        "refused": dict(tally.refused),
        "slowest_s": round(tally.slowest_s, 3),
        "grown_mib": round(tally.grown_bytes / 2**20, 1),
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(measuring.write("image-fuzz", result).read_text())
    sys.exit(int(tally.grown_bytes > MOST_BYTES or tally.slowest_s > MOST_S))


if __name__ == "__main__":
    main(*sys.argv[1:])
