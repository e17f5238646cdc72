"""Convert, quantize and embed at the true size of jina-embeddings-v4: time, memory, file sizes, tokens per second.

    python -m benchmarks.make_checkpoint --shape jina-v4 --out DIR/checkpoint      (8 GB)
    python -m benchmarks.full_size DIR                                              (12 GB more in DIR)

DIR lies outside the repository. Each step is a process of its own, so that its memory can be told apart: F16
conversion, Q8_0 and Q4_K_M from it, then for each file and engine: load, a warm-up, five rounds over texts of mixed
lengths (16 to 512 tokens), one text of 8,192 tokens. The weights are noise: speed, memory and sizes are those of the
real model, vectors say nothing.
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measuring
from nestling.build.plan import Mix, plan_file
from nestling.quants import FLOAT_FILE_TYPES

LADDER = "Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q3_K_M"

GIB = 1 << 30
ROUNDS = 5
MIXED_TEXTS = 16
LONG_TOKENS = 8192
CODE = "import sys; from benchmarks.full_size import embed_step; embed_step(*sys.argv[1:])"


def main(folder: Path) -> None:
    """Run every step and write `benchmarks/results/full-size.json`."""
    base = folder / "jina-v4-text-retrieval-F16.gguf"
    steps = [_step("convert", "convert", str(folder / "checkpoint"), "--task", "retrieval", "--out", str(base))]
    files = {"F16": base}
    for quant in ("Q8_0", "Q4_K_M"):
        files[quant] = folder / f"jina-v4-text-retrieval-{quant}.gguf"
        steps.append(_step(f"quantize {quant}", "quantize", str(base), quant, "--out", str(files[quant])))
    sizes = {quant: {"bytes": path.stat().st_size, "gib": path.stat().st_size / GIB} for quant, path in files.items()}
    embedding = [
        _embed(path, engine) for path in (files["Q8_0"], files["Q4_K_M"]) for engine in ("openvino", "llamacpp")
    ]
    result = {"steps": steps, "sizes": sizes, "planned": _planned(base), "embedding": embedding}
    path = measuring.write("full-size", result)
    print(f"{path}\n{path.read_text()}")


def _planned(base: Path) -> dict[str, Any]:
    """The exact size of every file type of the ladder, from the plan alone: what quantizing would write."""
    plans = {
        kind: plan_file(base, Mix(kind, imatrix=None)) for kind in LADDER.split(",") if kind not in FLOAT_FILE_TYPES
    }
    return {kind: {"bytes": made.size_bytes, "bits_per_weight": made.bits_per_weight} for kind, made in plans.items()}


def _step(name: str, *arguments: str) -> dict[str, Any]:
    run = measuring.run(sys.executable, "-c", "from nestling.cli import main; main()", *arguments, "--json")
    print(f"{name}: {run.wall_s:.0f} s, peak {run.peak_resident_bytes / GIB:.2f} GiB", flush=True)
    return {"step": name, **_cost(run), "report": json.loads(run.output)}


def _cost(run: measuring.Run) -> dict[str, Any]:
    return {
        "wall_s": run.wall_s,
        "peak_resident_bytes": run.peak_resident_bytes,
        "peak_anonymous_bytes": run.peak_anonymous_bytes,
    }


def _embed(path: Path, engine: str) -> dict[str, Any]:
    run = measuring.run(sys.executable, "-c", CODE, str(path), engine)
    found = {"file": path.name, "engine": engine, **_cost(run), **json.loads(run.output.splitlines()[-1])}
    print(f"{path.name} {engine}: {found['tokens_per_s_median']:.1f} tokens/s", flush=True)
    return found


def embed_step(path: str, engine: str) -> None:
    """Load one file in one engine, embed, and print the figures as JSON; runs in a process of its own."""
    from nestling.embedder import Embedder

    began = time.perf_counter()
    model = Embedder.load(Path(path), engine=engine)
    load_s = time.perf_counter() - began
    rng = np.random.default_rng(0)
    lengths = np.geomspace(16, 512, MIXED_TEXTS).astype(int).tolist()
    texts = [_ids(rng, length) for length in lengths]
    together = model.embed_ids(texts)
    alone = np.concatenate([model.embed_ids([texts[0]]), model.embed_ids([texts[-1]])])
    seconds = [_seconds(model, texts) for _ in range(ROUNDS)]
    long_s = _seconds(model, [_ids(rng, LONG_TOKENS)])
    figures = {
        "load_s": load_s,
        "tokens": sum(lengths),
        "seconds": seconds,
        "tokens_per_s_median": sum(lengths) / statistics.median(seconds),
        "alone_against_batch_cosine": (alone * together[[0, -1]]).sum(1).tolist(),
        "long_text": {"tokens": LONG_TOKENS, "seconds": long_s, "tokens_per_s": LONG_TOKENS / long_s},
    }
    print(json.dumps(figures))


def _ids(rng: np.random.Generator, length: int) -> np.ndarray:
    return rng.integers(0, 150_000, length).astype(np.int32)


def _seconds(model: Any, texts: Sequence[np.ndarray]) -> float:  # noqa: ANN401 - the embedder is imported where it runs
    began = time.perf_counter()
    model.embed_ids(texts)
    return time.perf_counter() - began


if __name__ == "__main__":
    main(Path(sys.argv[1]))
