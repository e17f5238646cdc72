"""The whole ladder of the starter, its importance matrices, and mixes chosen for embeddings against the stock ones.

    python -m benchmarks.quantization [TASK ...]
    python -m benchmarks.quantization --merge RESULT ...

For every task: builds all file types with the package's calibration text into a temporary folder; measures the cosine
of each file's vectors to the F16 file's on texts of the benchmark sets (never calibrated on), and between OpenVINO and
llama.cpp; chooses mixes at the sizes of four stock files, with the embedding table free and with it kept, and measures
them and the stock files on every text of the task's sets: cosine to F16, and nDCG@10 paired by query.
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import measuring
from nestling import calibrating
from nestling.build.checkpoint import Checkpoint
from nestling.build.imatrix import ImportanceMatrix
from nestling.build.made_matrix import matrix_path
from nestling.build.mix_recipe import MixRecipe
from nestling.build.pipeline import BuiltFile, Pipeline, model_path
from nestling.build.plan import Mix
from nestling.build.quantize import quantize
from nestling.choosing import Budget, Chooser, embedding_kept
from nestling.embedder import Embedder
from nestling.engine.loading import usable_threads
from nestling.engine.openvino import Observer, OpenVINOEngine
from nestling.evaluation import data, metrics
from nestling.files import Progress, no_progress
from nestling.gguf_io import GGUFFile
from nestling.quants import FILE_TYPES
from nestling.spec import ModelSpec, Role, Task
from nestling.store import starter_checkpoint
from nestling.vectors import Floats, paired_cosine

STOCK = ("Q4_K_M", "Q3_K_M", "IQ3_XXS", "IQ2_M")
LADDER = tuple(name for name in FILE_TYPES if name != "Q2_K_S")
SAMPLE = 40
"""Documents, and as many queries, of each set whose cosines every file of the ladder is judged by."""
TRIALS = 40
"""Measurements that refine each mix."""
AGREEING = 12
"""Texts that both engines embed with every file."""


def main() -> None:
    """Measure and write `benchmarks/results/quantization.json`, or parts of it for single tasks, to be merged."""
    if sys.argv[1:2] == ["--merge"]:
        _merge([Path(name) for name in sys.argv[2:]])
        return
    tasks = [Task.parse(name) for name in sys.argv[1:]]
    result: dict[str, Any] = {"ladder": [], "mixes": [], "tasks": {}}
    for task in tasks or Task:
        with tempfile.TemporaryDirectory() as name:
            _task(Path(name), task, result)
    result["summary"] = _summary(result)
    print(measuring.write("-".join(["quantization", *tasks]), result))


def _merge(parts: Sequence[Path]) -> None:
    """Put results of single tasks together."""
    found = [json.loads(path.read_text("utf-8")) for path in parts]
    result = {
        "ladder": [row for one in found for row in one["ladder"]],
        "mixes": [row for one in found for row in one["mixes"]],
        "tasks": {task: facts for one in found for task, facts in one["tasks"].items()},
        "parts": [{key: one[key] for key in ("command", "commit", "machine")} for one in found],
    }
    print(measuring.write("quantization", {**result, "summary": _summary(result)}))


def _task(folder: Path, task: Task, result: dict[str, Any]) -> None:
    threads = usable_threads()
    steps: dict[str, float] = {}
    began = time.perf_counter()

    def step(name: str) -> Progress:
        steps[name] = time.perf_counter() - began
        return no_progress

    collect = calibrating.for_pipeline(threads=threads)
    built = Pipeline(Checkpoint.open(starter_checkpoint()), folder, "starter", threads, step, collect).build(
        [task], LADDER
    )
    build_s = time.perf_counter() - began
    print(task, "built", round(build_s, 1), flush=True)
    mixes, facts = _mixes(folder, task)
    result["mixes"] += mixes
    result["ladder"] += _ladder(task, built)
    result["tasks"][task] = {
        "build_s": build_s,
        "steps_began_s": steps,
        **facts,
        "imatrix": _collection(folder, task),
        "quantize": _speed(folder, task),
    }


def _texts(count: int) -> list[tuple[str, Role]]:
    found: list[tuple[str, Role]] = []
    for name in data.SHIPPED:
        one = data.load(name)
        assert isinstance(one, data.RetrievalSet)
        found += [(text, Role.QUERY) for text in one.queries[:count]]
        found += [(text, Role.PASSAGE) for text in one.documents[:count]]
    return found


def _embed(path: Path, texts: Sequence[tuple[str, Role]], engine: str = "openvino") -> Floats:
    model = Embedder.load(path, engine=engine)
    vectors = model.embed_ids(model.tokenizer.encode([model.spec.prefix(role) + text for text, role in texts]))
    model.close()
    return vectors


def _ladder(task: Task, built: Sequence[BuiltFile]) -> list[dict[str, Any]]:
    texts = _texts(SAMPLE)
    few = texts[:: len(texts) // AGREEING]
    base = _embed(next(file.path for file in built if file.card.file_type == "F16"), texts)
    rows = []
    for file in built:
        cosines = paired_cosine(_embed(file.path, texts), base)
        agree = paired_cosine(_embed(file.path, few), _embed(file.path, few, "llamacpp"))
        card = file.card
        rows.append(
            {
                "task": task,
                "file_type": card.file_type,
                "size_bytes": card.size_bytes,
                "bits_per_weight": card.bits_per_weight,
                "cosine_mean": float(cosines.mean()),
                "cosine_lowest": float(cosines.min()),
                "llamacpp_lowest": float(agree.min()),
                "worst_tensor": card.worst_tensor,
                "worst_error": card.worst_error,
            }
        )
        print(rows[-1], flush=True)
    return rows


def _mixes(folder: Path, task: Task) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    source = model_path(folder, family="starter", task=task, file_type="F16")
    matrix = ImportanceMatrix.read(matrix_path(folder, task))
    began = time.perf_counter()
    chooser = Chooser.measure(source, spec=_spec(source), matrix=matrix, threads=usable_threads())
    facts = {
        "measure_s": time.perf_counter() - began,
        "estimate_correlation": chooser.correlation,
        "estimates_checked": chooser.checked,
    }
    judge = _Judge(source, task)
    rows = []
    for file_type in STOCK:
        plan = chooser.stock(file_type)
        stock = judge.judged(model_path(folder, family="starter", task=task, file_type=file_type))
        for kind, keep in (("free", None), ("embedding kept", embedding_kept(plan))):
            began = time.perf_counter()
            chosen = chooser.choose(Budget(size_bytes=plan.size_bytes), keep=keep, trials=TRIALS)
            choose_s = time.perf_counter() - began
            made = _made(folder, source, chosen.recipe, matrix)
            ours = judge.judged(made)
            row = {
                "task": task, "stock": file_type, "mix": kind, "stock_bytes": plan.size_bytes,
                "bytes": made.stat().st_size, "choose_s": choose_s, "trials": chosen.trials,
                "calibration_error": chosen.recipe.error, "stock_error": stock.error, "error": ours.error,
                "ratio": ours.error / stock.error, "stock_lowest": stock.lowest, "lowest": ours.lowest,
                "nDCG@10": judge.compared(stock, ours),
                "types": {name: one.name for name, one in chosen.recipe.types.items()},
            }  # fmt: skip
            rows.append(row)
            print({key: value for key, value in row.items() if key != "types"}, flush=True)
    return rows, facts


def _spec(path: Path) -> ModelSpec:
    model = Embedder.load(path)
    model.close()
    return model.spec


def _made(folder: Path, source: Path, recipe: MixRecipe, matrix: ImportanceMatrix) -> Path:
    """Write the recipe, read it back and apply it."""
    recipe.write(folder / "mix.json")
    shapes = {name: info.shape for name, info in GGUFFile.open(source).tensors.items()}
    return quantize(source, out=folder / "mix.gguf", mix=MixRecipe.read(folder / "mix.json").mix(shapes, matrix)).path


class _Judged:
    """A file's mean and largest 1 - cosine to F16 on the task's sets, and its nDCG@10 of every query."""

    def __init__(self, error: float, lowest: float, gains: dict[str, list[float]]) -> None:
        self.error, self.lowest, self.gains = error, lowest, gains


class _Judge:
    """Embeds every text of a task's sets and compares with F16."""

    def __init__(self, base: Path, task: Task) -> None:
        self._sets = [one for name in data.for_task(task) if isinstance(one := data.load(name), data.RetrievalSet)]
        self._texts = [
            [(text, Role.QUERY) for text in one.queries] + [(text, Role.PASSAGE) for text in one.documents]
            for one in self._sets
        ]
        self._base = self._vectors(base)

    def _vectors(self, path: Path) -> list[Floats]:
        found = _embed(path, [text for texts in self._texts for text in texts])
        return np.split(found, np.cumsum([len(texts) for texts in self._texts])[:-1])

    def judged(self, path: Path) -> _Judged:
        vectors = self._vectors(path)
        cosines = np.concatenate([paired_cosine(a, b) for a, b in zip(vectors, self._base, strict=True)])
        gains = {one.name: _gains(one, found) for one, found in zip(self._sets, vectors, strict=True)}
        return _Judged(float(1 - cosines.mean()), float(cosines.min()), gains)

    def compared(self, stock: _Judged, ours: _Judged) -> dict[str, dict[str, float]]:
        found = {}
        for name, gains in ours.gains.items():
            paired = metrics.interval([a - b for a, b in zip(gains, stock.gains[name], strict=True)])
            found[name] = {
                "stock": float(np.mean(stock.gains[name])), "mix": float(np.mean(gains)), "difference": paired.mean,
                "low": paired.low, "high": paired.high,
            }  # fmt: skip
        return found


