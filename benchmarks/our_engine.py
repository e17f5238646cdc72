"""nestling's engines as a side of `cpu_speed`, in its own process; speaks as `native_llama` does.

python -m benchmarks.our_engine FILE THREADS ENGINE
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from nestling.models.embedder import Embedder


def main(path: str, threads: int, engine: str) -> None:
    """Load, say ready, answer until the input ends."""
    began = time.perf_counter()
    model = Embedder.load(Path(path), engine=engine, threads=threads)
    print(json.dumps(time.perf_counter() - began), flush=True)
    for line in sys.stdin:
        texts = [np.array(ids, np.int32) for ids in json.loads(line)]
        if not texts:
            print(json.dumps(memory()), flush=True)
            continue
        began = time.perf_counter()
        model.embed_ids(texts)
        print(json.dumps(time.perf_counter() - began), flush=True)


def memory() -> int:
    """Resident bytes now."""
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
