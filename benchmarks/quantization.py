"""Mixes of tensor types searched for the starter's embeddings compared with stock file types, and importance matrices.

    python -m benchmarks.quantization [TASK ...]
    python -m benchmarks.quantization --merge RESULT ...
    python -m benchmarks.quantization --judge           (the mixes of the result, which are not searched again)

For every task: chooses mixes at the sizes of four stock files, with the embedding table free and with it kept, and
measures them and the stock files on every text of the task's sets (never calibrated on): cosine to F16, and nDCG@10
paired by query, mix and stock and F16 with each other. `--judge` makes the mixes of the result from their recorded
types, with today's weights and matrix, and measures them.
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import measuring
from benchmarks.judging import Judge, Judged, rankings
from nestling._util.cpu import usable_threads
from nestling.engine.openvino.engine import OpenVINOEngine
from nestling.engine.openvino.observer import Observer
from nestling.engine.protocol import Item
from nestling.formats.gguf import GGUFFile
from nestling.formats.quant_types import QuantType
from nestling.models import local
from nestling.models.embedder import Embedder
from nestling.pipeline.quantization import calibration
from nestling.pipeline.quantization.imatrix import ImportanceMatrix
from nestling.pipeline.quantization.kept_imatrix import matrix_path
from nestling.pipeline.quantization.plan import Mix
from nestling.pipeline.quantization.quantize import quantize
from nestling.pipeline.quantization.search.recipe_file import MixRecipe
from nestling.pipeline.quantization.search.search import Budget, Chooser, embedding_kept
from nestling.spec import ModelSpec, Task

STOCK = ("Q4_K_M", "Q3_K_M", "IQ3_XXS", "IQ2_M")
TRIALS = 40
"""Measurements that refine each mix."""


def main() -> None:
    """Measure and write `benchmarks/results/quantization.json`, or parts of it for single tasks, to be merged."""
    if sys.argv[1:2] == ["--merge"]:
        _merge([Path(name) for name in sys.argv[2:]])
        return
    if sys.argv[1:2] == ["--judge"]:
        _judge_again(json.loads((measuring.RESULTS / "quantization.json").read_text("utf-8")))
        return
    tasks = [Task.parse(name) for name in sys.argv[1:]]
    result: dict[str, Any] = {"mixes": [], "tasks": {}}
    for task in tasks or Task:
        with tempfile.TemporaryDirectory() as name:
            _task(Path(name), task, result)
    result["summary"] = _summary(result)
    print(measuring.write("-".join(["quantization", *tasks]), result))


def _merge(parts: Sequence[Path]) -> None:
    """Put results of single tasks together."""
    found = [json.loads(path.read_text("utf-8")) for path in parts]
    result = {
        "mixes": [row for one in found for row in one["mixes"]],
        "tasks": {task: facts for one in found for task, facts in one["tasks"].items()},
        "parts": [{key: one[key] for key in ("command", "commit", "machine")} for one in found],
    }
    print(measuring.write("quantization", {**result, "summary": _summary(result)}))


def _judge_again(result: dict[str, Any]) -> None:
    """Judge the mixes of a result that are recorded in it, without choosing them again."""
    for task in map(Task.parse, result["tasks"]):
        with tempfile.TemporaryDirectory() as name:
            _judge_mixes(Path(name), task, result)
    kept = {key: result[key] for key in ("mixes", "tasks")}
    print(measuring.renew("quantization", {**kept, "summary": _summary(result)}))


def _judge_mixes(folder: Path, task: Task, result: dict[str, Any]) -> None:
    source, matrix = _built(task, "F16"), _matrix(task)
    judge = Judge(source, task)
    stock = {file_type: judge.judged(_built(task, file_type)) for file_type in STOCK}
    pairs = []
    for row in (row for row in result["mixes"] if row["task"] == task):
        types = {name: QuantType[kind] for name, kind in row["types"].items()}
        shapes = {name: GGUFFile.open(source).tensors[name].shape for name in types}
        made = _made(folder, source, MixRecipe(row["stock"], types, shapes), matrix)
        assert made.stat().st_size == row["bytes"], (made.stat().st_size, row["bytes"])
        pairs.append((stock[row["stock"]], judge.judged(made)))
        row.update(_judgement(judge, *pairs[-1]))
        print({key: value for key, value in row.items() if key != "types"}, flush=True)
    result["tasks"][task]["nDCG@10"] = judge.compared(*zip(*pairs, strict=True))


def _built(task: Task, file_type: str) -> Path:
    return local.resolve(f"{local.STARTER}-{task}:{file_type}")


def _matrix(task: Task) -> ImportanceMatrix:
    """The matrix that the build of a file with one has collected."""
    return ImportanceMatrix.read(matrix_path(_built(task, STOCK[0]).parent, task))


def _judgement(judge: Judge, stock: Judged, mix: Judged) -> dict[str, Any]:
    return {
        "stock_error": stock.error, "error": mix.error, "ratio": mix.error / stock.error,
        "stock_lowest": stock.lowest, "lowest": mix.lowest, "nDCG@10": judge.compared([stock], [mix]),
    }  # fmt: skip


def _task(folder: Path, task: Task, result: dict[str, Any]) -> None:
    mixes, facts = _mixes(folder, task)
    result["mixes"] += mixes
    result["tasks"][task] = {**facts, "imatrix": _collection(task), "quantize": _speed(folder, task)}


def _mixes(folder: Path, task: Task) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    source, matrix = _built(task, "F16"), _matrix(task)
    began = time.perf_counter()
    chooser = Chooser.measure(source, spec=_spec(source), matrix=matrix, threads=usable_threads())
    facts: dict[str, Any] = {
        "measure_s": time.perf_counter() - began,
        "estimate_correlation": chooser.correlation,
        "estimates_checked": chooser.checked,
    }
    judge = Judge(source, task)
    rows = []
    pairs: list[tuple[Judged, Judged]] = []
    for file_type in STOCK:
        plan = chooser.stock(file_type)
        stock = judge.judged(_built(task, file_type))
        for kind, keep in (("free", None), ("embedding kept", embedding_kept(plan))):
            began = time.perf_counter()
            chosen = chooser.choose(Budget(size_bytes=plan.size_bytes), keep=keep, trials=TRIALS)
            choose_s = time.perf_counter() - began
            made = _made(folder, source, chosen.recipe, matrix)
            ours = judge.judged(made)
            pairs.append((stock, ours))
            row = {
                "task": task, "stock": file_type, "mix": kind, "stock_bytes": plan.size_bytes,
                "bytes": made.stat().st_size, "choose_s": choose_s, "trials": chosen.trials,
                "calibration_error": chosen.recipe.error, **_judgement(judge, stock, ours),
                "types": {name: one.name for name, one in chosen.recipe.types.items()},
            }  # fmt: skip
            rows.append(row)
            print({key: value for key, value in row.items() if key != "types"}, flush=True)
    facts["nDCG@10"] = judge.compared(*zip(*pairs, strict=True))
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


def _collection(task: Task) -> dict[str, float]:
    """Tokens per second of the engine plain and observed, in turns, best of five."""
    path = _built(task, "F16")
    file, threads = GGUFFile.open(path), usable_threads()
    model = Embedder.load(path)
    text = calibration.Calibration(model.spec, model.tokenizer, calibration.default_text())
    chunks = text.chunks(calibration.BATCH)
    model.close()
    plain, observed = OpenVINOEngine(file, threads=threads), Observer(file, threads=threads)
    times: dict[str, list[float]] = {"plain": [], "observed": []}
    for _ in range(6):
        for name, run in (
            ("plain", lambda: plain.pool([Item(one) for one in chunks])),
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
    source, mix = _built(task, "F16"), Mix("Q4_K_M", imatrix=_matrix(task))
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
    """The promises: largest ratio of each kind of mix, how nDCG@10 changed."""
    mixes = result["mixes"]
    return {
        "largest_ratio_free": max(row["ratio"] for row in mixes if row["mix"] == "free"),
        "largest_ratio_embedding_kept": max(row["ratio"] for row in mixes if row["mix"] != "free"),
        "largest_size_ratio": max(row["bytes"] / row["stock_bytes"] for row in mixes),
        "smallest_size_ratio": min(row["bytes"] / row["stock_bytes"] for row in mixes),
        "nDCG@10": rankings(mixes),
        "nDCG@10, all mixes together": rankings(
            [{"task": task, "stock": "all", "mix": "all", **facts} for task, facts in result["tasks"].items()]
        ),
    }


if __name__ == "__main__":
    main()