def _gains(one: data.RetrievalSet, vectors: NDArray[np.float32]) -> list[float]:
    queries, documents = vectors[: len(one.queries)], vectors[len(one.queries) :]
    ranked = metrics.search(queries, documents, one.document_ids)
    return metrics.per_query(one.relevant, dict(zip(one.query_ids, ranked, strict=True)))["nDCG@10"]


def _collection(folder: Path, task: Task) -> dict[str, float]:
    """Tokens per second of the engine plain and observed, in turns, best of five."""
    path = model_path(folder, family="starter", task=task, file_type="F16")
    file, threads = GGUFFile.open(path), usable_threads()
    model = Embedder.load(path)
    text = calibrating.Calibration(model.spec, model.tokenizer, calibrating.default_text())
    chunks = text.chunks(calibrating.BATCH)
    model.close()
    plain, observed = OpenVINOEngine(file, threads=threads), Observer(file, threads=threads)
    times: dict[str, list[float]] = {"plain": [], "observed": []}
    for _ in range(6):
        for name, run in (
            ("plain", lambda: plain.pool(chunks)),
            ("observed", lambda: observed.collect([one.tolist() for one in chunks])),
        ):
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    tokens = sum(map(len, chunks))
    rates = {f"{name}_tokens_per_s": tokens / min(times[name][1:]) for name in times}
    return {**rates, "share": rates["observed_tokens_per_s"] / rates["plain_tokens_per_s"]}


