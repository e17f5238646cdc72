"""The starter's vectors against those of transformers and torch, for every file type, task, role and engine.

    python -m benchmarks.accuracy [vectors]

Builds the starter's three task models in every file type of `nestling build` into a temporary folder (timed), then
embeds the recorded texts (`tests/golden`: 24 of 3 to 674 tokens, three of about 2,000) together, and each of the short
ones alone. Also records how long `import nestling` takes. `vectors` keeps both times of the result as they are.
"""

import statistics
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests.golden.texts import LONG_TEXTS, TEXTS

from benchmarks import measuring
from nestling._util.cpu import usable_threads
from nestling.cli.build import LADDER
from nestling.models.embedder import Embedder
from nestling.models.local import starter_checkpoint
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.pipeline import Pipeline, model_path
from nestling.pipeline.quantization import calibration
from nestling.spec import Role, Task
from nestling.vectors import paired_cosine

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
ENGINES = ("openvino", "llamacpp")
ROLES = (Role.QUERY, Role.PASSAGE)
IMPORTS = 15


def main() -> None:
    """Measure and write `benchmarks/results/starter-accuracy.json`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        threads = usable_threads()
        collect = calibration.for_pipeline(threads=threads)
        pipeline = Pipeline(Checkpoint.open(starter_checkpoint()), folder, "starter", threads, collect=collect)
        built = pipeline.build(list(Task), LADDER.split(","))
        build = {"files": len(built), "seconds": time.perf_counter() - began}
        rows = [_measured(folder, *case) for case in product(LADDER.split(","), Task, ENGINES)]
        sizes = {
            file.card.file_type: {"bytes": file.card.size_bytes, "bits": file.card.bits_per_weight} for file in built
        }
    vectors = {"sizes": sizes, "rows": rows, "lowest": _lowest(rows)}
    if sys.argv[1:] == ["vectors"]:
        path = measuring.renew("starter-accuracy", vectors)
    else:
        path = measuring.write("starter-accuracy", {"build": build, "import_s": _import_s(), **vectors})
    print(path.read_text())


def _measured(folder: Path, file_type: str, task: Task, engine: str) -> dict[str, Any]:
    model = Embedder.load(model_path(folder, family="starter", task=task, file_type=file_type), engine=engine)
    want, want_long = _recorded("vectors-starter.npz"), _recorded("vectors-starter-long.npz")
    row: dict[str, Any] = {"file_type": file_type, "task": task, "engine": engine}
    for role in ROLES:
        ids = model.tokenizer.encode([model.spec.prefix(role) + text for text in (*TEXTS, *LONG_TEXTS)])
        got = model.embed_ids(ids)
        cosines = paired_cosine(got, np.concatenate([want[f"{task}/{role}"], want_long[f"{task}/{role}"]]))
        alone = np.concatenate([model.embed_ids([one]) for one in ids[: len(TEXTS)]])
        row[role] = {
            "lowest": float(cosines.min()),
            "mean": float(cosines.mean()),
            "lowest_alone_against_batch": float(paired_cosine(alone, got[: len(TEXTS)]).min()),
        }
        row[f"{role}_vectors"] = got
    model.close()
    print(file_type, task, engine, row[Role.QUERY], flush=True)
    return row


def _recorded(name: str) -> dict[str, NDArray[np.float32]]:
    with np.load(GOLDEN / name) as arrays:
        return dict(arrays)


def _lowest(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Over all texts, tasks and roles: file type -> the figures of the promises. Takes the vectors out of the rows."""
    vectors = {(r["file_type"], r["task"], r["engine"], role): r.pop(f"{role}_vectors") for r in rows for role in ROLES}
    found: dict[str, dict[str, float]] = {}
    for kind in dict.fromkeys(row["file_type"] for row in rows):
        mine = [row for row in rows if row["file_type"] == kind]
        pairs = [
            paired_cosine(vectors[kind, task, "openvino", role], vectors[kind, task, "llamacpp", role])
            for task, role in product(Task, ROLES)
        ]
        own = [
            paired_cosine(vectors[kind, t, "openvino", r], vectors["F16", t, "openvino", r])
            for t, r in product(Task, ROLES)
        ]
        found[kind] = {
            f"original_{e}": min(r[role]["lowest"] for r in mine if r["engine"] == e for role in ROLES) for e in ENGINES
        }
        found[kind] |= {
            f"alone_{e}": min(r[role]["lowest_alone_against_batch"] for r in mine if r["engine"] == e for role in ROLES)
            for e in ENGINES
        }
        found[kind]["openvino_llamacpp"] = float(np.min(pairs))
        found[kind]["mean_to_f16"] = float(np.mean(own))
    return found


def _import_s() -> float:
    """Median of what `import nestling` adds to an interpreter that does nothing, in seconds."""
    return statistics.median(
        measuring.run(sys.executable, "-c", "import nestling").wall_s - measuring.run(sys.executable, "-c", "").wall_s
        for _ in range(IMPORTS)
    )


if __name__ == "__main__":
    main()
