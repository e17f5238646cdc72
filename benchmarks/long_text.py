"""One long text: its time, and the memory that it takes in addition to the loaded model.

    python -m benchmarks.long_text FILE TOKENS ...

Every length is a separate process: load, embed a text of 16 tokens, then the long one.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measuring
from nestling.models.embedder import Embedder

CODE = "import sys; from benchmarks.long_text import embed; embed(*sys.argv[1:])"


def main(path: Path, lengths: list[int]) -> None:
    """Measure and write the file's rows into `benchmarks/results/long-text.json`, next to those of other files."""
    known = measuring.RESULTS / "long-text.json"
    rows = json.loads(known.read_text())["rows"] if known.exists() else []
    rows = [row for row in rows if row["file"] != path.name or row["tokens"] not in lengths]
    rows += [_row(path, length) for length in lengths]
    print(measuring.write("long-text", {"rows": rows}).read_text())


def _row(path: Path, length: int) -> dict[str, Any]:
    run = measuring.run(sys.executable, "-c", CODE, str(path), str(length))
    found = json.loads(run.output.splitlines()[-1])
    extra = run.peak_anonymous_bytes - found.pop("loaded_bytes")
    return {
        "file": path.name,
        "tokens": length,
        **found,
        "tokens_per_s": length / found["seconds"],
        "extra_bytes": extra,
    }


def embed(path: str, length: str) -> None:
    """Load and embed; print seconds and the anonymous memory before the long text as JSON."""
    model = Embedder.load(Path(path))
    draw = np.random.default_rng(0)
    model.embed_ids([np.arange(16, dtype=np.int32)])
    status = Path("/proc/self/status").read_text()
    loaded = int(status.split("RssAnon:")[1].split()[0]) * 1024
    began = time.perf_counter()
    model.embed_ids([draw.integers(0, 20_000, int(length)).astype(np.int32)])
    print(json.dumps({"seconds": time.perf_counter() - began, "loaded_bytes": loaded}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(one) for one in sys.argv[2:]])
