"""Convert, quantize and embed at the true size of jina-embeddings-v4: time, memory, file sizes, tokens per second.

    python -m benchmarks.make_checkpoint --shape jina-v4 --out DIR/checkpoint      (8 GB)
    python -m benchmarks.full_size DIR                                              (12 GB more in DIR)
    python -m benchmarks.full_size DIR tiny      (the same of another shape's checkpoint: a try of the script)

DIR lies outside the repository. Each step is a separate process, so that its memory is measured alone: F16
conversion, Q8_0 and Q4_K_M from it, then for each file and engine: load, a warm-up, three rounds over texts of mixed
lengths (16 to 512 tokens), one text of 8,192 tokens. The weights are noise: speed, memory and sizes are those of the
real model, vectors are meaningless.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measuring
from nestling.formats.quant_types import FLOAT_FILE_TYPES
from nestling.pipeline.quantization.plan import Mix, plan_file
from nestling.vectors import paired_cosine

LADDER = "Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q3_K_M"

SHAPE = "jina-v4"
GIB = 1 << 30
ROUNDS = 3
MIXED_TEXTS = 4
LONG_TOKENS = 8192
RUNS = (
    ("Q4_K_M", "openvino", "mixed"),
    ("Q4_K_M", "llamacpp", "mixed"),
    ("Q8_0", "openvino", "mixed"),
    ("Q8_0", "llamacpp", "mixed"),
    ("Q4_K_M", "openvino", "long"),
    ("Q4_K_M", "llamacpp", "long"),
)
CODE = "import sys; from benchmarks.full_size import embed_step; embed_step(*sys.argv[1:])"


def main(folder: Path, shape: str = SHAPE) -> None:
    """Run every step; `benchmarks/results/full-size.json` is rewritten after each, so that a stop loses little."""
    name = "full-size" if shape == SHAPE else f"full-size-{shape}"
    base = folder / f"{shape}-text-retrieval-F16.gguf"
    result: dict[str, Any] = {"steps": [], "sizes": {}, "embedding": []}
    convert = ("convert", str(folder / "checkpoint"), "--task", "retrieval", "--family", shape, "--out", str(base))
    result["steps"].append(_step("convert", *convert))
    result["planned"] = _planned(base)
    files = {"F16": base}
    for quant in ("Q8_0", "Q4_K_M"):
        files[quant] = folder / f"{shape}-text-retrieval-{quant}.gguf"
        result["steps"].append(_step(f"quantize {quant}", "quantize", str(base), quant, "--out", str(files[quant])))
    result["sizes"] = {
        kind: {"bytes": path.stat().st_size, "gib": path.stat().st_size / GIB} for kind, path in files.items()
    }
    for quant, engine, what in RUNS:
        result["embedding"].append(_embed(files[quant], engine, what))
        result["cosines"] = _cosines(folder)
        measuring.write(name, result)


def _cosines(folder: Path) -> dict[str, list[float]]:
    """Where both engines have embedded the same texts: file and kind of texts -> cosine of every text."""
    found = {}
    for ours in sorted(folder.glob("*-openvino-*.npy")):
        theirs = ours.with_name(ours.name.replace("-openvino-", "-llamacpp-"))
        if theirs.exists():
            found[ours.stem.replace("-openvino-", " ")] = paired_cosine(np.load(ours), np.load(theirs)).tolist()
    return found


def _planned(base: Path) -> dict[str, Any]:
    """The exact size of every file type of the ladder, from the plan alone: what quantizing would write."""
    plans = {
        kind: plan_file(base, Mix(kind, imatrix=None)) for kind in LADDER.split(",") if kind not in FLOAT_FILE_TYPES
    }
    return {kind: {"bytes": made.size_bytes, "bits_per_weight": made.bits_per_weight} for kind, made in plans.items()}


def _step(name: str, *arguments: str) -> dict[str, Any]:
    run = measuring.run(sys.executable, "-c", "from nestling.cli import main; main()", *arguments, "--json")
    print(f"{name}: {run.wall_s:.0f} s, peak {run.peak_resident_bytes / GIB:.2f} GiB", flush=True)
    report = json.loads(run.output)
    return {"step": name, **_cost(run), "report": {**report, "path": Path(report["path"]).name}}


def _cost(run: measuring.Run) -> dict[str, Any]:
    return {
        "wall_s": run.wall_s,
        "peak_resident_bytes": run.peak_resident_bytes,
        "peak_anonymous_bytes": run.peak_anonymous_bytes,
    }


def _embed(path: Path, engine: str, what: str) -> dict[str, Any]:
    run = measuring.run(sys.executable, "-c", CODE, str(path), engine, what)
    found = {
        "file": path.name,
        "engine": engine,
        "texts": what,
        **_cost(run),
        **json.loads(run.output.splitlines()[-1]),
    }
    print(f"{path.name} {engine} {what}: {found['tokens_per_s_median']:.1f} tokens/s", flush=True)
    return found


def embed_step(path: str, engine: str, what: str) -> None:
    """Load one file in one engine, embed, and print the figures as JSON; runs in its own process."""
    from nestling.models.embedder import Embedder

    began = time.perf_counter()
    model = Embedder.load(Path(path), engine=engine)
    load_s = time.perf_counter() - began
    rng = np.random.default_rng(0)
    lengths = [LONG_TOKENS] if what == "long" else np.geomspace(16, 512, MIXED_TEXTS).astype(int).tolist()
    texts = [rng.integers(0, model.tokenizer.size, length).astype(np.int32) for length in lengths]
    if what == "mixed":
        model.embed_ids(texts)
    seconds = []
    for _ in range(ROUNDS if what == "mixed" else 1):
        began = time.perf_counter()
        vectors = model.embed_ids(texts)
        seconds.append(time.perf_counter() - began)
    np.save(Path(path).with_name(f"{Path(path).stem}-{engine}-{what}.npy"), vectors)
    figures = {"load_s": load_s, "lengths": lengths, "seconds": seconds}
    print(json.dumps({**figures, "tokens_per_s_median": sum(lengths) / statistics.median(seconds)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
