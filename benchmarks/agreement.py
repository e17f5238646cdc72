"""How well stock llama.cpp, our engine and plain numpy agree on every file type of the starter.

    nestling build --quant all --out DIR
    python -m benchmarks.agreement DIR [TASK ...]

The same token ids go through all three engines; numpy computes in float32 on the file's dequantized weights and is
the reference. llama.cpp rounds activations to 8 bits in blocks of 32 (of 256 for the K and I types), ours in groups of
32 (`engine/openvino/weight_formats/int8_groups.py`). Tasks that are not named keep their rows of the result.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tests.golden.texts import TEXTS

from benchmarks import measuring
from nestling.formats.quant_types import FILE_TYPES
from nestling.models.embedder import Embedder
from nestling.pipeline.pipeline import model_path
from nestling.spec import Task
from nestling.vectors import Floats, paired_cosine

LADDER = tuple(name for name in FILE_TYPES if name != "Q2_K_S")
UPPER = LADDER[: LADDER.index("Q3_K_M") + 1]
PAIRS = {
    "openvino_llamacpp": ("openvino", "llamacpp"),
    "openvino_reference": ("openvino", "reference"),
    "llamacpp_reference": ("llamacpp", "reference"),
}


def main() -> None:
    """Compare and write `benchmarks/results/agreement.json`."""
    folder, tasks = Path(sys.argv[1]), [Task.parse(name) for name in sys.argv[2:]] or list(Task)
    path = measuring.RESULTS / "agreement.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["files"] if path.exists() else []
    rows = [row for row in rows if row["task"] not in tasks]
    for task in tasks:
        for file_type in LADDER:
            file = model_path(folder, family="starter", task=task, file_type=file_type)
            rows.append(_compared(file, task, file_type))
            print(rows[-1], flush=True)
        measuring.write("agreement", {"lowest": _lowest(rows), "files": rows})


def _compared(path: Path, task: Task, file_type: str) -> dict[str, Any]:
    vectors = {name: _embed(path, name) for name in ("openvino", "llamacpp", "reference")}
    row: dict[str, Any] = {"task": task, "file_type": file_type}
    for name, (one, other) in PAIRS.items():
        cosines = paired_cosine(vectors[one], vectors[other])
        row[name] = {"lowest": float(cosines.min()), "mean": float(cosines.mean())}
    return row


def _embed(path: Path, engine: str) -> Floats:
    """Every second recorded text, as queries."""
    model = Embedder.load(path, engine=engine)
    vectors = model.encode_query(TEXTS[::2])
    model.close()
    assert np.isfinite(vectors).all()
    return vectors


def _lowest(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Over all tasks and texts: the file types down to Q3_K_M, and those below it."""
    parts = {"down to Q3_K_M": [row for row in rows if row["file_type"] in UPPER]}
    parts["below"] = [row for row in rows if row["file_type"] not in UPPER]
    return {part: {name: min(row[name]["lowest"] for row in mine) for name in PAIRS} for part, mine in parts.items()}


if __name__ == "__main__":
    main()
