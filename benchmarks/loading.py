"""Load time and memory of one large file: a first start, a second, and a second engine.

    python -m benchmarks.loading FILE

Each start is a separate process that loads, embeds one text of 16 tokens and then reads what it has resident. The
first has an empty cache folder, so that it dequantizes the weights; the file itself is read once before, so that
it is in the page cache. Each start's writes are flushed to disk before the next one begins.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measuring
from nestling._util import files

CODE = "import sys; from benchmarks.loading import start; start(*sys.argv[1:])"
STARTS = (("first start", "openvino"), ("second start", "openvino"), ("llama.cpp", "llamacpp"))


def main(path: Path) -> None:
    """Measure and write `benchmarks/results/loading.json`."""
    files.sha256_file(path)
    with tempfile.TemporaryDirectory(dir=path.parent) as home:
        os.environ[files.CACHE_VARIABLE] = home
        rows = [{"start": name, **_start(path, engine)} for name, engine in STARTS]
        kept = sum(one.stat().st_size for one in Path(home).rglob("*.int8"))
    result = {"file": path.name, "file_bytes": path.stat().st_size, "expanded_bytes": kept, "starts": rows}
    print(measuring.write("loading", result).read_text())


def _start(path: Path, engine: str) -> dict[str, Any]:
    os.sync()
    run = measuring.run(sys.executable, "-c", CODE, str(path), engine)
    found: dict[str, Any] = json.loads(run.output.splitlines()[-1])
    return {"engine": engine, **found, "peak_anonymous_bytes": run.peak_anonymous_bytes}


def start(path: str, engine: str) -> None:
    """Load, embed, and print seconds and resident bytes as JSON; runs in its own process."""
    began = time.perf_counter()
    from nestling.models.embedder import Embedder

    model = Embedder.load(Path(path), engine=engine)
    loaded = time.perf_counter()
    model.embed_ids([np.arange(16, dtype=np.int32)])
    done = time.perf_counter()
    lines = Path("/proc/self/status").read_text().splitlines()
    parts = (one.partition(":") for one in lines)
    resident = {name: int(rest.split()[0]) * 1024 for name, _, rest in parts if name in {"VmRSS", "RssAnon"}}
    print(json.dumps({
        "load_s": loaded - began, "first_text_s": done - loaded,
        "resident_bytes": resident["VmRSS"], "anonymous_bytes": resident["RssAnon"],
    }))  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