def _speed(folder: Path, task: Task) -> dict[str, float]:
    """Seconds to quantize to Q4_K_M with the matrix on one core and on two, best of three."""
    source = model_path(folder, family="starter", task=task, file_type="F16")
    mix = Mix("Q4_K_M", imatrix=ImportanceMatrix.read(matrix_path(folder, task)))
    found = {}
    for threads in (1, 2):
        times = []
        for _ in range(3):
            began = time.perf_counter()
            quantize(source, out=folder / "speed.gguf", mix=mix, threads=threads)
            times.append(time.perf_counter() - began)
        found[f"threads_{threads}_s"] = min(times)
    return found


def _summary(result: dict[str, Any]) -> dict[str, Any]:
    """The promises: largest ratio of each kind of mix, lowest agreement, sets where nDCG@10 fell significantly."""
    mixes = result["mixes"]
    upper = LADDER[: LADDER.index("Q3_K_M") + 1]
    return {
        "largest_ratio_free": max(row["ratio"] for row in mixes if row["mix"] == "free"),
        "largest_ratio_embedding_kept": max(row["ratio"] for row in mixes if row["mix"] != "free"),
        "largest_size_ratio": max(row["bytes"] / row["stock_bytes"] for row in mixes),
        "smallest_size_ratio": min(row["bytes"] / row["stock_bytes"] for row in mixes),
        "llamacpp_lowest_to_Q3_K_M": min(
            row["llamacpp_lowest"] for row in result["ladder"] if row["file_type"] in upper
        ),
        "llamacpp_lowest_below": min(
            row["llamacpp_lowest"] for row in result["ladder"] if row["file_type"] not in upper
        ),
        "nDCG_significantly_lower": [
            [row["task"], row["stock"], row["mix"], name]
            for row in mixes
            for name, one in row["nDCG@10"].items()
            if one["high"] < 0
        ],
    }


if __name__ == "__main__":
    main()
